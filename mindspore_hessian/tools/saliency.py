"""Saliency: by how much the loss grows where a weight, or a channel, is taken away."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import as_reals, check_choice, check_real, shown
from mindspore_hessian.linops import Kronecker, Structured
from mindspore_hessian.linops import diagonal as exact_diagonal
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.kfac import KFACOperator
from mindspore_hessian.operators.weights import layer_of, slices

METHODS, PARTS = ("obd", "obs"), ("weight", "channel")
_DENSE = 10_000  # weights up to which the whole matrix is formed for "obs"
_BYTES = 2**27  # that a chunk of columns takes

Method = Literal["obd", "obs"]


@overload
def saliency(
    op: CurvatureOperator | KFACOperator,
    method: Method = "obd",
    damping: float = 0.0,
    *,
    per: Literal["weight"] = "weight",
    diagonal: Any = None,
) -> np.ndarray: ...


@overload
def saliency(
    op: CurvatureOperator | KFACOperator,
    method: Method = "obd",
    damping: float = 0.0,
    *,
    per: Literal["channel"],
    diagonal: Any = None,
) -> dict[str, np.ndarray]: ...


@interruptible
def saliency(
    op: CurvatureOperator | KFACOperator,
    method: Method = "obd",
    damping: float = 0.0,
    *,
    per: Literal["weight", "channel"] = "weight",
    diagonal: Any = None,
) -> np.ndarray | dict[str, np.ndarray]:
    r"""By how much the loss grows where a weight is set to 0, to second order: OBD and OBS.

    With the curvature H of `op`, and :math:`d I` added to it, at the weights w as they are. The
    gradient is left out: it is meant for a network that was trained to the end.

    - ``"obd"``, optimal brain damage: the others stay, :math:`s_i = \tfrac12 H_{ii} w_i^2`.
    - ``"obs"``, optimal brain surgeon: the others are fitted again, :math:`s_i = \tfrac12 w_i^2 / [H^{-1}]_{ii}`.

    ``per="channel"`` takes all weights S of a channel away at once:
    :math:`\tfrac12 w_S^T H_{SS} w_S`, and :math:`\tfrac12 w_S^T ([H^{-1}]_{SS})^{-1} w_S`. A
    channel is an entry of the first axis of all Parameters of a layer: a row of a Dense layer's
    weight or a filter of a convolution, with its bias. Both are exact where the loss is quadratic.

    Costs: "obd" per weight what ``diagonal(op, method="exact")`` does (for Gauss-Newton and Fisher
    operators a gradient for each output of the network), per channel a product for each channel.
    "obs" forms the whole matrix of an operator without structure, n products and :math:`O(n^3)`
    operations; KFAC and EKFAC operators have an inverse. A channel of "obs" is a column of the
    inverse for each of its weights.

    Args:
        op: an operator of a network; `KFACOperator` and `EKFACOperator` too.
        method: ``"obd"`` or ``"obs"``.
        damping: d, at least 0.
        per: ``"weight"`` or ``"channel"``.
        diagonal: (n,), where it is known, the diagonal of H for "obd" and that of :math:`H^{-1}`
            for "obs": from ``diagonal(op, max_products=200).value``, or of
            ``inverse(nystrom(op, 100), damping)``. The matrix is then taken for diagonal, and a
            channel's saliency is the sum of its weights'; `damping` stays 0. None: exact.

    Returns:
        float64, (n,) in the order of the operator's flat vectors for "weight" (``op.unflatten``
        shapes it like the weights); layer -> (channels,) for "channel". Negative where H is not
        positive, for "obd".

    Raises:
        TypeError: `op` is no operator of a network, or an argument has a wrong type.
        ValueError: an argument out of its range; for "obs", a matrix that is not positive definite
            with the damping or, without structure, one of more than 10,000 weights; for channels,
            Parameters of a layer with different first axes.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU`` (tested)

    Source:
        Y. LeCun, J. Denker and S. Solla, Optimal brain damage, NeurIPS 1990 (2). B. Hassibi and D.
        Stork, Second order derivatives for network pruning: optimal brain surgeon, NeurIPS 1993
        (5).

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import GGNOperator, saliency
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [1.0, 2.0]]), ms.Tensor([[1.0], [3.0]])  # net(x) is y
        >>> op = GGNOperator(net, nn.MSELoss(), (x, y))
        >>> print(saliency(op), saliency(op, "obs").round(4), saliency(op, per="channel"))
        [1. 2.] [0.5 1. ] {'weight': array([5.])}
    """
    if not isinstance(op, CurvatureOperator | KFACOperator):
        raise TypeError(
            "op must be an operator of a network, such as GGNOperator or KFACOperator, but got "
            f"{shown(op)}"
        )
    check_choice("method", method, METHODS)
    check_choice("per", per, PARTS)
    check_real("damping", damping, strict=False)
    if per == "channel":
        places = channels(op)
    point = op.point
    if diagonal is not None:
        each = _by_weight(method, _checked(diagonal, op.shape[0], method, damping), point)
        return (
            each
            if per == "weight"
            else {
                name: np.array([each[one].sum() for one in several])
                for name, several in places.items()
            }
        )
    if method == "obd" and per == "weight":
        return _by_weight(method, exact_diagonal(op, method="exact").value + damping, point)
    if method == "obd":
        return {
            name: _without_refit(op, several, point, damping) for name, several in places.items()
        }
    inverted = _inverse(op, damping)
    if per == "weight":
        return _by_weight(method, inverted.diagonal(), point)
    return {
        name: np.array([_with_refit(inverted, one, point) for one in several])
        for name, several in places.items()
    }


def channels(op: Any) -> dict[str, list[np.ndarray]]:
    """Layer -> for each of its channels, the indices of its weights in a flat vector."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    space = op.space if isinstance(op, CurvatureOperator) else op.fisher_operator.space
    for weight in space.weights:
        part = slices(space)[weight.name]
        rows = np.arange(part.start, part.stop).reshape(weight.shape[0] if weight.shape else 1, -1)
        parts.setdefault(layer_of(weight.name), {})[weight.name] = rows
    for layer, several in parts.items():
        if len({len(rows) for rows in several.values()}) > 1:
            raise ValueError(
                f"the Parameters of the layer {layer!r} have first axes of different lengths ("
                + ", ".join(f"{name} {len(rows)}" for name, rows in several.items())
                + "), so it has no channels: take per='weight', or leave it out of the operator's weights"
            )
    return {
        layer: list(np.concatenate(list(several.values()), axis=1))
        for layer, several in parts.items()
    }


