"""What a second derivative is made of: its primitives, whose rules they use, which are missing, and
what is zero.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat, rules
from mindspore_hessian._errors import HessianError, MissingRuleError, UnsafeRuntimeError
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.core import cache, graph_dump, inplace
from mindspore_hessian.core.graph_dump import CONTROL, Graph, public_name
from mindspore_hessian.core.program import Builder, Function, Point, Program
from mindspore_hessian.core.space import Space, tensors_of, to_tensor
from mindspore_hessian.rules import interpreter
from mindspore_hessian.rules.missing import unrolled
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms import forward as passes
from mindspore_hessian.transforms.products import product_kernel

__all__ = ["audit", "AuditReport", "AuditRow", "AuditVariable", "Compiles"]

MINDSPORE, OURS, MISSING, UNNEEDED, UNKNOWN = (
    "mindspore",
    "ours",
    "missing",
    "none needed",
    "unknown",
)
POINTS = 3
PROOF, RANDOM = "the gradient's graph", f"{POINTS} random points"
_WIDTH = 120


class Compiles(NamedTuple):
    """Whether `hvp` compiles, and whether `hessian` compiles in one batch (else it computes row
    after row).
    """

    hvp: bool
    hessian: bool


@dataclass(frozen=True)
class AuditRow:
    """One primitive of the compiled second derivative.

    Attributes:
        primitive: MindSpore's name. ``Switch`` stands for a data-dependent `if` or `while`.
        derivative: whose derivative `hvp` uses: ``"mindspore"``, ``"ours"`` (registered through
            `rules`), ``"missing"``, ``"none needed"`` (nothing is differentiated through it), or
            ``"unknown"`` (MindSpore failed at another primitive before it came to this one).
        batching: whose batching rule `hessian` uses, in the same words.
        sources: the user's lines that bring the primitive in, as ``file.py:12``; empty where
            MindSpore does not say.
        remedy: what to do about what is missing or wrong at single points, else empty.
    """

    primitive: str
    derivative: str
    batching: str
    sources: tuple[str, ...]
    remedy: str = ""


@dataclass(frozen=True)
class AuditVariable:
    """One differentiated variable, and whether its rows of the Hessian are zero whatever the point.

    Attributes:
        name: such as ``argument 0``.
        zero: whether the rows are zero.
        evidence: ``"the gradient's graph"``, which is a proof (between kinks), or ``"3 random
            points"``, which is none.
    """

    name: str
    zero: bool
    evidence: str = ""


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found; ``print`` it.

    Attributes:
        function: the function, with its line.
        rows: a row for each primitive, those with something missing first.
        variables: what is differentiated, and what of that has a zero Hessian.
        compiles: whether `hvp` and the batched `hessian` compile.
        problems: what else MindSpore says against it, a sentence each.
        written: what the function writes in place (``y += x``), each with its line: it is computed
            out of place here.
        without_forward: the primitive for which `laplacian`, `jvp` and their like take reverse
            derivatives, as it has no forward rule; "" for none, and where only weights are
            differentiated.
    """

    function: str
    rows: tuple[AuditRow, ...]
    variables: tuple[AuditVariable, ...]
    compiles: Compiles
    problems: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    without_forward: str = ""

    @property
    def structurally_zero(self) -> bool:
        """Whether the whole Hessian is zero whatever the point; see `variables` for the
        evidence.
        """
        return all(variable.zero for variable in self.variables)

    @property
    def missing(self) -> tuple[AuditRow, ...]:
        """The rows that lack a rule."""
        return tuple(row for row in self.rows if MISSING in (row.derivative, row.batching))

    def summary(self) -> str:
        """What is zero, what is wrong and its remedy, and last the verdict in one line."""
        lines = [_wrapped(f"{row.primitive}: {row.remedy}") for row in self.rows if row.remedy]
        lines += [_wrapped(problem) for problem in self.problems]
        if self.written:
            lines.append(
                _wrapped(
                    f"In place: {_listed(list(self.written), 3)}. Here that is computed out of "
                    "place, as `y = y + x`; MindSpore's own gradient of it can be wrong."
                )
            )
        if self.without_forward:
            lines.append(
                _wrapped(
                    f"Forward: {self.without_forward} has no forward rule, so that laplacian, jvp and "
                    "their like take reverse derivatives, in about twice the time."
                )
            )
        for evidence in dict.fromkeys(
            variable.evidence for variable in self.variables if variable.zero
        ):
            names = [v.name for v in self.variables if v.zero and v.evidence == evidence]
            lines.append(_wrapped(_zero_text(names, evidence)))
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        lost = ", ".join(row.primitive for row in self.rows if row.derivative == MISSING)
        slow = ", ".join(row.primitive for row in self.rows if row.batching == MISSING)
        sure = all(variable.evidence == PROOF for variable in self.variables)
        zero = (
            f"; the Hessian {'is' if sure else 'seems to be'} zero"
            if self.structurally_zero
            else ""
        )
        if not self.compiles.hvp:
            cause = f"no derivative of {lost}" if lost else "MindSpore cannot compile it"
            return _one_line(f"verdict: hvp and hessian are refused: {cause}")
        if not self.compiles.hessian:
            cause = f"no batching rule for {slow}" if slow else "the batched graph does not compile"
            return _one_line(f"verdict: hvp works; hessian works row after row: {cause}{zero}")
        return f"verdict: hvp and hessian compile, and no rule is missing{zero}"

    def __str__(self) -> str:
        names = _listed([variable.name for variable in self.variables], 3)
        title = f"second derivative of {self.function} with respect to {names}"
        head = ("primitive", "derivative", "batching", "brought in by")
        cells = [(row.primitive, row.derivative, row.batching, row.sources) for row in self.rows]
        widths = [max(len(str(line[k])) for line in (head, *cells)) for k in range(3)]
        room = _WIDTH - sum(widths) - 6
        table = [head, *((*cell[:3], _fitting(cell[3], room)) for cell in cells)]
        lines = ["  ".join(map(str.ljust, line, (*widths, 0))).rstrip() for line in table]
        return "\n".join([_wrapped(title), "", *lines, "", self.summary()])


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False)


