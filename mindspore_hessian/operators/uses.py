"""Where users' own Cells use their Parameters as layers do: ``ops.matmul(x, self.w)``, ``x @ self.w.T``,
``ops.dense(x, self.w, self.b)``, ``ops.gather(self.table, ids, 0)``.

Such an expression is found in the source of the Cell's methods. While a graph is compiled, a function
of ours stands in its place, which computes the same and looks at it (`operators.layers`). What is seen
is checked against gradients there, so that a reading of the source is never taken on trust.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from mindspore import Parameter, nn, ops

from mindspore_hessian.core import source
from mindspore_hessian.core.captures import is_library
from mindspore_hessian.core.inplace import like


@dataclass(frozen=True)
class Use:
    """One expression that uses a Parameter as a layer does.

    Attributes:
        function: the method that has it.
        call: what it calls.
        given: the place of the layer's input among the arguments.
        weight: the name of its Parameter in the Cell.
        turned: the weight is of shape (inputs, outputs).
        indexed: the inputs are indices of rows of the weight.
        window: of a convolution, what nn.Conv2d has: stride, dilation, pad_mode, padding, group.
        bias: as `weight`; "" for none.
        number: its place among those of this method.
        name: of the attribute of the Cell that stands in its place.
    """

    function: FunctionType
    call: Callable
    given: int
    weight: str
    turned: bool
    indexed: bool
    window: Mapping[str, Any] | None
    bias: str = ""
    number: int = 0
    name: str = ""


class _Form(NamedTuple):
    """The places of input, weight and bias (-1: none) among the arguments of a function, and the
    number of axes of the weight."""

    given: int
    weight: int
    bias: int = -1
    turned: bool = False
    indexed: bool = False
    axes: int = 2


_PRODUCT = _Form(0, 1, turned=True)
_FORMS = {
    "matmul": _PRODUCT,
    "mm": _PRODUCT,
    "MatMul": _PRODUCT,
    "dense": _Form(0, 1, 2),
    "linear": _Form(0, 1, 2),
    "Dense": _Form(0, 1, 2),
    "gather": _Form(1, 0, indexed=True),
    "Gather": _Form(1, 0, indexed=True),
    "embedding": _Form(0, 1, indexed=True),
    "conv1d": _Form(0, 1, 2, axes=3),
    "conv2d": _Form(0, 1, 2, axes=4),
    "conv3d": _Form(0, 1, 2, axes=5),
    "Conv2D": _Form(0, 1, axes=4),
    "Conv3D": _Form(0, 1, axes=5),
}
_WINDOW = ("stride", "pad_mode", "padding", "dilation", "groups")  # of a convolution's arguments
_UNKNOWN = object()
_METHODS = frozenset(("matmul", "mm"))  # of a Tensor
_SAME = frozenset(("cast", "Cast", "astype", "to", "type_as", "float", "depend"))
_TRANSPOSES = frozenset(
    ("t", "T", "transpose", "Transpose", "swapaxes", "swapdims", "permute", "mT")
)
_ADDITIONS = frozenset(("add", "Add", "bias_add", "BiasAdd", "BiasAddExt"))


class _Weight(NamedTuple):
    """A Parameter of the Cell by name, or its transpose."""

    name: str
    transposed: bool = False


class _Reader:
    """What the names in one method of a Cell stand for, as far as that is certain."""

    def __init__(self, function: FunctionType, cell: nn.Cell, tree: ast.AST):
        self.function, self.cell = function, cell
        known = inspect.getclosurevars(function)
        self.outer = {**known.builtins, **known.globals, **known.nonlocals}
        self.nodes = [*_own_nodes(tree)]
        arguments = [node.arg for node in self.nodes if isinstance(node, ast.arg)]
        self.own = arguments[0] if arguments else ""  # self
        stored = [
            node.id
            for node in self.nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self.local = {*arguments, *stored}
        once = {
            name for name in stored if stored.count(name) == 1 and name not in arguments
        }  # such a name is what it was assigned
        self.assigned = {
            node.targets[0].id: node.value
            for node in self.nodes
            if isinstance(node, ast.Assign)
            and len(node.targets) == 1
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in once
        }
        self.known: dict[str, _Weight | None] = {}

    def object(self, node: ast.AST) -> Any:
        """The object that a name or a chain of attributes stands for; None where it is not known."""
        if isinstance(node, ast.Name):
            if node.id == self.own:
                return self.cell
            return None if node.id in self.local else self.outer.get(node.id)
        if isinstance(node, ast.Attribute):
            holder = self.object(node.value)
            if isinstance(holder, ModuleType | nn.Cell) and not isinstance(
                inspect.getattr_static(type(holder), node.attr, None), property
            ):
                return getattr(holder, node.attr, None)
        return None

    def called(self, node: ast.Call) -> tuple[str, Any]:
        """The name of the library's function or primitive that is called, and itself; "" for any
        other."""
        found = self.object(node.func)
        if isinstance(found, FunctionType):
            return (found.__name__, found) if is_library(found) else ("", None)
        if isinstance(found, ops.Primitive | nn.Cell) and is_library(type(found)):
            return type(found).__name__, found
        return "", None

    def weight(self, node: ast.AST) -> _Weight | None:
        """The Parameter of this Cell that an expression gives, as it is, cast or transposed."""
        if isinstance(node, ast.Name):
            if node.id in self.assigned:  # taken out first: names may go in a circle
                self.known[node.id] = self.weight(self.assigned.pop(node.id))
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.own:
                found = self.object(node)
                return _Weight(node.attr) if isinstance(found, Parameter) else None
            inner = self.weight(node.value) if node.attr in _TRANSPOSES else None
            return inner and inner._replace(transposed=not inner.transposed)
        if not isinstance(node, ast.Call):
            return None
        name, _ = self.called(node)
        inner = self.weight(node.args[0]) if name and node.args else None
        if inner is None and isinstance(node.func, ast.Attribute):  # a method
            name, inner = node.func.attr, self.weight(node.func.value)
        if inner is None or name not in _SAME | _TRANSPOSES:
            return None
        return inner._replace(transposed=inner.transposed != (name in _TRANSPOSES))

    def parameter(self, node: ast.AST, shape: tuple[int, ...]) -> str:
        """The name of the Parameter that an expression gives, if it has this shape; "" for none."""
        found = self.weight(node)
        if found is None or getattr(self.cell, found.name).shape != shape:
            return ""
        return found.name

    def form(self, node: ast.AST) -> tuple[_Form, Any, list[ast.expr]] | None:
        """How an expression uses its arguments, what it calls, and these."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return _PRODUCT, ops.matmul, [node.left, node.right]
        if not isinstance(node, ast.Call):
            return None
        name, found = self.called(node)
        if not name and isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            return _PRODUCT, ops.matmul, [node.func.value, *node.args]
        form, arguments = _FORMS.get(name), _positional(node, found)
        if form is None or arguments is None or len(arguments) <= max(form.given, form.weight):
            return None
        if getattr(found, "transpose_a", False) or getattr(found, "batch_dims", 0):
            return None
        if form.indexed and not (
            _is_zero(arguments[2:]) or name == "embedding" and len(arguments) == 2
        ):
            return None  # another axis, or rows that have no gradient
        turned = form.turned and not getattr(found, "transpose_b", False)
        return form._replace(turned=turned), found, arguments

    def uses(self) -> Iterator[tuple[ast.AST, list[ast.expr], Use]]:
        """Those of this method, with their nodes and arguments, in the order of the text."""
        found = [(node, *one) for node in self.nodes if (one := self.use(node)) is not None]
        found.sort(key=lambda one: _place(one[0]))
        ends = [_place(node) for node, *_ in found[1:]] + [(math.inf, 0)]
        for number, (node, arguments, use) in enumerate(found):
            bias = use.bias or self.bias(node, ends[number], use)
            yield node, arguments, replace(use, number=number, bias=bias)

    def use(self, node: ast.AST) -> tuple[list[ast.expr], Use] | None:
        """The arguments of an expression, and how it uses a Parameter; None where it does not."""
        form = self.form(node)
        weight = form and self.weight(form[2][form[0].weight])
        if form is None or weight is None:
            return None
        how, call, arguments = form
        shape = getattr(self.cell, weight.name).shape
        if len(shape) != how.axes or self.weight(arguments[how.given]) is not None:
            return None
        if weight.transposed and (how.indexed or how.axes > 2):
            return None
        window = self.window(call, arguments) if how.axes > 2 else None
        if window is _UNKNOWN:
            return None
        use = Use(
            function=self.function,
            call=call,
            given=how.given,
            weight=weight.name,
            turned=how.turned != weight.transposed,
            indexed=how.indexed,
            window=window,
        )
        if 0 <= how.bias < len(arguments):
            use = replace(use, bias=self.parameter(arguments[how.bias], self.outputs(use)))
        return arguments, use

    def outputs(self, use: Use) -> tuple[int, ...]:
        """The shape of a bias."""
        shape = getattr(self.cell, use.weight).shape
        return (shape[1] if use.turned else shape[0],)

    def window(self, call: Any, arguments: list[ast.expr]) -> Any:
        """Of a convolution; _UNKNOWN where it is not constant, or of another layout."""
        if isinstance(call, ops.Primitive):
            if getattr(call, "data_format", "NCHW") not in ("NCHW", "NCDHW"):
                return _UNKNOWN
            own = {
                name: getattr(call, name) for name in ("stride", "dilation", "group", "pad_mode")
            }
            return {**own, "padding": tuple(call.pad)}
        given = {
            name: self.constant(node) for name, node in zip(_WINDOW, arguments[3:], strict=False)
        }
        if _UNKNOWN in given.values():
            return _UNKNOWN
        found: dict[str, Any] = {
            "stride": 1,
            "pad_mode": "valid",
            "padding": 0,
            "dilation": 1,
            "groups": 1,
            **given,
        }
        pads = found["padding"]
        if found["pad_mode"] != "pad":
            pads = 0
        elif not isinstance(pads, int):  # one for each axis, on both sides
            pads = tuple(pad for pad in pads for _ in range(2))
        return {**found, "padding": pads, "group": found["groups"]}

    def constant(self, node: ast.expr) -> Any:
        """The value of an expression that is one; else _UNKNOWN."""
        try:
            return ast.literal_eval(node)
        except ValueError:
            found = self.object(node)
            return found if isinstance(found, int | str | tuple | list) else _UNKNOWN

    def bias(self, node: ast.AST, end: tuple[float, int], use: Use) -> str:
        """The first Parameter of the right shape that is added to it, or after it and before the
        next use.
        """
        for other in [] if use.indexed else self.nodes:
            terms: list[ast.expr] = []
            if isinstance(other, ast.BinOp) and isinstance(other.op, ast.Add):
                terms = [other.left, other.right]
            elif isinstance(other, ast.AugAssign) and isinstance(other.op, ast.Add):
                terms = [other.value]
            elif isinstance(other, ast.Call) and self.called(other)[0] in _ADDITIONS:
                terms = other.args
            if node not in terms and not (terms and _place(node) <= _place(other) < end):
                continue
            for term in terms:
                name = self.parameter(term, self.outputs(use))
                if name:
                    return name
        return ""


