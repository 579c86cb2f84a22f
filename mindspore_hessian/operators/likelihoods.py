"""The likelihood behind a loss: a loss that is -log p(y | output) has a Fisher information, which
needs no targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import mint, nn, ops

from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.weighing import options_of, unwrapped


@dataclass(frozen=True)
class Likelihood:
    """A distribution of targets, given the network's output.

    Attributes:
        curvature: its Fisher information by the output, times a vector, as MindSpore compiles it.
        terms: how many independent draws an output of a shape stands for; a mean loss divides by
            their number.
        noise: ``noise(shape, generator, dtype)``: what the draws for an output of a shape are made
            of: numbers in [0, 1), one for each term; for the Gaussian normal numbers.
        draw: ``draw(output, noise)`` samples targets and gives the gradient of the loss of each
            draw.
    """

    name: str
    curvature: Callable
    terms: Callable[[tuple[int, ...]], int]
    noise: Callable[[tuple[int, ...], np.random.Generator, Any], np.ndarray]
    draw: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def _level_of_term(shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> np.ndarray:
    return rng.random((shape[0], *shape[2:]), dtype)


def _level(shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> np.ndarray:
    return rng.random(shape, dtype)


def _normal(shape: tuple[int, ...], rng: np.random.Generator, dtype: Any) -> np.ndarray:
    return rng.standard_normal(shape, dtype)


def _draw_categorical(logits: np.ndarray, level: np.ndarray) -> np.ndarray:
    p = _softmax(logits.astype(np.float64))
    below = np.cumsum(p, 1) < np.expand_dims(level, 1)
    index = np.minimum(below.sum(1, keepdims=True), p.shape[1] - 1)
    return p - (np.arange(p.shape[1]).reshape(1, -1, *(1,) * (p.ndim - 2)) == index)


def _draw_bernoulli(logits: np.ndarray, level: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return p - (level < p)


def _draw_gaussian(mean: np.ndarray, normal: np.ndarray) -> np.ndarray:
    return np.sqrt(2.0) * normal


def _positions(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) // shape[1]


def _entries(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


LIKELIHOODS = {
    "categorical": Likelihood(
        "categorical", kernels.categorical, _positions, _level_of_term, _draw_categorical
    ),
    "bernoulli": Likelihood("bernoulli", kernels.bernoulli, _entries, _level, _draw_bernoulli),
    "gaussian": Likelihood("gaussian", kernels.gaussian, _entries, _normal, _draw_gaussian),
}

_CLASSES: dict[Any, str] = {
    nn.CrossEntropyLoss: "categorical",
    nn.SoftmaxCrossEntropyWithLogits: "categorical",
    nn.MSELoss: "gaussian",
    nn.BCEWithLogitsLoss: "bernoulli",
    mint.nn.CrossEntropyLoss: "categorical",
    mint.nn.MSELoss: "gaussian",
    mint.nn.BCEWithLogitsLoss: "bernoulli",
}
_FUNCTIONS: dict[Any, str] = {
    ops.cross_entropy: "categorical",
    ops.mse_loss: "gaussian",
    ops.binary_cross_entropy_with_logits: "bernoulli",
    mint.nn.functional.cross_entropy: "categorical",
    mint.nn.functional.mse_loss: "gaussian",
    mint.nn.functional.binary_cross_entropy_with_logits: "bernoulli",
}
_MODIFIED = (
    "weight",
    "weights",
    "pos_weight",
    "label_smoothing",
)  # options that change the likelihood


def likelihood_of(loss_fn: Any) -> Likelihood | None:
    """The likelihood whose negative logarithm the loss is; None where it is not known."""
    name = _name(loss_fn)
    if name is None or any(_set(option) for option in options_of(loss_fn, _MODIFIED).values()):
        return None
    return LIKELIHOODS[name]


def likelihood_of_base(loss_fn: Any) -> Likelihood | None:
    """That of the class of MindSpore's which a loss is a subclass of."""
    found = (name for cls, name in _CLASSES.items() if isinstance(loss_fn, cls))
    return LIKELIHOODS.get(next(found, ""))


def is_cross_entropy(loss_fn: Any) -> bool:
    """Whether it is one, also with weights of classes or label smoothing."""
    return _name(loss_fn) == "categorical"


def _name(loss_fn: Any) -> str | None:
    return _class(loss_fn) if isinstance(loss_fn, nn.Cell) else _function(unwrapped(loss_fn))


def _class(loss_fn: nn.Cell) -> str | None:
    construct = getattr(type(loss_fn), "construct", None)  # a subclass may have one of its own
    return next(
        (
            name
            for cls, name in _CLASSES.items()
            if isinstance(loss_fn, cls) and construct is getattr(cls, "construct", 0)
        ),
        None,
    )


def _function(loss_fn: Any) -> str | None:
    try:
        return _FUNCTIONS.get(loss_fn)
    except TypeError:  # not hashable
        return None


def _set(option: Any) -> bool:
    if option is None:
        return False
    return option != 0 if isinstance(option, int | float) else True