def _one_line(text: str) -> str:
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")


def _fitting(sources: tuple[str, ...], room: int) -> str:
    """As many lines of source as fit, and how many more there are."""
    for count in range(len(sources), 0, -1):
        more = f" and {len(sources) - count} more" if count < len(sources) else ""
        if len(text := ", ".join(sources[:count]) + more) <= room:
            return text
    return ""


def _zero_text(names: list[str], evidence: str) -> str:
    """The sentence about zero rows of the Hessian."""
    how = (
        f"structurally zero, by {PROOF}"
        if evidence == PROOF
        else f"zero at {RANDOM}: evidence, no proof"
    )
    return (
        f"The Hessian's rows of {_listed(names, 8)} are {how}. Between kinks, the gradient does "
        "not change with what is differentiated (linear layers, relu, abs, max). Where curvature "
        "is wanted, use a smooth function (softplus, gelu, tanh); a Hessian with respect to other "
        "variables, or of a loss on top, can differ."
    )


@interruptible
def audit(fn: Any, inputs: Any, grad_position: Any = None, *, weights: Any = None) -> AuditReport:
    """Which primitives the compiled second derivative of a scalar function holds, and whose rules
    they use.

    Compiles the gradient, the Hessian-vector product and two rows of the Hessian, and reads the
    graphs. A missing rule is no error here but a row of the report, with the line of the function
    that brings the primitive in and the remedy; all missing derivatives are found, not only the
    first. The cache of compiled functions stays as it is.

    Args:
        fn: any callable that returns one number (a Tensor of one element), as for `hvp`.
        inputs: the arguments of `fn`: one Tensor, or a tuple.
        grad_position: which inputs are differentiated, as for `hvp`.
        weights: Parameters to differentiate, as for `hvp`.

    Returns:
        An `AuditReport`. ``print(report)`` shows it as a table; ``report.missing`` and
        ``report.structurally_zero`` say it to a program.

    Raises:
        TypeError: a wrong type or dtype, an integer input to differentiate, a function that does
            not return a Tensor.
        ValueError: an output that is not one number, a position out of range, a Parameter that is
            not in the function.
        NotCompilableError: MindSpore cannot compile `fn` or its gradient; the message says why.
        UnsafeRuntimeError: as `hvp`; also where ``MS_DEV_DUMP_IR_PASSES`` keeps MindSpore from
            writing its graphs.

    Note:
        MindSpore reads ``MS_DEV_DUMP_IR_PASSES`` once in a process: graphs that you save with
            ``MS_DEV_SAVE_GRAPHS``
        after an audit are those of its pass "optimize" only.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian.tools.audit import audit
        >>> report = audit(lambda x: ms.ops.tanh(x).sum(), ms.Tensor([1.0, 2.0]))
        >>> report.compiles
        Compiles(hvp=True, hessian=True)
        >>> [(row.primitive, row.derivative) for row in report.rows if row.primitive.startswith("Tanh")]
        [('Tanh', 'ours'), ('TanhGrad', 'ours')]
    """
    point = Point.of_inputs(fn, inputs, grad_position, weights, False)
    random_state = ms.get_rng_state()
    try:
        with cache.left_alone():
            return _report(point, rules.in_force())
    finally:
        ms.set_rng_state(random_state)