def _checked(diagonal: Any, n: int, method: str, damping: float) -> np.ndarray:
    """A diagonal that the caller knows."""
    known = as_reals("diagonal", diagonal)
    if known.shape != (n,) or not np.isfinite(known).all():
        raise ValueError(
            f"diagonal must be finite and of shape ({n},), but has shape {known.shape} and "
            f"{int((~np.isfinite(known)).sum())} entries NaN or Inf"
        )
    if damping:
        raise ValueError(
            f"damping must be 0 with a diagonal, which is taken as it is, but got {damping}"
        )
    if method == "obs" and not (known > 0).all():
        raise ValueError(
            "diagonal, that of the inverse, must be positive for method 'obs', but "
            f"{(known <= 0).sum()} of its entries are not: take a larger damping for it"
        )
    return known


def _by_weight(method: str, diagonal: np.ndarray, point: np.ndarray) -> np.ndarray:
    return point**2 / 2 * (diagonal if method == "obd" else 1 / diagonal)


def _without_refit(
    op: Any, several: list[np.ndarray], point: np.ndarray, damping: float
) -> np.ndarray:
    """w_S^T (H + d I) w_S / 2 for each S."""
    out, width = np.zeros(len(several)), max(1, _BYTES // (8 * len(point)))
    for start in range(0, len(several), width):
        chunk = several[start : start + width]
        columns = np.zeros((len(point), len(chunk)))
        for number, one in enumerate(chunk):
            columns[one, number] = point[one]
        product = np.asarray(op @ columns.astype(op.dtype), np.float64) + damping * columns
        out[start : start + width] = (columns * product).sum(axis=0) / 2
    return out


def _inverse(op: Any, damping: float) -> Structured:
    n = op.shape[0]
    if not op.structured and n > _DENSE:
        raise ValueError(
            f"method 'obs' forms the whole matrix of {op!r}, but {n} weights are more than "
            f"{_DENSE}: take a KFACOperator, or pass a diagonal of the inverse"
        )
    known = op
    if not op.structured:
        dense = op.to_dense()  # in its own dtype, so that its rounding is not taken for eigenvalues
        known = Kronecker((dense + dense.T) / 2)
    if not known.definite(damping):
        raise ValueError(
            f"op must be positive definite with damping {damping:g} for method 'obs', but its "
            f"least eigenvalue is {known.eigenvalues().min():.3g}: pass a larger damping, or take "
            "a GGNOperator"
        )
    return known.inverse(damping)


def _with_refit(inverted: Structured, channel: np.ndarray, point: np.ndarray) -> float:
    """w_S^T ([H^-1]_SS)^-1 w_S / 2, the columns of the inverse in chunks."""
    n, size = inverted.shape[0], len(channel)
    block, width = np.empty((size, size)), max(1, _BYTES // (8 * n))
    for start in range(0, size, width):
        own = channel[start : start + width]
        unit = np.zeros((n, len(own)))
        unit[own, np.arange(len(own))] = 1.0
        block[:, start : start + width] = inverted.columns(unit)[channel]
    return float(point[channel] @ np.linalg.solve((block + block.T) / 2, point[channel])) / 2