def _own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function in the order of its text, without those of functions inside it."""
    top = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    yield from top.args.posonlyargs + top.args.args + top.args.kwonlyargs
    waiting: list[ast.AST] = [*reversed(top.body)]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += reversed([*ast.iter_child_nodes(node)])


def _positional(node: ast.Call, found: Any) -> list[ast.expr] | None:
    """The arguments of a call by their places, with the defaults before them; None where that cannot
    be said.
    """
    if any(isinstance(one, ast.Starred) for one in node.args):
        return None
    if not node.keywords:
        return node.args
    if not isinstance(found, FunctionType) or any(one.arg is None for one in node.keywords):
        return None
    given: dict[str, ast.expr] = {str(one.arg): one.value for one in node.keywords}
    out = list(node.args)
    for parameter in list(inspect.signature(found).parameters.values())[len(out) :]:
        if not given:
            break
        default = like(ast.Constant(parameter.default), node)
        out.append(given.pop(parameter.name, default))
    return None if given else out


def _place(node: ast.AST) -> tuple[int, int]:
    """Where the text of an expression ends."""
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]


def _is_zero(nodes: list[ast.expr]) -> bool:
    return len(nodes) == 1 and isinstance(nodes[0], ast.Constant) and nodes[0].value == 0


def _methods(cell: nn.Cell) -> Iterator[FunctionType]:
    """Those that the user's classes of a Cell have."""
    for cls in type(cell).__mro__:
        if not is_library(cls):
            yield from (one for one in vars(cls).values() if isinstance(one, FunctionType))


