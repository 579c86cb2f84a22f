"""Second derivatives for MindSpore that are right or refused, and fast."""

from mindspore_hessian import (  # noqa: F401 -- _environment comes first
    _environment,
    linops,
    optim,
    plot,
    rules,
    testing,
)
from mindspore_hessian._errors import (
    DeviceError,
    FallbackWarning,
    HessianError,
    KernelError,
    LateRulesWarning,
    MissingRuleError,
    NonFiniteWarning,
    NotCompilableError,
    RecompileWarning,
    UnsafeRuntimeError,
)
from mindspore_hessian._progress import set_progress
from mindspore_hessian.bayes import Calibration, Laplace, calibration
from mindspore_hessian.core.cache import CacheInfo, cache_info, clear_cache, set_cache_size
from mindspore_hessian.device import (
    DeviceInfo,
    available_devices,
    configure,
    device_info,
    limit_instructions,
)
from mindspore_hessian.estimators import (
    condition_number,
    eigsh,
    layer_report,
    negative_curvature,
    spectral_density,
)
from mindspore_hessian.influence import Influential, influence, most_influential, self_influence
from mindspore_hessian.linops import (
    Identity,
    Operator,
    diagonal,
    frobenius_norm,
    inverse,
    logdet,
    nystrom,
    solve,
    trace,
)
from mindspore_hessian.operators import distributed
from mindspore_hessian.operators.checks import NotDeterministicError
from mindspore_hessian.operators.distributed import DistributedError
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator, FisherOperator
from mindspore_hessian.operators.ggn import GGNOperator
from mindspore_hessian.operators.hessian import HessianOperator
from mindspore_hessian.operators.jacobian import JacobianOperator
from mindspore_hessian.operators.kfac import EKFACOperator, KFACOperator
from mindspore_hessian.operators.noise import GradientNoise, noise_scale
from mindspore_hessian.operators.samples import per_sample_gradients
from mindspore_hessian.tools.audit import AuditReport, audit
from mindspore_hessian.tools.diagnose import Diagnosis, diagnose
from mindspore_hessian.tools.monitor import CurvatureMonitor, Measurement
from mindspore_hessian.tools.saliency import saliency
from mindspore_hessian.transforms.diagonal import batched_hessian, hessian_diag
from mindspore_hessian.transforms.hessian import hessian, value_grad_and_hessian
from mindspore_hessian.transforms.jacobian import jacobian
from mindspore_hessian.transforms.jet import derivative, jet
from mindspore_hessian.transforms.laplacian import laplacian, value_grad_and_laplacian
from mindspore_hessian.transforms.products import (
    curvature,
    ggnvp,
    grad_and_hvp,
    hvp,
    hvp_revfwd,
    hvp_revrev,
)
from mindspore_hessian.transforms.tangent import jvp

__version__ = "0.1.0"
__all__ = [
    "AuditReport",
    "CacheInfo",
    "Calibration",
    "CurvatureMonitor",
    "DeviceError",
    "DeviceInfo",
    "Diagnosis",
    "DistributedError",
    "EKFACOperator",
    "EmpiricalFisherOperator",
    "FallbackWarning",
    "FisherOperator",
    "GGNOperator",
    "GradientNoise",
    "HessianError",
    "HessianOperator",
    "Identity",
    "Influential",
    "JacobianOperator",
    "KFACOperator",
    "KernelError",
    "Laplace",
    "LateRulesWarning",
    "Measurement",
    "MissingRuleError",
    "NonFiniteWarning",
    "NotCompilableError",
    "NotDeterministicError",
    "Operator",
    "RecompileWarning",
    "UnsafeRuntimeError",
    "audit",
    "available_devices",
    "batched_hessian",
    "cache_info",
    "calibration",
    "clear_cache",
    "condition_number",
    "configure",
    "curvature",
    "derivative",
    "device_info",
    "diagnose",
    "diagonal",
    "distributed",
    "eigsh",
    "frobenius_norm",
    "ggnvp",
    "grad_and_hvp",
    "hessian",
    "hessian_diag",
    "hvp",
    "hvp_revfwd",
    "hvp_revrev",
    "influence",
    "inverse",
    "jacobian",
    "jet",
    "jvp",
    "laplacian",
    "layer_report",
    "linops",
    "logdet",
    "most_influential",
    "negative_curvature",
    "noise_scale",
    "nystrom",
    "optim",
    "per_sample_gradients",
    "plot",
    "rules",
    "saliency",
    "self_influence",
    "set_cache_size",
    "set_progress",
    "solve",
    "spectral_density",
    "testing",
    "trace",
    "value_grad_and_hessian",
    "value_grad_and_laplacian",
]

rules.install()
limit_instructions()
