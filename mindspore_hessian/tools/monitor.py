"""Curvature during training, measured without disturbing it."""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import math
import numbers
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.train import Callback

from mindspore_hessian import _compat
from mindspore_hessian._errors import NonFiniteWarning, warn
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    check_choice,
    check_integer,
    check_progress,
    check_real,
    shown,
)
from mindspore_hessian.estimators import SpectralDensity, eigsh, spectral_density, trace
from mindspore_hessian.linops import Operator
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.hessian import HessianOperator

METRICS = ("sharpness", "trace", "density")
TRACE_TOL = 0.05  # relative standard error at which the trace stops
_STEPS, _PROBES = 32, 16  # of the density, at most


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a `CurvatureMonitor` measured after a step. None: was not measured, or is not known.

    Attributes:
        step: number of the training step.
        seconds: wall time of the measurement, compiling included.
        share: `seconds` as a share of the wall time since the measurement before (or the start):
            from 0 to 1.
        num_products: products with the operator.
        loss, gradient_norm: of the operator's data, where it knows them.
        sharpness, sharpness_residual: largest eigenvalue and ||H v - lambda v||.
        trace, trace_standard_error: of the operator.
        density: SpectralDensity.
        learning_rate: of the step.
        threshold: 2 / learning_rate: above that sharpness, gradient descent without momentum is
            unstable.
    """

    step: int
    seconds: float
    share: float
    num_products: int = 0
    loss: float | None = None
    gradient_norm: float | None = None
    sharpness: float | None = None
    sharpness_residual: float | None = None
    trace: float | None = None
    trace_standard_error: float | None = None
    density: SpectralDensity | None = None
    learning_rate: float | None = None
    threshold: float | None = None

    def numbers(self) -> dict[str, int | float | None]:
        """All but the density: a row of the CSV file."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(field.name for field in fields(Measurement) if field.name != "density")


@contextlib.contextmanager
def undisturbed(cells: tuple[nn.Cell, ...]) -> Iterator[None]:
    """Inference mode inside; afterwards all training flags, statistics and random states are as
    they were.
    """
    training = [cell for top in cells for _, cell in top.cells_and_names() if cell.training]
    statistics = [p for top in cells for p in top.get_parameters() if not p.requires_grad]
    python, numpys, mindspores = (
        random.getstate(),
        np.random.get_state(),
        _compat.to_numpy(ms.get_rng_state()).copy(),
    )
    try:
        for cell in training:
            cell.add_flags(training=False)
        with _compat.kept(statistics):
            yield
    finally:
        for cell in training:
            cell.add_flags(training=True)
        random.setstate(python)
        np.random.set_state(numpys)
        if _compat.to_numpy(ms.get_rng_state()).tobytes() != mindspores.tobytes():
            ms.set_rng_state(Tensor(mindspores))


def learning_rate_of(source: Any) -> float | None:
    """The learning rate of the last step, from a number, a Tensor or an optimizer; None where
    groups differ.
    """
    if source is None or isinstance(source, numbers.Real):
        return None if source is None else float(source)
    if isinstance(source, Tensor):
        if source.size != 1:
            raise ValueError(
                f"learning_rate must be one number, but is a Tensor of shape {tuple(source.shape)}"
            )
        return float(_compat.to_numpy(source).item())
    if groups := getattr(source, "param_groups", None):
        rates = [learning_rate_of(group["lr"]) for group in groups]
    elif isinstance(source, nn.Optimizer):
        done = max(int(_compat.to_numpy(source.global_step).item()) - 1, 0)
        found = {id(rate): rate for rate in source.get_lr_parameter(list(source.parameters))}
        rates = [_scheduled(rate, done) for rate in found.values()]
    else:
        raise TypeError(
            "learning_rate must be a number, a Tensor or an optimizer, but got "
            f"{type(source).__name__}"
        )
    return rates[0] if len(set(rates)) == 1 else None


def _scheduled(rate: Any, done: int) -> float:
    """A constant (a Parameter), a list (a Parameter of one axis) or a schedule (a Cell), after
    `done` steps.
    """
    if not isinstance(rate, Tensor):
        return float(_compat.to_numpy(rate(Tensor([done], ms.int32))).item())
    values = _compat.to_numpy(rate).reshape(-1)
    return float(values[min(done, len(values) - 1)])


