"""What every estimator needs: an operator that counts and checks its products, probes, progress and
checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from tqdm import tqdm

from mindspore_hessian import _checkpoint
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian._progress import bar
from mindspore_hessian.arguments import as_reals, check_choice, check_integer, check_progress
from mindspore_hessian.estimators._checks import (
    check_symmetric,
    dimension_of,
    dtype_of,
    epsilon_of,
    matrix_of,
)

Distribution: TypeAlias = Literal["rademacher", "normal", "sphere"]
DISTRIBUTIONS = get_args(Distribution)
_OF_ANY_MATRIX = ("trace", "diagonal", "frobenius_norm", "layer_report")
FEWEST = 10  # samples before a standard error is trusted to stop at `tol`


class BudgetSpent(Exception):
    """More products were asked for than `max_products` leaves. Caught inside the package."""


class Run:
    """One call of an estimator: ``run @ block`` is a checked and counted product of ``op + damping
    I``, in float64.

    A context manager, which shows the progress bar and keeps the time. `state` holds the arrays of
    the checkpoint that this call goes on from, and is empty where there is none.
    """

    def __init__(
        self,
        function: str,
        op: Any,
        *,
        seed: int,
        max_products: int | None,
        progress: bool | None,
        checkpoint: str | os.PathLike | None,
        damping: float = 0.0,
        **arguments: Any,
    ) -> None:
        op = matrix_of(op)
        self.op, self.n, self.dtype, self.seed, self.damping = (
            op,
            dimension_of(op),
            dtype_of(op),
            seed,
            damping,
        )
        if function not in _OF_ANY_MATRIX:
            check_symmetric(op)
        check_integer("seed", seed, 0)
        if max_products is not None:
            check_integer("max_products", max_products, 1)
        check_progress(progress)
        self.eps, self.max_products, self.num_products = epsilon_of(self.dtype), max_products, 0
        self.state: dict[str, np.ndarray] = {}
        self._function, self._progress, self._started, self._by_columns = (
            function,
            progress,
            time.perf_counter(),
            False,
        )
        self._path = _checkpoint.named(checkpoint)
        given = {"max_products": max_products, "damping": damping, **arguments}
        self._arguments = {
            "function": function,
            "n": self.n,
            "dtype": str(self.dtype),
            "seed": int(seed),
            **{
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in given.items()
            },
        }
        self._witness: tuple[np.ndarray, ...] | None = (
            None  # the first product, to know the operator again
        )
        self.precondition: Callable[[np.ndarray], np.ndarray] = np.array  # a copy: none
        self._bar: tqdm | None = None
        self._open = contextlib.ExitStack()

    @property
    def structured(self) -> bool:
        """Whether the operator knows exactly what an estimator would estimate: see
        `linops.Structured`.
        """
        return getattr(self.op, "structured", False)

    @property
    def remaining(self) -> int:
        return (sys.maxsize if self.max_products is None else self.max_products) - self.num_products

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as stack:
            stack.enter_context(interruptible)
            if self._path is not None:
                self._load(self._path)
            self._bar = stack.enter_context(
                bar(
                    self._function,
                    self.max_products,
                    self._progress,
                    "product",
                    self.num_products,
                    hidden=not getattr(self.op, "shows_progress", True),
                    leave=True,
                )
            )
            self._open = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def __matmul__(self, block: np.ndarray) -> np.ndarray:
        columns = 1 if block.ndim == 1 else block.shape[1]
        if columns > self.remaining:
            raise BudgetSpent
        out = self._multiply(block)
        self.num_products += columns
        if not np.isfinite(out).all():
            raise ValueError(
                f"op returned NaN or Inf, seen after {self.num_products} products: look at the "
                "function and the point that it is differentiated at"
            )
        if self._witness is None:
            self._witness = tuple(
                np.array(part if part.ndim == 1 else part[:, 0]) for part in (block, out)
            )
        if self._bar is not None:
            self._bar.update(columns)
        return out + self.damping * block if self.damping else out

    def probes(self, first: int, count: int, distribution: str = "rademacher") -> np.ndarray:
        """Random columns number `first` to ``first + count - 1`` with E z z^T = I; each has a
        generator of its own, so it does not depend on how the probes are cut into blocks."""
        block = np.empty((self.n, count))
        for column in range(count):
            generator = np.random.default_rng(
                np.random.SeedSequence(self.seed, spawn_key=(first + column,))
            )
            if distribution == "rademacher":
                block[:, column] = 2.0 * generator.integers(0, 2, self.n) - 1.0
                continue
            z = generator.standard_normal(self.n)
            block[:, column] = (
                z if distribution == "normal" else z * (np.sqrt(self.n) / np.linalg.norm(z))
            )
        return self.rounded(block)

    def rounded(self, block: np.ndarray) -> np.ndarray:
        """What the operator really sees of a float64 array, in float64."""
        return block if self.dtype == np.float64 else block.astype(self.dtype).astype(np.float64)

    def save(self, **state: Any) -> None:
        """Write the checkpoint."""
        if self._path is None:
            return
        assert self._witness is not None
        _checkpoint.write(
            self._path,
            _arguments=json.dumps(self._arguments),
            _products=self.num_products,
            _seconds=self.seconds,
            _probe=self._witness[0],
            _product=self._witness[1],
            **state,
        )

    def _multiply(self, block: np.ndarray) -> np.ndarray:
        if block.ndim == 2 and block.shape[1] == 1:
            return self._multiply(block[:, 0])[:, None]
        if block.ndim == 2 and self._by_columns:
            return np.stack([self._multiply(column) for column in block.T], axis=1)
        fed = np.array(block, dtype=self.dtype, order="C")
        try:
            product = self.op @ fed
            if np.iscomplexobj(product):
                raise TypeError(
                    f"op must be real, but its product has dtype {np.asarray(product).dtype}"
                )
            out = as_reals("the product of op with an array", product)
            if out.shape != block.shape:
                raise ValueError(
                    f"op @ an array of shape {block.shape} must have that shape, but has "
                    f"{out.shape}"
                )
            return out
        except (TypeError, ValueError):
            if block.ndim == 1:
                raise
        self._by_columns = True  # an operator that takes vectors only; a real error comes again
        return self._multiply(block)

    def _load(self, path: str) -> None:
        state = _checkpoint.read(path)
        if state is None:
            return
        if "_arguments" not in state:
            raise ValueError(
                f"checkpoint {path!r} is of op.product(), not of {self._function}: pass another "
                "name"
            )
        made_with = json.loads(str(state.pop("_arguments")))
        ours = json.loads(json.dumps(self._arguments))
        different = [
            f"{name}={made_with.get(name)!r} there and {ours.get(name)!r} here"
            for name in {**ours, **made_with}
            if made_with.get(name) != ours.get(name)
        ]
        if different:
            raise ValueError(
                f"checkpoint {path!r} was made with other arguments: {', '.join(different)}. "
                "Repeat those, or pass another file name"
            )
        probe, product = state.pop("_probe"), state.pop("_product")
        again = self._multiply(probe)  # not counted: the uninterrupted run does not make it
        if not np.linalg.norm(again - product) <= 1e3 * self.eps * np.linalg.norm(product):
            raise ValueError(
                f"checkpoint {path!r} was made with another operator: its first product is not "
                "that of op. Pass another file name"
            )
        self._witness, self.num_products = (probe, product), int(state.pop("_products"))
        self._started -= float(state.pop("_seconds"))
        self.state = state


def check_probing(run: Run, distribution: str, batch: int) -> None:
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_integer("batch", batch, 1)


def fingerprint(array: np.ndarray | None) -> str | None:
    """A short name for the contents of an array among the arguments of a checkpoint."""
    return (
        None
        if array is None
        else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    )


def mean_and_error(samples: np.ndarray) -> tuple[Any, Any]:
    """Mean over the first axis and its standard error, from the unbiased sample variance."""
    count = len(samples)
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(
        count
    ) if count > 1 else np.inf


def stop_reason(
    value: Any, error: Any, tol: float | None, samples: int, affordable: int
) -> str | None:
    """Why sampling ends here: "tol", "budget", or None where it goes on."""
    if (
        tol is not None
        and samples >= FEWEST
        and np.linalg.norm(error) <= tol * np.linalg.norm(value)
    ):
        return "tol"
    return "budget" if affordable < 1 else None


def sample(
    run: Run,
    measure: Callable[[int, int], np.ndarray],
    tol: float | None,
    batch: int,
    cost: int = 1,
    summary: Callable[[Any, Any], tuple[Any, Any]] = lambda mean, error: (mean, error),
    **kept: Any,
) -> tuple[np.ndarray, float, float, str]:
    """Samples (on the first axis), value, standard error and stop reason. ``measure(first, count)``
    makes samples at up to `cost` products each; `kept` goes into the checkpoint with them."""
    samples = run.state.get("samples", np.empty(0))
    while True:
        affordable = run.remaining // cost
        if len(samples):
            value, error = summary(*mean_and_error(samples))
            if reason := stop_reason(value, error, tol, len(samples), affordable):
                return samples, float(value), float(error), reason
        new = measure(len(samples), min(batch, affordable))
        samples = np.concatenate([samples, new]) if len(samples) else new
        run.save(samples=samples, **kept)
