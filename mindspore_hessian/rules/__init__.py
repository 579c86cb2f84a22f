"""Derivative and batching rules that MindSpore lacks or has wrong, supplied through its own
registries.

Rules stand in families, a file each: all kinds of rule of a primitive beside each other, filed as
the file is imported. Nothing reaches MindSpore until `install`.
"""

from mindspore_hessian.rules import (  # noqa: F401  each files its rules
    activations,
    convolution,
    decompositions,
    distance,
    elementwise,
    fourier,
    indexing,
    interpreter,
    linalg,
    losses,
    matmul,
    normalization,
    padding,
    pooling,
    recurrent,
    reductions,
    resizing,
    sampling,
    shapes,
    special,
)
from mindspore_hessian.rules.registry import (
    RuleStatus,
    in_force,
    install,
    register_batching,
    register_derivative,
    register_forward,
    register_taylor,
    replaced,
    status,
    uninstall,
)

__all__ = [
    "install",
    "uninstall",
    "status",
    "in_force",
    "replaced",
    "register_derivative",
    "register_batching",
    "register_forward",
    "register_taylor",
    "RuleStatus",
]