class CurvatureMonitor(Callback):
    r"""Sharpness, trace and spectral density of the loss during training, which goes on as if
    nobody had looked.

    A ``mindspore.train.Callback`` for ``Model.train``, and an object for hand-written loops: call
    `step` after each training step. Each measurement also has the loss and the gradient norm on the
    monitor's data.

    The measurement runs with the network in inference mode, as dropout and batch norm in training
    mode have no one Hessian: the training flag of each of its cells is off meanwhile, and back
    afterwards, also after an exception. So are batch-norm statistics and the random states of
    Python, numpy and MindSpore's default generator. What cannot be put back: a state that the data
    or a function of the user keeps (a generator of its own).

    The largest eigenvalue starts from the eigenvector found last. Probes are the same at all
    measurements, so that the trace changes by what the weights do. Where the loss or its gradient
    is NaN or Inf, the rest is not measured.

    Args:
        source: an operator, or data for ``HessianOperator(network, loss_fn, data)``: best a fixed
            batch of some hundred samples. An operator knows its network if that is a Cell.
        network: the Cell in training; with an operator only where that is about a function.
        loss_fn: as for `HessianOperator`.
        every: measure after each step whose number this divides.
        metrics: of "sharpness", "trace", "density".
        file: a file to add a line to at each measurement: ``.csv``, or ``.jsonl`` with the nodes
            and weights of the density as well.
        tensorboard: a folder for scalars, written by tensorboardX or torch.utils.tensorboard,
            whichever is found first, else in MindSpore's own event file (for MindInsight).
        seed: of probes and first start vector.
        options: further arguments of `HessianOperator`, a dict.
        max_products: budget of each metric at each measurement, at least 4.
        tol: of the residual of the sharpness, as for `eigsh`. The trace ends at 5 % standard error
            or at the budget.
        progress: as for `eigsh`.

    Attributes:
        op: the operator.
        history: list of `Measurement`.

    Raises:
        TypeError, ValueError: a wrong argument; the message names it.
        NotDeterministicError: from the check of `HessianOperator`.

    Warns:
        NonFiniteWarning: the loss or its gradient is NaN or Inf.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Cohen et al., Gradient descent on neural networks typically occurs at the edge of
        stability, ICLR 2021.
        Z. Yao et al., PyHessian: neural networks through the lens of the Hessian, IEEE Big Data
            2020.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian.tools.monitor import CurvatureMonitor
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> monitor = CurvatureMonitor((x, y), net, nn.MSELoss(), every=10, metrics=("sharpness",))
        >>> for number in range(1, 21):
        ...     found = monitor.step(number, learning_rate=0.1)    # after the training step
        >>> [(m.step, round(m.sharpness, 4), m.threshold) for m in monitor.history]
        [(10, 4.0, 20.0), (20, 4.0, 20.0)]
    """

    @interruptible
    def __init__(
        self,
        source: Any,
        network: Any = None,
        loss_fn: Any = None,
        every: int = 100,
        metrics: tuple[str, ...] = ("sharpness", "trace"),
        file: str | os.PathLike | None = None,
        tensorboard: str | os.PathLike | None = None,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        max_products: int = 128,
        tol: float = 1e-3,
        progress: bool | None = False,
    ):
        check_integer("every", every, 1)
        check_integer("seed", seed, 0)
        check_integer("max_products", max_products, 4)
        check_real("tol", tol)
        check_progress(progress)
        if isinstance(metrics, str) or not isinstance(metrics, Iterable):
            raise TypeError(
                f"metrics must be a tuple of names, as ('trace',), but got {shown(metrics)}"
            )
        for name, path in (("file", file), ("tensorboard", tensorboard)):
            if path is not None and not isinstance(path, str | os.PathLike):
                raise TypeError(f"{name} must be a path or None, but got {shown(path)}")
        if options is not None and not isinstance(options, dict):
            raise TypeError(
                "options must be a dict of arguments of HessianOperator, but got "
                f"{type(options).__name__}"
            )
        for metric in metrics:
            check_choice("metrics", metric, METRICS)
        self.every, self.metrics, self.seed, self.progress = (
            int(every),
            tuple(metrics),
            seed,
            progress,
        )
        self.max_products, self.tol = max_products, tol
        self.file = None if file is None else _checked_file(Path(file))
        self._folder = None if tensorboard is None else os.fspath(tensorboard)
        self._scalars_class = None if tensorboard is None else _scalars_class()
        self._scalars: Any = None
        self.op = self._operator(source, network, loss_fn, options)
        self._curvatures = [one for one in self.op.atoms if isinstance(one, CurvatureOperator)]
        cells = [
            network,
            *(cell for one in self._curvatures for cell in (one.network, one.loss_fn)),
        ]
        self._cells = tuple(
            {id(cell): cell for cell in cells if isinstance(cell, nn.Cell)}.values()
        )
        self.history: list[Measurement] = []
        self._vector: np.ndarray | None = None
        self._step: int | None = None
        self._begun = self._since = time.perf_counter()

    def _operator(
        self, source: Any, network: Any, loss_fn: Any, options: dict[str, Any] | None
    ) -> Operator:
        if isinstance(source, Operator):
            if loss_fn is not None or options:
                raise ValueError(
                    "source is an operator, which has its loss and its options already: leave out "
                    "loss_fn and options"
                )
            if network is not None and not isinstance(network, nn.Cell):
                raise TypeError(
                    f"network must be the Cell in training, but got {type(network).__name__}"
                )
            return source
        if network is None:
            raise ValueError(
                "source is data, so network is needed: CurvatureMonitor(data, network, loss_fn). "
                "Or pass an operator, as HessianOperator(network, loss_fn, data)"
            )
        with undisturbed(tuple(cell for cell in (network, loss_fn) if isinstance(cell, nn.Cell))):
            return HessianOperator(
                network, loss_fn, source, **{"progress": self.progress, **(options or {})}
            )

    @property
    def share(self) -> float:
        """The time of all measurements as a share of the wall time since the start, up to the last
        of them.
        """
        passed = self._since - self._begun
        return sum(one.seconds for one in self.history) / passed if passed else 0.0

    # --- the loop ---------------------------------------------------------------------------------

    def step(self, step_number: int | None = None, learning_rate: Any = None) -> Measurement | None:
        """Count a training step, and measure where it is due.

        Args:
            step_number: of the step just done; None: one more than the last. A number that is not
                above the last one starts a new count; one that jumps measures if a multiple of
                `every` lies on the way.
            learning_rate: a number, a Tensor, or the optimizer.

        Returns:
            The Measurement, or None where none was due.
        """
        if step_number is not None:
            check_integer("step_number", step_number, 0)
        number = (self._step or 0) + 1 if step_number is None else int(step_number)
        last = number - 1 if self._step is None or number <= self._step else self._step
        self._step = number
        return (
            self.measure(number, learning_rate)
            if number // self.every > last // self.every
            else None
        )

    @interruptible
    def measure(self, step_number: int | None = None, learning_rate: Any = None) -> Measurement:
        """Measure now. The arguments are those of `step`, but nothing is counted."""
        if step_number is not None:
            check_integer("step_number", step_number, 0)
        for one in self._curvatures:
            _compat.to_numpy(one.weights[-1])  # the training step runs asynchronously: not our time
        started = time.perf_counter()
        with undisturbed(self._cells):
            rate = learning_rate_of(learning_rate)
            found = self._metrics()
        ended = time.perf_counter()
        share = (ended - started) / (ended - self._since)
        self._since = ended
        number = step_number if step_number is not None else self._step or 0
        out = Measurement(
            int(number),
            ended - started,
            share,
            learning_rate=rate,
            threshold=2 / rate if rate else None,
            **found,
        )
        self.history.append(out)
        if self.op.shows_progress:
            self._write(out)
        return out

    def _metrics(self) -> dict[str, Any]:
        op, found = self.op, dict[str, Any](num_products=0)
        common: dict[str, Any] = {
            "seed": self.seed,
            "max_products": self.max_products,
            "progress": self.progress,
        }
        if hasattr(op, "gradient_and_loss"):
            slope, loss = op.gradient_and_loss()
            norm = float(np.linalg.norm(op.flatten(slope).astype(np.float64)))
            found.update(loss=float(loss), gradient_norm=norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                warn(
                    f"the loss is {loss:g} and the norm of its gradient {norm:g}: the curvature "
                    "was not measured",
                    NonFiniteWarning,
                )
                return found
        if "sharpness" in self.metrics:
            top = eigsh(op, 1, "LA", tol=self.tol, v0=self._vector, **common)
            self._vector = top.vector(0)
            found.update(
                sharpness=float(top.eigenvalues[0]), sharpness_residual=float(top.residuals[0])
            )
            found["num_products"] += top.num_products
        if "trace" in self.metrics:
            total = trace(op, tol=TRACE_TOL, **common)
            found.update(trace=total.value, trace_standard_error=total.standard_error)
            found["num_products"] += total.num_products
        if "density" in self.metrics:
            steps = min(op.shape[0], _STEPS, self.max_products // 2)
            found["density"] = spectral_density(
                op, min(_PROBES, self.max_products // steps), steps, **common
            )
            found["num_products"] += found["density"].num_products
        return found

    # --- Model.train ------------------------------------------------------------------------------

    def on_train_begin(self, run_context: Any) -> None:
        """Start the count and the clock; called by ``Model.train``."""
        self._step = int(run_context.original_args().get("cur_step_num", 0))
        self._since = time.perf_counter()
        if not self.history:
            self._begun = self._since

    def on_train_step_end(self, run_context: Any) -> None:
        """`step`, called by ``Model.train``; with data sinking, after every sink only."""
        seen = run_context.original_args()
        optimizer = seen.get("optimizer")
        if optimizer is None:
            optimizer = getattr(seen.get("train_network"), "optimizer", None)
        known = isinstance(optimizer, nn.Optimizer) or hasattr(optimizer, "param_groups")
        self.step(seen.cur_step_num, optimizer if known else None)

    def __enter__(self) -> CurvatureMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the TensorBoard file. ``Model.train`` does it; a later measurement opens
        another.
        """
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None

    # --- files ------------------------------------------------------------------------------------

    def _write(self, one: Measurement) -> None:
        if self.file is not None:
            with open(self.file, "a", encoding="utf-8", newline="") as file:
                if self.file.suffix == ".csv":
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    if not file.tell():
                        writer.writeheader()
                    writer.writerow(one.numbers())
                else:
                    file.write(json.dumps(_line(one), allow_nan=False) + "\n")
        if self._scalars_class is not None:
            self._scalars = self._scalars or self._scalars_class(self._folder)
            values = {
                f"curvature/{name}": value
                for name, value in one.numbers().items()
                if name != "step" and value is not None
            }
            for name, value in values.items():
                self._scalars.add_scalar(name, value, one.step)
            self._scalars.flush()


def _line(one: Measurement) -> dict[str, Any]:
    """A line of JSON, which knows no NaN or Inf: null."""
    out: dict[str, Any] = {
        name: value if value is None or math.isfinite(value) else None
        for name, value in one.numbers().items()
    }
    if one.density is not None:
        out["density"] = {
            "nodes": one.density.nodes.tolist(),
            "weights": one.density.weights.tolist(),
            "sigma": one.density.sigma,
        }
    return out


def _checked_file(path: Path) -> Path:
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"file must end in .csv or .jsonl, but got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"file {str(path)!r} is in a folder that does not exist")
    if path.suffix == ".csv" and path.exists() and path.stat().st_size:
        with open(path, encoding="utf-8") as file:
            if file.readline().strip() != ",".join(COLUMNS):
                raise ValueError(
                    f"file {str(path)!r} is there already, with other columns: pass another name"
                )
    return path


def _scalars_class() -> Any:
    """A class that writes scalars, ``Class(folder)``."""
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(module).SummaryWriter
    return _compat.SummaryWriter
