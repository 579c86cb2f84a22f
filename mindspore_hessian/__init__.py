"""Second derivatives for MindSpore that are right or refused, and fast."""
from mindspore_hessian import rules, testing
from mindspore_hessian._compile import CacheInfo, cache_info, clear_cache, set_cache_size
from mindspore_hessian._errors import (
    DeviceError,
    FallbackWarning,
    HessianError,
    LateRulesWarning,
    MissingRuleError,
    NonFiniteWarning,
    NotCompilableError,
    RecompileWarning,
    UnsafeRuntimeError,
)
from mindspore_hessian.device import DeviceInfo, available_devices, configure, device_info
from mindspore_hessian.operators.base import Identity, Operator
from mindspore_hessian.operators.checks import NotDeterministicError
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator, FisherOperator
from mindspore_hessian.operators.ggn import GGNOperator
from mindspore_hessian.operators.hessian import HessianOperator
from mindspore_hessian.transforms.diagonal import batched_hessian, hessian_diag, laplacian
from mindspore_hessian.transforms.hessian import hessian, value_grad_and_hessian
from mindspore_hessian.transforms.jacobian import jacobian
from mindspore_hessian.transforms.products import curvature, ggnvp, grad_and_hvp, hvp, hvp_revfwd, hvp_revrev

__version__ = "0.1.0"
__all__ = [
    "CacheInfo", "DeviceError", "DeviceInfo", "EmpiricalFisherOperator", "FallbackWarning", "FisherOperator",
    "GGNOperator", "HessianError", "HessianOperator", "Identity", "LateRulesWarning", "MissingRuleError",
    "NonFiniteWarning", "NotCompilableError", "NotDeterministicError", "Operator", "RecompileWarning",
    "UnsafeRuntimeError",
    "available_devices", "batched_hessian", "cache_info", "clear_cache", "configure", "curvature", "device_info",
    "ggnvp", "grad_and_hvp", "hessian", "hessian_diag", "hvp", "hvp_revfwd", "hvp_revrev", "jacobian", "laplacian",
    "rules", "set_cache_size", "testing", "value_grad_and_hessian",
]

rules.install()
