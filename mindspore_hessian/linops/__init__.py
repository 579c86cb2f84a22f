"""Square matrices known by their products, some with structure; and functions of them that make use
of it.
"""

from mindspore_hessian.linops.functions import (
    diagonal,
    frobenius_norm,
    inverse,
    logdet,
    solve,
    trace,
)
from mindspore_hessian.linops.nystrom import Nystrom, nystrom
from mindspore_hessian.linops.operator import Identity, Operator
from mindspore_hessian.linops.structured import (
    BlockDiagonal,
    Diagonal,
    Kronecker,
    LowRank,
    Spectral,
    Structured,
)

__all__ = [
    "BlockDiagonal",
    "Diagonal",
    "Identity",
    "Kronecker",
    "LowRank",
    "Nystrom",
    "Operator",
    "Spectral",
    "Structured",
    "diagonal",
    "frobenius_norm",
    "inverse",
    "logdet",
    "nystrom",
    "solve",
    "trace",
]