def _report(point: Point, replacing: bool) -> AuditReport:
    with inplace.told() as written:
        gradient, refused = _compiled(point, _gradient_kernel)
    if refused is not None and (gradient is None or not isinstance(refused, MissingRuleError)):
        raise refused
    if gradient is None:
        raise UnsafeRuntimeError(
            "MindSpore wrote no graph that could be read. Unset MS_DEV_DUMP_IR_PASSES before the "
            "first graph of the process is saved."
        )
    product, failed = _compiled(point, product_kernel("revrev"), _vectors(point, 0))
    with _compat.batching_rules_watched(unrolled) as asked:
        batched, unbatched = _compiled(point, _two_rows, (Tensor(0, ms.int64),))
    variables = gradient.references(
        point.space.positions, [weight.name for weight in point.space.weights]
    )
    found = _Found(
        [product or Graph(), gradient],
        gradient.differentiated(variables),
        asked,
        batched is not None,
        replacing,
        [str(error) for error in (refused, failed) if error is not None],
    )
    rows = found.rows()
    proved = (
        gradient.constant_outputs(variables) if len(variables) == len(point.space.names) else []
    )
    zeros = (
        _zeros(point, proved)
        if failed is None
        else [AuditVariable(name, False) for name in point.space.names]
    )
    lost, slow = (
        any(row.derivative == MISSING for row in rows),
        any(row.batching == MISSING for row in rows),
    )
    compiles = Compiles(failed is None, failed is None and unbatched is None and not slow)
    told = compiles.hessian or (lost if failed else slow)
    return AuditReport(
        _label(point),
        tuple(rows),
        tuple(zeros),
        compiles,
        () if told else (str(failed or unbatched),),
        tuple(written),
        _without_forward(point),
    )


