"""Eigenvalues, traces, densities and linear systems of any symmetric operator with ``.shape`` and
``@``.
"""

from mindspore_hessian.estimators.condition import condition_number
from mindspore_hessian.estimators.density import logdet, spectral_density
from mindspore_hessian.estimators.diagonal import diagonal
from mindspore_hessian.estimators.eigen import eigsh, negative_curvature
from mindspore_hessian.estimators.report import LayerReport, LayerRow, layer_report
from mindspore_hessian.estimators.results import (
    ConditionNumber,
    EigshResult,
    Estimate,
    NegativeCurvature,
    Solution,
    SpectralDensity,
)
from mindspore_hessian.estimators.solve import solve
from mindspore_hessian.estimators.trace import frobenius_norm, trace

__all__ = [
    "ConditionNumber",
    "EigshResult",
    "Estimate",
    "LayerReport",
    "LayerRow",
    "NegativeCurvature",
    "Solution",
    "SpectralDensity",
    "condition_number",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "layer_report",
    "logdet",
    "negative_curvature",
    "solve",
    "spectral_density",
    "trace",
]