_tree_of = functools.lru_cache(maxsize=128)(source.tree_of)  # many Cells have the same methods


def uses_of(cell: nn.Cell) -> list[Use]:
    """All uses of a Cell's own Parameters in its methods."""
    own = {name for name, p in vars(cell).get("_params", {}).items() if p is not None}
    if not own:
        return []
    found: list[Use] = []
    for function in _methods(cell):
        if own & set(function.__code__.co_names):
            tree = _tree_of(function)
            if tree is not None:
                found += [use for *_, use in _Reader(function, cell, tree).uses()]
    return [replace(use, name=f"_hessian_use_{place}") for place, use in enumerate(found)]


def rewritten(function: Any, cell: nn.Cell, tree: ast.AST, names: Mapping[int, str]) -> ast.AST:
    """The syntax tree of a method in which attributes of the Cell are called in the place of some of
    its uses.

    Args:
        names: by the number of a use, that of the attribute.
    """
    tree = copy.deepcopy(tree)
    reader = _Reader(function, cell, tree)
    for node, arguments, use in [*reader.uses()]:
        if use.number in names:
            holder = like(ast.Name(reader.own, ast.Load()), node)
            attribute = like(ast.Attribute(holder, names[use.number], ast.Load()), node)
            tree = _Exchange(node, like(ast.Call(attribute, arguments, []), node)).visit(tree)
    return tree


class _Exchange(ast.NodeTransformer):
    """One node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.generic_visit(self.new if node is self.old else node)
