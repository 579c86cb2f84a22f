"""Curvature by layers."""

from __future__ import annotations

import csv
import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mindspore_hessian import _checkpoint
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import check_integer, check_real, shown
from mindspore_hessian.estimators._checks import dimension_of, dtype_of
from mindspore_hessian.estimators._common import Run, fingerprint, mean_and_error, sample
from mindspore_hessian.estimators.eigen import eigsh
from mindspore_hessian.estimators.results import Result
from mindspore_hessian.estimators.solve import solve

_TOL = 1e-4  # of the systems of the effective dimension, whose error is about n times its square


@dataclass(frozen=True)
class LayerRow:
    """One layer: number of parameters, trace of its diagonal block with standard error, share of
    the whole trace, mean of the diagonal, the largest eigenvalue of the block with its residual,
    and the class of the layer, "" where the operator does not say; with a damping, the part of the
    effective dimension with its standard error, else None. ``op.block(name)`` takes the name;
    `label`, "0 (Dense)", is for people."""

    name: str
    parameters: int
    trace: float
    trace_error: float
    share: float
    mean_diagonal: float
    top_eigenvalue: float
    top_residual: float
    top_converged: bool
    layer_class: str = ""
    effective_dimension: float | None = None
    effective_error: float | None = None

    @property
    def label(self) -> str:
        """The name, and in brackets the class where it is known."""
        return f"{self.name} ({self.layer_class})" if self.layer_class else self.name


@dataclass(frozen=True, eq=False, repr=False)
class LayerReport(Result):
    """What `layer_report` found. Printing it shows a table, with the class of each layer beside its
    name.
    """

    rows: tuple[LayerRow, ...]
    num_products: int
    seconds: float
    seed: int
    stopped_by: str

    def _columns(self) -> list[str]:
        """Those that hold something."""
        return [
            field.name
            for field in fields(LayerRow)
            if getattr(self.rows[0], field.name) is not None
        ]

    def _cells(self) -> list[list[str]]:
        names = [
            name for name in self._columns() if name not in ("name", "layer_class")
        ]  # the label has both
        return [["name", *names]] + [
            [
                row.label,
                *(
                    f"{value:.4g}" if isinstance(value, float) else str(value)
                    for value in (getattr(row, name) for name in names)
                ),
            ]
            for row in self.rows
        ]

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        head, *lines = ([html.escape(cell) for cell in line] for line in self._cells())
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{rows}</table>"

    @classmethod
    def _restored(cls, name: str, array: np.ndarray) -> Any:
        value = super()._restored(name, array)
        return tuple(LayerRow(**row) for row in json.loads(value)) if name == "rows" else value

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        )

    def to_csv(self, path: str | os.PathLike | None = None) -> str:
        """The table as text with commas; written to `path` too, where one is given."""
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(f"path must be a path or None, but got {shown(path)}")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self._columns())
        writer.writerows([getattr(row, name) for name in self._columns()] for row in self.rows)
        if path is not None:
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text.getvalue())
        return text.getvalue()

    def to_pandas(self) -> Any:
        """The table as a pandas DataFrame."""
        try:
            import pandas
        except ImportError as err:
            raise ImportError(
                "to_pandas() needs pandas, which is not installed: pip install pandas, or use "
                "to_csv()"
            ) from err
        return pandas.DataFrame(
            {name: [getattr(row, name) for row in self.rows] for name in self._columns()}
        )


class _Block:
    """The diagonal block of a run's operator for the entries in `index`."""

    def __init__(self, op: Any, index: np.ndarray) -> None:
        self.op, self.index, self.dtype = op, index, dtype_of(op)
        self.shape = (len(index), len(index))

    def __matmul__(self, block: np.ndarray) -> np.ndarray:
        whole = np.zeros((dimension_of(self.op), *block.shape[1:]), dtype=self.dtype)
        whole[self.index] = block
        return np.asarray(self.op @ whole)[self.index]