def _without_forward(point: Point) -> str:
    """The first primitive that a forward pass asks for a rule in vain."""
    space = point.space
    if space.weights:
        return ""
    directions = tuple(map(to_tensor, space.split(np.ones((1, space.size))), space.dtypes))
    try:
        passes.check_free(point)
        with passes.alone():
            Program("audit", passes.along_given, (object(),)).run(point, directions)
    except (HessianError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as err:
        return interpreter.without_rule(err)
    return ""


def _compiled(
    point: Point, build: Builder, extras: tuple = ()
) -> tuple[Graph | None, Exception | None]:
    """Compile and run a program: its graph, and the error where there was one."""
    refused = None
    with graph_dump.saved() as folder:
        try:
            Program("audit", build, (object(),)).run(point, extras)
        except UnsafeRuntimeError:
            raise
        except (
            HessianError,
            ValueError,
            TypeError,
            RuntimeError,
            AttributeError,
            IndexError,
            NameError,
        ) as error:
            refused = error
        return graph_dump.read(folder), refused


def _gradient_kernel(function: Function, space: Space) -> Callable:
    return compose.gradient(compose.scalar(function.value), space.positions, space.parameters)


def _two_rows(function: Function, space: Space) -> Callable:
    """Two rows of the Hessian, batched as `hessian` does."""
    return blocks.hessian_rows(
        function.value, space.positions, space.parameters, min(2, space.size)
    )


# --- rows -----------------------------------------------------------------------------------------

_NO_KERNEL = re.compile(r"primitive (\w+) has no kernel")
_FAILED = re.compile(r'[Bb]prop "?(\w+)"? encounter')


@dataclass
class _Found:
    """What the compilations left behind: the graphs of product and gradient, the primitives that a
    second derivative goes through, the batching rules asked for and whether they were there,
    whether all were asked for, whether MindSpore heeds our derivatives in place of its own, and the
    messages of what failed."""

    graphs: list[Graph]
    needed: set[str]
    asked: dict[str, bool]
    all_asked: bool
    replacing: bool
    errors: list[str]

    def rows(self) -> list[AuditRow]:
        """A row for each primitive, those with something missing first."""
        lines: dict[str, list[str]] = {}
        for graph in self.graphs:
            for name, places in graph.lines().items():
                lines.setdefault(name, []).extend(places)
        lost = {name for graph in self.graphs for name in graph.missing()}
        lost |= {match[1] for error in self.errors if (match := _FAILED.search(error))}
        kernels = {match[1] for error in self.errors if (match := _NO_KERNEL.search(error))}
        unbatched = {public_name(name) for name, there in self.asked.items() if not there} - {""}
        out = []
        for name in sorted({*lines, *lost, *kernels, *unbatched}):
            derivative, batching = self._derivative(name, lost), self._batching(name, unbatched)
            sources = tuple(sorted(set(graph_dump.origin(name, lines)), key=_by_line))
            out.append(
                AuditRow(
                    name,
                    derivative,
                    batching,
                    sources,
                    _remedy(name, derivative, batching, name in kernels),
                )
            )
        return sorted(
            out,
            key=lambda row: (row.derivative != MISSING, row.batching != MISSING, not row.remedy),
        )

    def _derivative(self, name: str, lost: set[str]) -> str:
        if name in lost:
            return MISSING
        used = {node.made_for for graph in self.graphs for node in graph.nodes.values()}
        if name == CONTROL or name not in self.needed | used:
            return UNNEEDED
        if name in _ours("derivative", self.replacing):
            return OURS
        return MINDSPORE if self.graphs[0].nodes or name in used else UNKNOWN

    def _batching(self, name: str, unbatched: set[str]) -> str:
        if name in unbatched:
            return MISSING
        if name not in self.asked:
            if self.all_asked:
                return UNNEEDED
            if name not in _compat.batching_registry():
                return UNKNOWN
        return OURS if name in _ours("batching", True) else MINDSPORE


def _ours(kind: str, replacing: bool) -> set[str]:
    """The primitives whose rule in force is one of `rules`."""
    return {
        row.primitive
        for row in rules.status()
        if row.kind == kind and row.active == OURS and (replacing or not row.replaces)
    }


def _by_line(source: str) -> tuple[str, int]:
    file, _, line = source.rpartition(":")
    return file, int(line)


# primitives whose derivatives are wrong at single points; the functions of `mindspore.ops` avoid
# them
_AT_POINTS = {
    "ReduceStd": "Its derivatives are NaN where all values are equal, and float64 has the accuracy of "
    "float32: use ops.var, ops.std, or the formula."
}


def _remedy(name: str, derivative: str, batching: str, no_kernel: bool) -> str:
    out = []
    if no_kernel:
        out.append("No kernel for this device and dtype: use another dtype or operation.")
    if name in _AT_POINTS:
        out.append(_AT_POINTS[name])
    if derivative == MISSING:
        out.append(
            "No derivative, so hvp and hessian raise MissingRuleError. Write the function with "
            "another operation, or supply the rule: "
            f"mindspore_hessian.rules.register_derivative({name!r}, getter)."
        )
    if batching == MISSING and name == CONTROL:
        out.append(
            "An `if` or `while` that depends on data cannot be batched, so hessian computes its "
            "rows one after another. Use ops.where or another selection without control flow."
        )
    elif batching == MISSING:
        out.append(
            "No batching rule, so hessian computes its rows one after another. Supply the rule: "
            f"mindspore_hessian.rules.register_batching({name!r}, getter)."
        )
    return " ".join(out)


# --- what is zero ---------------------------------------------------------------------------------


def _vectors(point: Point, seed: int) -> tuple[Tensor, ...]:
    random = np.random.default_rng(seed)
    return tuple(
        _tensor(random.standard_normal(shape), dtype)
        for shape, dtype in zip(point.space.shapes, point.space.dtypes, strict=True)
    )


def _tensor(array: np.ndarray, dtype: Any) -> Tensor:
    return Tensor(np.asarray(array, np.float64)).astype(dtype)


def _zeros(point: Point, proved: list[bool]) -> list[AuditVariable]:
    """Whether each variable's rows are zero: exactly so at random points, and perhaps proved by the
    graph.
    """
    names, leaves = point.space.names, point.call.leaves
    product = Program("audit", product_kernel("revrev"), (object(),))
    zero, finite = [True] * len(names), [0] * len(names)
    for number in range(POINTS):
        random = np.random.default_rng(100 + number)
        moved = list(leaves)
        for position in point.space.positions if number else ():
            x = _compat.to_numpy(leaves[position]).astype(
                np.float64
            )  # signs stay, for functions like log
            x = x * random.uniform(0.8, 1.25, x.shape) + 0.1 * (x == 0) * random.standard_normal(
                x.shape
            )
            moved[position] = _tensor(x, leaves[position].dtype)
        there = replace(point, call=replace(point.call, leaves=tuple(moved)))
        result, _ = product.run(there, _vectors(point, number))
        for place, tensor in enumerate(tensors_of(result)):
            array = _compat.to_numpy(tensor)
            if np.isfinite(array).all():
                finite[place] += 1
                zero[place] = zero[place] and not array.any()
    out = []
    for place, name in enumerate(names):
        sure = len(proved) == len(names) and proved[place]
        flag = zero[place] and (sure or finite[place] == POINTS)
        out.append(AuditVariable(name, flag, (PROOF if sure else RANDOM) if flag else ""))
    return out


def _label(point: Point) -> str:
    """The user's function with its line."""
    fn = point.call.fn
    code = getattr(getattr(fn, "construct", fn), "__code__", None) or getattr(
        type(fn).__call__, "__code__", None
    )
    name = getattr(fn, "__qualname__", type(fn).__name__).rpartition("<locals>.")[2]
    return f"{name} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})" if code else name