@interruptible
def layer_report(
    op: Any,
    num_probes: int = 32,
    tol: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
    batch: int = 8,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    damping: float | None = None,
) -> LayerReport:
    r"""Trace and largest eigenvalue of the diagonal block of each layer; with a damping, its
    effective dimension too.

    The traces of all layers come from the same Rademacher probes,
    :math:`\sum_{i \in layer} z_i (H z)_i`, the eigenvalues from Lanczos on the operator restricted
    to the layer. Costs `num_probes` products, and for each layer those of ``eigsh(block, 1)``. Each
    of these is a product of the whole operator.

    With `damping`, d, each layer has its part of the effective dimension of the whole operator,
    :math:`\sum_i \lambda_i / (\lambda_i + d) = tr\, H (H + d I)^{-1}`: the sum of the diagonal of
    that matrix over the entries of the layer, so that the parts add up. It is the number of weights
    that the data determine against a prior of precision d. Estimated with the same probes, by a
    system for each, `batch` of them together; exact, without products, for an operator with
    structure (KFAC). H + d I has to be positive definite.

    Args:
        op: a symmetric operator with ``.shape`` (n, n), ``@`` and ``.layers``, a dict from the name
            of a layer to the indices of its entries. Where it has ``.layer_classes`` too, from name
            to class, the table shows them.
        num_probes: at least 2.
        tol: of the eigenvalues, as for `eigsh`.
        max_products: budget of each layer's eigenvalue, and of each probe's system, at least 2.
        seed: of the probes and of the start vectors.
        batch: probes in one product with a matrix.
        progress: as for `trace`; for the traces and for each layer.
        checkpoint: a file name for the traces, as for `trace`; each layer adds its number to it for
            its own, and the systems "d" and a number.
        damping: d, greater than 0, for the effective dimension; None: without it.

    Returns:
        LayerReport, with one row for each layer in the operator's order. `share` is the trace over
        that of the whole operator, estimated from the same probes. `stopped_by` is "tol" where all
        eigenvalues have converged.

    Raises:
        TypeError: `op` is no operator, or has no layers.
        ValueError: an argument out of its range, an index out of range, a product with NaN or Inf;
            for the effective dimension, an operator that is not positive definite with the damping,
            or a system that was not solved.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Hutchinson, A stochastic estimator of the trace of the influence matrix, Comm. Stat.
        19(2), 1990. D. MacKay, Bayesian interpolation, Neural Computation 4(3), 1992 (the number of
        determined parameters).

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import layer_report
        >>> class Operator:
        ...     shape, layers = (3, 3), {"first": np.array([0, 1]), "second": np.array([2])}
        ...     def __matmul__(self, x):
        ...         return np.diag([3.0, 1.0, 4.0]) @ x
        >>> for row in layer_report(Operator()).rows:
        ...     print(row.name, row.trace, row.share, round(row.top_eigenvalue, 6))
        first 4.0 0.5 3.0
        second 4.0 0.5 4.0
    """
    layers = _checked_layers(op)
    check_integer("num_probes", num_probes, 2)
    check_integer("batch", batch, 1)
    check_integer("max_products", max_products, 2)
    check_real("tol", tol)
    if damping is not None:
        check_real("damping", damping)
    own = [
        None if checkpoint is None else f"{_checkpoint.named(checkpoint)}.{number}"
        for number in range(len(layers))
    ]
    for file in own:
        if file is not None:
            _checkpoint.read(file)  # one that is not ours is an error before anything is computed
    with Run(
        "layer_report",
        op,
        seed=seed,
        max_products=num_probes,
        progress=progress,
        checkpoint=checkpoint,
        batch=batch,
        layers={name: fingerprint(index) for name, index in layers.items()},
    ) as run:

        def measure(first: int, count: int) -> np.ndarray:
            z = run.probes(first, count)
            parts = z * (run @ z)
            return np.stack(
                [parts.sum(axis=0), *(parts[index].sum(axis=0) for index in layers.values())],
                axis=1,
            )

        samples = sample(run, measure, None, batch, summary=lambda mean, error: (0.0, 0.0))[0]
    (whole, *traces), (_, *errors) = (part.tolist() for part in mean_and_error(samples))
    rows, products, seconds = [], run.num_products, run.seconds
    classes = getattr(op, "layer_classes", {})
    for number, (name, index) in enumerate(layers.items()):
        top = eigsh(
            _Block(op, index),
            1,
            tol=tol,
            seed=seed,
            max_products=max_products,
            progress=progress,
            checkpoint=own[number],
        )
        products, seconds = products + top.num_products, seconds + top.seconds
        share = traces[number] / whole if whole else float("nan")
        rows.append(
            LayerRow(
                name,
                len(index),
                traces[number],
                errors[number],
                share,
                traces[number] / len(index),
                float(top.eigenvalues[0]),
                float(top.residuals[0]),
                bool(top.converged[0]),
                str(classes.get(name, "")),
            )
        )
    if damping is not None:
        parts, errors, more, spent = _effective(
            op, layers, damping, run, num_probes, batch, max_products, progress, checkpoint
        )
        rows = [
            replace(row, effective_dimension=part, effective_error=error)
            for row, part, error in zip(rows, parts, errors, strict=True)
        ]
        products, seconds = products + more, seconds + spent
    return LayerReport(
        tuple(rows),
        products,
        seconds,
        seed,
        "tol" if all(row.top_converged for row in rows) else "budget",
    )


def _effective(
    op: Any,
    layers: dict[str, np.ndarray],
    damping: float,
    run: Run,
    num_probes: int,
    batch: int,
    max_products: int,
    progress: bool | None,
    checkpoint: Any,
) -> tuple[list[float], list[float], int, float]:
    """The parts of tr H (H + d)^-1 of the layers, their standard errors, and the products and
    seconds they took.
    """
    if run.structured and run.op.definite(damping):
        diagonal = run.op.funm(lambda eigenvalues: eigenvalues / (eigenvalues + damping)).diagonal()
        return (
            [float(diagonal[index].sum()) for index in layers.values()],
            [0.0] * len(layers),
            0,
            0.0,
        )
    samples, products, seconds = [], 0, 0.0
    for first in range(0, num_probes, batch):
        z = run.probes(first, min(batch, num_probes - first))
        found = solve(
            op,
            z,
            damping,
            tol=max(_TOL, 10 * run.eps),
            max_products=max_products * z.shape[1],
            progress=progress,
            checkpoint=None
            if checkpoint is None
            else f"{_checkpoint.named(checkpoint)}.d{first // batch}",
        )
        products, seconds = products + found.num_products, seconds + found.seconds
        if not found.converged:
            raise ValueError(
                f"the effective dimension needs H + {damping:g} I to be positive definite and its "
                f"systems solved, but one stopped by {found.stopped_by} at a residual of "
                f"{found.residual:.2g}: pass a larger damping, a larger max_products, or a "
                "GGNOperator"
            )
        image = z * (z - damping * found.x)  # H (H + d)^-1 z
        samples.append(np.stack([image[index].sum(axis=0) for index in layers.values()], axis=1))
    mean, error = mean_and_error(np.concatenate(samples))
    return mean.tolist(), error.tolist(), products, seconds


def _checked_layers(op: Any) -> dict[str, np.ndarray]:
    n, layers = dimension_of(op), getattr(op, "layers", None)
    if not isinstance(layers, Mapping) or not layers:
        raise TypeError(
            f"op must have .layers, a dict from names to index arrays, for a report by layers, but "
            f"{type(op).__name__} has {layers!r}"
        )
    checked = {str(name): np.asarray(index) for name, index in layers.items()}
    for name, index in checked.items():
        if (
            index.ndim != 1
            or not len(index)
            or index.dtype.kind not in "iu"
            or index.min() < 0
            or index.max() >= n
        ):
            raise ValueError(
                f"op.layers[{name!r}] must be a 1-D array of at least one index from 0 to {n - 1}, "
                f"but is {np.array2string(index, threshold=6)}"
            )
    return checked
