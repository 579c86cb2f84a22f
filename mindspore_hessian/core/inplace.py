"""In-place operators (``y += x``, ``y.add_(x)``, ``y[0] = x``) as what they mean for the name that
is written.

MindSpore's graphs write into the buffer. Where one graph evaluates a function twice, its optimiser
merges all but the write, so that it happens twice; and a backward pass that reads an overwritten
output is wrong. So while we compile, an in-place operator gives a new Tensor under the old name.
That is the same program unless the old Tensor is read again under another name: there eager mode,
graphs and PyTorch differ among themselves, and we refuse.

`followed` does both: it hands MindSpore's parser the rewritten syntax trees, and follows every
function that was parsed, with the objects that it really has (``self``, globals, closures), from
holder to holder of each Tensor.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from mindspore import Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian._errors import NotCompilableError
from mindspore_hessian.core import source, spelling
from mindspore_hessian.core.captures import Captures, is_library

# methods that write into their Tensor; the first have an equal of the same name that does not
_OUT_OF_PLACE = frozenset(
    (
        "add_",
        "sub_",
        "mul_",
        "div_",
        "exp_",
        "log_",
        "sigmoid_",
        "tanh_",
        "clamp_",
        "floor_",
        "remainder_",
        "floor_divide_",
        "masked_fill_",
        "masked_scatter_",
        "index_add_",
        "index_fill_",
        "index_copy_",
        "scatter_",
        "scatter_add_",
        "addmm_",
        "erfinv_",
        "sign_",
    )
)
_TEMPLATES = {
    "zero_": "{y}.new_zeros({y}.shape)",
    "fill_": "({y}.new_zeros({y}.shape) + {0})",
    "copy_": "{0}.broadcast_to({y}.shape).astype({y}.dtype)",
}
_WRITERS = (
    _OUT_OF_PLACE
    | _TEMPLATES.keys()
    | {name for name in dir(Tensor) if name.endswith("_") and not name.startswith("_")}
    - {"delete_", "index_of_parent_", "parent_tensor_", "requires_grad_", "to_"}
)

# what may give its argument back, or a view of it, as a method, a function or a layer
_VIEWS = frozenset(
    " ".join(
        (
            "reshape view transpose permute squeeze unsqueeze expand_dims expand_dims_ flatten "
            "unflatten broadcast_to expand expand_as split chunk unbind unstack tensor_split "
            "hsplit vsplit dsplit narrow select t swapaxes swapdims moveaxis movedim diagonal "
            "real imag identity stop_gradient depend cast dropout dropout1d dropout2d dropout3d "
            "feature_alpha_dropout alpha_dropout contiguous to type astype float double half int "
            "long bool type_as view_as view_as_real view_as_complex atleast_1d atleast_2d "
            "atleast_3d ravel slice strided_slice tuple_to_array mutable value detach index "
            "as_strided unfold reshape_as clip_by_norm assign tensor get item resize pad tile "
            "broadcast_tensors meshgrid list tuple dict next splitv getitem load tensorview",
        )
    ).split()
)
_PARTS = frozenset(
    ("split", "chunk", "unbind", "unstack", "tensor_split", "hsplit", "vsplit", "dsplit")
)
_SIZES = frozenset(
    (
        "shape",
        "dtype",
        "ndim",
        "size",
        "itemsize",
        "nbytes",
        "strides",
        "is_leaf",
        "requires_grad",
        "name",
        "training",
    )
)
_STORES = frozenset(
    ("append", "extend", "insert", "add", "update", "setdefault", "appendleft", "push")
)
_NUMBERS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice)
_CAPTURED = "captured"
_ROUNDS = 3  # of a loop's body

_INPLACE_PRIMITIVE = re.compile(rb"Inplace[A-Z]\w*")
_INPLACE_FUNCTION = re.compile(r"inplace_?[a-z]|Inplace[A-Z]")
_REWRITTEN = "rewritten_network"  # where mindspore.amp puts the networks that it writes anew
_ASSIGNMENTS = frozenset(("assign", "assign_add", "assign_sub", "Assign", "AssignAdd", "AssignSub"))
_NO_WRITERS = frozenset(
    ("is_", "stop_gradient_", "shape_", "reshape_", "print_", "bool_", "and_", "or_", "not_")
)


class _Parsed(NamedTuple):
    """A function that MindSpore parsed: its `self`, and its syntax tree as it was."""

    fn: FunctionType
    owner: Any
    tree: ast.AST


_following = 0  # depth of `followed`
_rewriters: list[Callable[[FunctionType, Any, ast.AST], ast.AST]] = []


@contextlib.contextmanager
def rewriting(rewrite: Callable[[FunctionType, Any, ast.AST], ast.AST]) -> Iterator[None]:
    """While we compile inside, MindSpore reads ``rewrite(function, self, tree)`` for each function of
    the user's."""
    _rewriters.append(rewrite)
    try:
        yield
    finally:
        _rewriters.remove(rewrite)


@contextlib.contextmanager
def followed() -> Iterator[None]:
    """While MindSpore compiles inside, in-place operators are out-of-place ones.

    Raises:
        NotCompilableError: at the end, where a function that it parsed reads an overwritten Tensor
            again.
    """
    global _following
    parsed: list[_Parsed] = []

    def read(fn: FunctionType, owner: Any, tree: ast.AST) -> ast.AST:
        if is_library(fn) and not source.is_ours(fn.__code__):
            return tree
        parsed.append(_Parsed(fn, owner, tree))
        for rewrite in _rewriters:
            tree = rewrite(_plain(fn), owner, tree)
        return _rebound(spelling.with_defaults(_plain(fn), tree, like))

    _following += 1
    try:
        with _compat.parsing(read):
            yield
    except Exception:
        _check(parsed)  # what it says comes first
        raise
    finally:
        _following -= 1
        spelling.forget()
    _check(parsed)


def _plain(fn: Any) -> FunctionType:
    """The function of a method."""
    return getattr(fn, "__func__", fn)


_told: list[list[str]] = []


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """What is compiled inside writes in place here: each place once."""
    places: list[str] = []
    _told.append(places)
    try:
        yield places
    finally:
        _told.remove(places)


def refuse_left(compiled: Any) -> None:
    """Raise where a compiled graph still writes into a Tensor: what a library function did, or an
    unknown spelling.
    """
    text = _compat.graph_text(compiled)
    left = set(_INPLACE_PRIMITIVE.findall(text))
    if left:
        names = ", ".join(sorted(name.decode() for name in left))
        raise NotCompilableError(
            f"the function writes into a Tensor ({names}: an `inplace=True`, a function whose name "
            "ends in `_`, or an in-place method inside an expression), and the derivatives of "
            "that are wrong in MindSpore. Leave `inplace=True` out, or write the operation "
            "without the underscore."
        )


def states(compiled: Any, once: Callable[[], Any] | None) -> set[str]:
    """The names of the Parameters that a compiled graph assigns to.

    Raises where it reads and assigns one more often than the function alone does, which ``once()``
    compiles: it evaluates the function again, and would see what was assigned. Without `once`, at
    any that it reads.
    """
    found = _compat.states(compiled)
    kept = {name: counts for name, counts in found.items() if counts[1]}
    alone = _compat.states(once()) if kept and once else {}
    again = [
        name
        for name, (writes, reads) in kept.items()
        if name not in alone or writes > alone[name][0] or reads > alone[name][1]
    ]
    if again:
        raise NotCompilableError(
            "the function keeps a state: it reads and assigns the Parameter "
            f"{', '.join(map(repr, sorted(again)))}. For this result it is evaluated more than "
            "once, and each evaluation would see what the last assigned. Leave that out, most "
            "often by `if self.training:` and network.set_train(False). (hvp and HessianOperator "
            "evaluate it once.)"
        )
    return set(found)


def refuse_in_graph(*functions: Any) -> None:
    """Raise where a function writes into a Tensor, or means another program to MindSpore, for callers
    inside the user's own graph.

    MindSpore parses that graph before we are asked, so nothing can be rewritten there.
    """
    if _following:  # the graph is one of ours
        return
    known = [fn for fn in Captures(*functions).functions if not is_library(fn)]
    reached = [fn for fn in known if any(fn is getattr(f, "__func__", f) for f in functions)]
    reached += [fn for fn in known if fn.__name__ in ("construct", "__call__", "call")]
    for fn in reached:  # grows
        names = _all_names(fn.__code__)
        reached += [other for other in known if other.__name__ in names and other not in reached]
    for fn in reached:
        tree = source.tree_of(fn)
        if tree is None or fn.__code__.co_name == "<lambda>":  # its line may have others
            continue
        try:
            spelling.check(fn, tree)
            spelling.check_defaults(fn, tree)
        except NotCompilableError as refused:
            raise NotImplementedError(f"inside your own graph: {refused}") from None
        with contextlib.suppress(NotCompilableError, SyntaxError):
            if not _has_writes(tree):
                continue
            world = _World([_Parsed(fn, None, tree)])
            world.strict = True
            try:
                world.summary(fn, _UNKNOWN)
            except _Refused as refused:
                raise NotImplementedError(
                    "inside your own graph, the function to differentiate must not write in "
                    f"place: {refused}"
                ) from None


def _all_names(code: Any) -> set[str]:
    names = {*code.co_names, *code.co_freevars}
    for const in code.co_consts:
        if hasattr(const, "co_names"):
            names |= _all_names(const)
    return names


# --- rewriting ------------------------------------------------------------------------------------


def _chain(node: ast.AST) -> tuple[str, list[ast.Call]] | None:
    """``y.mul_(2).add_(x)`` as ("y", [the calls in order]), where every method writes into y."""
    calls: list[ast.Call] = []
    while (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _WRITERS
    ):
        calls.append(node)
        node = node.func.value
    return (node.id, calls[::-1]) if calls and isinstance(node, ast.Name) else None


def _locals(function: ast.AST) -> set[str]:
    """The parameters and the assigned names of a function, without those of functions inside it."""
    names = {arg.arg for arg in _arguments(function)}
    waiting = [*ast.iter_child_nodes(function)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Global | ast.Nonlocal):
            names.difference_update(node.names)
        waiting += ast.iter_child_nodes(node)
    return names


def _arguments(function: ast.AST) -> list[ast.arg]:
    a = getattr(function, "args", None)
    if not isinstance(a, ast.arguments):
        return []
    return [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]


def _has_writes(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) or (
            isinstance(node, ast.Attribute) and node.attr in _WRITERS
        ):
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            return True
    return False


def _rebound(tree: ast.AST) -> ast.AST:
    """The tree with ``y.add_(x)`` as ``y = y.add(x)``; augmented assignments are left to
    `_compat.parsing`.
    """
    if not any(
        isinstance(node, ast.Attribute) and node.attr in _WRITERS for node in ast.walk(tree)
    ):
        return tree
    return _Rebind().visit(copy.deepcopy(tree))


class _Rebind(ast.NodeTransformer):
    def __init__(self) -> None:
        self.local: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.local.append(_locals(node))
        self.generic_visit(node)
        self.local.pop()
        return node

    def _value(self, node: ast.AST | None) -> tuple[ast.expr, str] | None:
        found = _chain(node) if node is not None else None
        if found is None or not self.local or found[0] not in self.local[-1]:
            return None
        out: ast.expr = _name(found[0], ast.Load(), found[1][0])
        for call in found[1]:
            made = _out_of_place(out, call)
            if made is None:
                return None
            out = made
        return out, found[0]

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        found = self._value(node.value)
        return node if found is None else _assign(found[1], found[0], node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        found = self._value(node.value)
        if found is not None:
            node.value = found[0]
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        found = self._value(node.value)
        if found is None:
            return node
        first = _assign(found[1], found[0], node)
        node.value = _name(found[1], ast.Load(), node)
        return [first, node]


def like(new: Any, old: ast.AST) -> Any:
    """`new` with the place of `old`: also the tokens, by which MindSpore knows it."""
    ast.copy_location(new, old)
    for token in ("first_token", "last_token"):
        if hasattr(old, token):
            setattr(new, token, getattr(old, token))
    return new


def _name(name: str, context: ast.expr_context, place: ast.AST) -> ast.Name:
    return like(ast.Name(name, context), place)


def _assign(name: str, value: ast.expr, place: ast.AST) -> ast.Assign:
    return like(ast.Assign([_name(name, ast.Store(), place)], value), place)


def _out_of_place(receiver: ast.expr, call: ast.Call) -> ast.expr | None:
    """The call of an in-place method as an expression that gives the same values and writes
    nothing.
    """
    assert isinstance(call.func, ast.Attribute)
    method = call.func.attr
    if method in _OUT_OF_PLACE:
        function = like(ast.Attribute(receiver, method[:-1], ast.Load()), call.func)
        return like(ast.Call(function, call.args, call.keywords), call)
    wanted = method != "zero_"
    if method not in _TEMPLATES or call.keywords or len(call.args) != wanted:
        return None

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return copy.deepcopy(receiver if node.id == "y" else call.args[0])

    text = _TEMPLATES[method].format("value", y="y")
    out = Fill().visit(ast.parse(text, mode="eval").body)
    for node in ast.walk(out):
        if isinstance(node, ast.expr) and not hasattr(node, "first_token"):
            like(node, call)
    return out


# --- who holds what -------------------------------------------------------------------------------


class _Refused(Exception):
    """What is wrong, as a sentence with its line."""


@dataclass(frozen=True)
class _Value:
    """What an expression may be.

    Attributes:
        stores: the memory that it may share: numbers, names of parameters, or `_CAPTURED`.
        known: the Python objects that it may be, where they are known.
        items: whether it is a list, tuple or dict, which holds the Tensors.
        shared: whether two of its items may be the same Tensor.
        stale: where the memory was overwritten under another name; "" where it was not.
        parts: whether its items are parts of the memory, apart from each other (split, chunk).
    """

    stores: frozenset = frozenset()
    known: tuple | None = None
    items: bool = False
    shared: bool = False
    stale: str = ""
    parts: bool = False


_NOTHING = _Value()
_UNKNOWN = _Value(frozenset({_CAPTURED}))
_Env = dict[str, _Value]


def _join(*values: _Value) -> _Value:
    if all(value is values[0] for value in values[1:]) and values:
        return values[0]
    known: tuple | None = None
    if all(value.known is not None for value in values):
        known = tuple({id(item): item for value in values for item in value.known or ()}.values())
    return _Value(
        frozenset().union(*(v.stores for v in values)),
        known or None,
        any(v.items for v in values),
        any(v.shared for v in values),
        next((v.stale for v in values if v.stale), ""),
        bool(values) and all(v.parts for v in values),
    )


def _holding(values: Iterable[_Value]) -> _Value:
    """A container of these."""
    values = list(values)
    shared = any(a.stores & b.stores for a, b in itertools.combinations(values, 2))
    known = tuple(itertools.chain.from_iterable(v.known or () for v in values))
    complete = all(v.known is not None for v in values) and values
    return _Value(
        frozenset().union(*(v.stores for v in values)),
        (known,) if complete else None,
        True,
        shared or any(v.shared for v in values),
        next((v.stale for v in values if v.stale), ""),
    )


@dataclass
class _Summary:
    """What a call does: the parameters that it overwrites (name -> where), and what it returns."""

    names: list[str]
    writes: dict[str, str] = field(default_factory=dict)
    returned: _Value = _NOTHING


@dataclass
class _Nested:
    """A function defined inside another one."""

    node: ast.AST
    summary: _Summary


_tags = itertools.count(1)


class _World:
    """All that was parsed, and what is known of each function by now."""

    def __init__(self, parsed: list[_Parsed]):
        self.trees = {item.fn.__code__: item for item in parsed}
        self.summaries: dict[tuple, _Summary] = {}
        self.unresolved: list[str] = []  # reads after a call of an unknown function
        self.written: list[str] = []
        self.strict = False  # whether any write is refused

    def summary(self, fn: Any, owner: Any) -> _Summary | None:
        """None for a function that was not parsed."""
        item = self.trees.get(fn.__code__)
        if item is None:
            return None
        key = (fn.__code__, id(owner))
        if key not in self.summaries:
            node = _definition(item.tree, fn)
            if node is None:
                return None
            names = [arg.arg for arg in _arguments(node)]
            self.summaries[key] = _Summary(names, {}, _Value(frozenset(names)))  # for recursion
            self.summaries[key] = _Walk(self, fn, owner).function(node, names)
        return self.summaries[key]


def _definition(tree: ast.AST, fn: FunctionType) -> ast.AST | None:
    """The node of the function itself in what MindSpore parsed."""
    wanted = ast.Lambda if fn.__code__.co_name == "<lambda>" else ast.FunctionDef
    return next((node for node in ast.walk(tree) if isinstance(node, wanted)), None)


def _check(parsed: list[_Parsed]) -> None:
    """Raise NotCompilableError where an overwritten Tensor is read again, or MindSpore means another
    program.
    """
    _check_writes(parsed)
    for item in parsed:
        if not source.is_ours(item.fn.__code__) or item.fn.__code__.co_name == "<lambda>":
            spelling.check(_plain(item.fn), item.tree)


def _check_writes(parsed: list[_Parsed]) -> None:
    world = _World(parsed)
    try:
        for item in parsed:
            world.summary(item.fn, item.owner)
    except _Refused as refused:
        raise NotCompilableError(str(refused)) from None
    except Exception as err:  # a program that this file does not understand
        if any(_has_writes(item.tree) for item in parsed):
            raise NotCompilableError(
                "it cannot be told whether a Tensor that the function overwrites is read again. "
                f"Write `y = y + x` for `y += x` and `y.add_(x)` in it. ({type(err).__name__}: "
                f"{err})"
            ) from err
        return
    for places in _told:
        places += [where for where in world.written if where not in places]
    if not world.unresolved:
        return
    for (code, _), summary in world.summaries.items():
        for name, where in summary.writes.items():
            if not source.is_ours(code):
                raise NotCompilableError(
                    f"{where} overwrites {name!r}, an argument of {code.co_name}, and "
                    f"{world.unresolved[0]}; so that "
                    "it cannot be told whether the overwritten Tensor is read again, where "
                    "MindSpore's eager mode, "
                    f"its graphs and PyTorch differ. Write `{name} = {name} + ...` instead of "
                    f"`{name} += ...`."
                )


class _Walk:
    """One function, followed from statement to statement."""

    def __init__(self, world: _World, fn: FunctionType, owner: Any, outer: _Env | None = None):
        self.world, self.fn, self.owner, self.outer = world, fn, owner, outer or {}
        self.env: _Env | None = {}
        self.ids = itertools.count(1)
        self.file, self.first = fn.__code__.co_filename, fn.__code__.co_firstlineno
        self.temporaries: list[_Value] = []
        self.escaped: frozenset = frozenset()
        self.breaks: list[list[_Env]] = []
        self.tag = next(_tags)
        self.parents: dict[Any, frozenset] = {}

    # -- bookkeeping --

    def function(self, node: ast.AST, names: list[str]) -> _Summary:
        self.result = _Summary(names)
        self.returned: list[_Value] = []
        self.local = _locals(node)
        self.env = {name: _Value(frozenset({(self.tag, name)})) for name in names}
        arguments = _arguments(node)
        if self.owner is not None and self.owner is not _UNKNOWN and arguments:
            self.env[arguments[0].arg] = _Value(known=(self.owner,))
        if isinstance(node, ast.Lambda):
            self.returned.append(self.eval(node.body))
        else:
            self.block(node.body)  # type: ignore[attr-defined]
        self.result.returned = _join(*self.returned) if self.returned else _NOTHING
        stores = self.above(self.result.returned.stores)
        own = frozenset(name for name in names if (self.tag, name) in stores) | (
            stores & {_CAPTURED}
        )
        self.result.returned = replace(self.result.returned, stores=own)
        return self.result

    def where(self, node: ast.AST) -> str:
        line = getattr(node, "lineno", 1) + self.first - 1
        return f"`{ast.unparse(node).splitlines()[0]}` ({self.file}:{line})"

    def fresh(self) -> _Value:
        return _Value(frozenset({(self.tag, next(self.ids))}))

    def above(self, stores: frozenset) -> frozenset:
        """These, and what they are parts of."""
        out = stores
        for store in stores:
            if store in self.parents:
                out |= self.above(self.parents[store])
        return out

    def meet(self, a: frozenset, b: frozenset) -> bool:
        """Whether two values may share memory."""
        return bool(a & b) or bool(self.parents) and bool(a & self.above(b) or self.above(a) & b)

    def write(self, value: _Value, node: ast.AST, holder: str | None) -> None:
        """`value` is overwritten, and `holder` alone goes on with what it is then."""
        if not value.stores:
            return
        where = self.where(node)
        if holder is not None and where not in self.world.written:
            self.world.written.append(where)
        if self.world.strict:
            raise _Refused(
                f"{where}. Write it out of place: `y = y + x` for `y += x` or `y.add_(x)`."
            )
        stores = self.above(value.stores)
        if _CAPTURED in stores:
            raise _Refused(
                f"{where} overwrites a Tensor that the function did not make (a captured one, or "
                "an attribute), so every evaluation would change the next. Write it out of place: "
                "`y = y + x` for `y += x`."
            )
        if any(isinstance(store, tuple) and store[0] != self.tag for store in stores):
            raise _Refused(
                f"{where} overwrites a Tensor of the function around it. Pass it as an argument, "
                "and write it out of place: `y = y + x` for `y += x`."
            )
        if self.meet(value.stores, self.escaped):
            raise _Refused(
                f"{where} overwrites a Tensor that an attribute holds too. Write it out of place: "
                "`y = y + x` for `y += x`."
            )
        assert self.env is not None
        for name, other in self.env.items():
            if (
                name != holder
                and self.meet(other.stores, value.stores)
                and other.stale[:1] in ("", "?")
            ):
                self.env[name] = replace(other, stale=where)
        for name in self.result.names:
            if (self.tag, name) in stores:
                self.result.writes.setdefault(name, where)

    def load(self, name: str, node: ast.AST) -> _Value:
        assert self.env is not None
        value = self.env.get(name)
        if value is None:
            value = self.outer.get(name) or self.captured(name)
        if value.stale.startswith("?"):
            self.world.unresolved.append(
                f"{value.stale[1:]} may be given it while {name!r} is read again in "
                f"{self.where(node)}"
            )
        elif value.stale:
            raise _Refused(
                f"{value.stale} overwrites a Tensor that is read again as {name!r} in "
                f"{self.where(node)}. MindSpore's eager mode, its graphs and PyTorch differ in "
                "what that is then. Write it out of place: `y = y + x` for `y += x` or "
                "`y.add_(x)`."
            )
        self.temporaries.append(value)
        return value

    def captured(self, name: str) -> _Value:
        """A name that is not local: from the closure, the globals or Python's own."""
        code = self.fn.__code__
        if name in code.co_freevars and self.fn.__closure__:
            try:
                return self.object(self.fn.__closure__[code.co_freevars.index(name)].cell_contents)
            except ValueError:
                return _UNKNOWN
        if name in self.fn.__globals__:
            return self.object(self.fn.__globals__[name])
        if hasattr(builtins, name):
            return _Value(known=(getattr(builtins, name),))
        return _NOTHING

    def object(self, value: Any) -> _Value:
        if isinstance(value, _NUMBERS):
            return _NOTHING
        if isinstance(value, Tensor):
            return _UNKNOWN
        if isinstance(value, list | tuple | dict):
            inner = value.values() if isinstance(value, dict) else value
            stores = frozenset().union(*(self.object(item).stores for item in inner))
            return _Value(stores, (value,), True)
        return _Value(known=(value,))

    # -- statements --

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if self.env is None:
                return
            self.temporaries = []
            getattr(self, f"on_{type(statement).__name__}", self.other)(statement)

    def other(self, node: ast.stmt) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.eval(child)
            elif isinstance(child, ast.stmt):
                self.block([child])
        for name in ("handlers", "cases"):
            for part in getattr(node, name, ()):
                self.block(part.body)

    def on_FunctionDef(self, node: ast.FunctionDef) -> None:
        assert self.env is not None
        inner = _Walk(self.world, self.fn, None, {**self.outer, **self.env})
        names = [arg.arg for arg in _arguments(node)]
        summary = inner.function(node, names)
        held = [
            self.env[n.id] for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in self.env
        ]
        self.env[node.name] = replace(
            _join(*held) if held else _NOTHING, known=(_Nested(node, summary),), items=False
        )

    def on_ClassDef(self, node: ast.ClassDef) -> None:
        del node

    def on_Return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.returned.append(self.written(node.value))
        self.env = None

    def on_Raise(self, node: ast.Raise) -> None:
        self.env = None

    def on_Break(self, node: ast.stmt) -> None:
        if self.breaks and self.env is not None:
            self.breaks[-1].append(self.env)
        self.env = None

    on_Continue = on_Break

    def on_Expr(self, node: ast.Expr) -> None:
        self.written(node.value)

    def written(self, node: ast.expr) -> _Value:
        """An expression that is a whole statement's value, where ``y.add_(x)`` may stand."""
        found = _chain(node)
        if found is None or found[0] not in self.local:
            return self.eval(node)
        name, calls = found
        rebind = _Rebind()
        rebind.local = [self.local]
        if rebind._value(node) is None:
            raise _Refused(
                f"{self.where(node)} writes in place, which has no derivative here. "
                "Write it out of place."
            )
        for call in calls:
            self.arguments(call)
        before = self.load(name, node)
        self.write(before, node, name)
        assert self.env is not None
        self.env[name] = self.fresh()
        return self.env[name]

    def on_Assign(self, node: ast.Assign) -> None:
        value = self.written(node.value)
        for target in node.targets:
            self.assign(target, value, node.value)

    def on_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.assign(node.target, self.eval(node.value), node.value)

    def assign(self, target: ast.AST, value: _Value, source: ast.AST | None = None) -> None:
        assert self.env is not None
        if isinstance(target, ast.Starred):
            target = target.value
        if isinstance(target, ast.Name):
            self.env[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            parts = source.elts if isinstance(source, ast.Tuple | ast.List) else []
            values = [self.quiet(part) for part in parts]
            for number, item in enumerate(target.elts):
                one = (
                    values[number] if len(values) == len(target.elts) else self.item(value, number)
                )
                if value.parts:
                    one = self.fresh()
                    self.parents.update(dict.fromkeys(one.stores, value.stores))
                self.assign(item, one)
        elif isinstance(target, ast.Attribute):
            self.escaped |= value.stores
            self.env[ast.unparse(target)] = value
        elif isinstance(target, ast.Subscript):
            self.set_item(target, value, target)

    def quiet(self, node: ast.AST) -> _Value:
        """An expression that was evaluated just before."""
        before = self.env
        self.env = dict(before or {})
        try:
            return self.eval(node)
        finally:
            self.env = before

    def item(self, value: _Value, number: int) -> _Value:
        """One of the items of a value."""
        known: tuple | None = None
        if value.known is not None:
            known = ()
            for holder in value.known:
                inner = _items(holder)
                if inner is None:
                    known = None
                    break
                known += (inner[number],) if -len(inner) <= number < len(inner) else tuple(inner)
        return _one_of(value, known)

    def set_item(self, target: ast.Subscript, value: _Value, node: ast.AST) -> None:
        """``base[i] = value``."""
        assert self.env is not None
        self.eval(target.slice)
        base: ast.AST = target.value
        depth = 1
        while isinstance(base, ast.Subscript):
            base, depth = base.value, depth + 1
        name = base.id if isinstance(base, ast.Name) else ast.unparse(base)
        holder = self.eval(base)
        if holder.items:
            if depth > 1 or holder.shared:  # perhaps a write into an item
                self.write(holder, node, name)
            if holder.shared and depth > 1:
                raise _Refused(
                    f"{self.where(node)} overwrites a Tensor that may stand twice in {name!r}. "
                    "Write it out of place."
                )
            if isinstance(base, ast.Name):
                self.env[name] = replace(
                    holder,
                    stores=holder.stores | value.stores,
                    known=None,
                    shared=holder.shared or bool(holder.stores & value.stores),
                )
        elif (
            isinstance(base, ast.Name) and depth == 1 and (name in self.local or not holder.stores)
        ):
            self.write(holder, node, name)
            self.env[name] = self.fresh() if holder.stores else holder
        elif holder.stores:
            raise _Refused(
                f"{self.where(node)} writes into a part of a Tensor through "
                f"{ast.unparse(target.value)!r}. "
                "Give the part a name, or write it with ops.where or ops.cat."
            )

    def on_AugAssign(self, node: ast.AugAssign) -> None:
        assert self.env is not None
        value, target = self.eval(node.value), node.target
        if isinstance(target, ast.Name):
            before = self.load(target.id, node)
            if target.id not in self.local:
                raise _Refused(
                    f"{self.where(node)} changes a name of another scope. Pass it as an argument."
                )
            if before.items:
                self.env[target.id] = replace(_holding([before, value]), known=None)
                return
            self.write(before, node, target.id)
            made = self.fresh() if before.stores or value.stores else _NOTHING
            items = isinstance(node.value, ast.List | ast.Tuple | ast.ListComp) or value.items
            self.env[target.id] = (
                replace(_join(made, value, before), stale="", items=True, known=None)
                if items
                else (made)
            )
        elif isinstance(target, ast.Subscript):
            holder = self.eval(target.value)
            if holder.items and isinstance(target.value, ast.Name):
                if holder.shared and holder.stores:
                    raise _Refused(
                        f"{self.where(node)} overwrites a Tensor that may stand twice in "
                        f"{target.value.id!r}. Write it out of place."
                    )
                self.write(holder, node, target.value.id)
                self.env[target.value.id] = replace(
                    holder, stores=holder.stores and self.fresh().stores, known=None
                )
            else:
                self.set_item(target, value, node)
        elif isinstance(target, ast.Attribute):
            self.write(
                self.eval(ast.parse(ast.unparse(target), mode="eval").body),
                node,
                ast.unparse(target),
            )

    def on_If(self, node: ast.If) -> None:
        self.eval(node.test)
        self.env = self.fork(lambda: self.block(node.body), lambda: self.block(node.orelse))

    def fork(self, *ways: Callable[[], None]) -> _Env | None:
        before, after = dict(self.env or {}), []
        for way in ways:
            self.env = dict(before)
            way()
            if self.env is not None:
                after.append(self.env)
        return _merged(after)

    def loop(self, bind: Callable[[], None], body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        def once() -> None:
            bind()
            self.block(body)

        self.breaks.append([])
        for _ in range(_ROUNDS):
            env = self.fork(lambda: None, once)
            self.env = _merged([*([env] if env is not None else []), *self.breaks[-1]])
        self.breaks.pop()
        if self.env is not None:
            self.block(orelse)

    def on_For(self, node: ast.For) -> None:
        source = self.eval(node.iter)
        self.loop(lambda: self.assign(node.target, self.any_item(source)), node.body, node.orelse)

    def any_item(self, source: _Value) -> _Value:
        known: tuple | None = None
        if source.known is not None and all(_items(holder) is not None for holder in source.known):
            known = tuple(item for holder in source.known for item in _items(holder) or ())
        return _one_of(source, known)

    def on_While(self, node: ast.While) -> None:
        self.loop(lambda: self.block([ast.Expr(node.test)]), node.body, node.orelse)

    def on_With(self, node: ast.With) -> None:
        for item in node.items:
            value = self.eval(item.context_expr)
            if item.optional_vars is not None:
                self.assign(item.optional_vars, value)
        self.block(node.body)

    # -- expressions --

    def eval(self, node: ast.AST) -> _Value:
        return getattr(self, f"of_{type(node).__name__}", self.of_any)(node)

    def of_any(self, node: ast.AST) -> _Value:
        """What gives back one of its parts, at most."""
        parts = [
            self.eval(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
        ]
        return _join(*parts) if parts else _NOTHING

    def of_Constant(self, node: ast.Constant) -> _Value:
        return _NOTHING

    def of_new(self, node: ast.AST) -> _Value:
        parts = [
            self.eval(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
        ]
        return self.fresh() if any(part.stores for part in parts) else _NOTHING

    of_Compare = of_JoinedStr = of_FormattedValue = of_new

    def of_BinOp(self, node: ast.BinOp) -> _Value:
        left, right = self.eval(node.left), self.eval(node.right)
        if left.items or right.items:
            return replace(
                _holding([left, right]),
                known=None,
                shared=isinstance(node.op, ast.Mult)
                or bool(left.stores & right.stores)
                or left.shared
                or right.shared,
            )
        return self.fresh() if left.stores or right.stores else _NOTHING

    def of_UnaryOp(self, node: ast.UnaryOp) -> _Value:
        return self.eval(node.operand) if isinstance(node.op, ast.UAdd) else self.of_new(node)

    def of_Name(self, node: ast.Name) -> _Value:
        return self.load(node.id, node)

    def of_IfExp(self, node: ast.IfExp) -> _Value:
        self.eval(node.test)
        return _join(self.eval(node.body), self.eval(node.orelse))

    def of_NamedExpr(self, node: ast.NamedExpr) -> _Value:
        value = self.eval(node.value)
        self.assign(node.target, value)
        return value

    def of_Tuple(self, node: ast.Tuple | ast.List | ast.Set) -> _Value:
        return _holding(self.eval(item) for item in node.elts)

    of_List = of_Set = of_Tuple

    def of_Dict(self, node: ast.Dict) -> _Value:
        return _holding(self.eval(item) for item in node.values)

    def of_ListComp(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp
    ) -> _Value:
        assert self.env is not None
        before = dict(self.env)
        for part in node.generators:
            self.assign(part.target, self.any_item(self.eval(part.iter)))
            for test in part.ifs:
                self.eval(test)
        value = self.eval(node.value if isinstance(node, ast.DictComp) else node.elt)
        for name in {
            n.id
            for part in node.generators
            for n in ast.walk(part.target)
            if isinstance(n, ast.Name)
        }:
            self.env.pop(name, None)
            if name in before:
                self.env[name] = before[name]
        return replace(value, items=True, known=None)

    of_GeneratorExp = of_SetComp = of_DictComp = of_ListComp

    def of_Lambda(self, node: ast.Lambda) -> _Value:
        inner = _Walk(self.world, self.fn, None, {**self.outer, **(self.env or {})})
        summary = inner.function(node, [arg.arg for arg in _arguments(node)])
        held = [
            self.env[n.id]
            for n in ast.walk(node)
            if isinstance(n, ast.Name) and self.env and n.id in self.env
        ]
        return replace(
            _join(*held) if held else _NOTHING, known=(_Nested(node, summary),), items=False
        )

    def of_Attribute(self, node: ast.Attribute) -> _Value:
        path = ast.unparse(node)
        if self.env is not None and path in self.env:
            return self.load(path, node)
        base = self.eval(node.value)
        if base.known is not None:
            return (
                _join(*(self.attribute(holder, node.attr) for holder in base.known))
                if base.known
                else _NOTHING
            )
        if node.attr in _SIZES:
            return _NOTHING
        return replace(base, items=False)

    def attribute(self, holder: Any, name: str) -> _Value:
        if isinstance(
            inspect.getattr_static(type(holder), name, None), property
        ) and not is_library(type(holder)):
            return _UNKNOWN
        try:
            return self.object(getattr(holder, name))
        except Exception:  # of the user's __getattr__
            return _UNKNOWN

    def of_Subscript(self, node: ast.Subscript) -> _Value:
        base = self.eval(node.value)
        self.eval(node.slice)
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
            return self.item(base, node.slice.value)
        if isinstance(node.slice, ast.Slice):
            return replace(base, known=None)
        return self.any_item(base)

    def arguments(self, node: ast.Call) -> tuple[list[_Value], dict[str | None, _Value]]:
        return [self.eval(arg) for arg in node.args], {
            word.arg: self.eval(word.value) for word in node.keywords
        }

    def of_Call(self, node: ast.Call) -> _Value:
        first = len(self.temporaries)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        callee = self.eval(node.func)
        receiver = _NOTHING
        if callee.known is None and isinstance(node.func, ast.Attribute):
            receiver = callee
        args, words = self.arguments(node)
        if callee.known is not None:
            return _join(
                *(self.call(known, args, words, node, first, callee) for known in callee.known)
            )
        everything = [*args, *words.values()]
        if method in _WRITERS:
            raise _Refused(
                f"{self.where(node)} writes in place in the midst of an expression, or into a part "
                "of a Tensor. Write it out of place (the method without the underscore), or in a "
                "line of its own."
            )
        if (
            method in _STORES
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            self.put(node.func.value.id, everything)
            return _join(receiver, *everything)
        if method in _PARTS:
            return replace(receiver, known=None, items=True, parts=True)
        if method in _VIEWS:
            return replace(receiver, known=None)
        if method and hasattr(Tensor, method):
            return self.fresh()
        return self.unknown(node, [receiver, *everything])

    def put(self, name: str, values: list[_Value]) -> None:
        assert self.env is not None
        before = self.env.get(name)
        if before is not None:
            self.env[name] = replace(_holding([before, *values]), known=None, items=True)

    def unknown(self, node: ast.AST, values: list[_Value]) -> _Value:
        """A call of something unknown: it may overwrite its arguments, and may return them."""
        assert self.env is not None
        touched = frozenset().union(*(value.stores for value in values))
        for name, other in self.env.items():
            if not other.stale and self.meet(other.stores, touched):
                self.env[name] = replace(other, stale=f"?{self.where(node)}")
        return replace(_join(self.fresh(), *values), known=None, stale="")

    def call(
        self, fn: Any, args: list[_Value], words: dict, node: ast.Call, first: int, callee: _Value
    ) -> _Value:
        """The call of a known object."""
        everything = [*args, *words.values()]
        function, owner = fn, None
        if isinstance(fn, functools.partial):
            return self.call(
                fn.func,
                [*map(self.object, fn.args), *args],
                {**{name: self.object(value) for name, value in fn.keywords.items()}, **words},
                node,
                first,
                callee,
            )
        if isinstance(fn, _Nested):
            return self.apply(fn.summary, args, words, node, first, callee)
        if isinstance(fn, nn.Cell):
            if isinstance(fn, nn.SequentialCell) and is_library(type(fn)):
                value = everything[0] if everything else _NOTHING
                for cell in fn:
                    value = self.call(cell, [value], {}, node, first, callee)
                return value
            function, owner = type(fn).construct, fn
        elif isinstance(fn, MethodType):
            function, owner = fn.__func__, fn.__self__
        elif not isinstance(
            fn, FunctionType | BuiltinFunctionType | type | ModuleType
        ) and not is_library(type(fn)):
            function, owner = vars(type(fn)).get("__call__", fn), fn
        if isinstance(function, FunctionType):
            function = inspect.unwrap(function)
            if not is_library(function):
                summary = self.world.summary(function, owner)
                if summary is None:  # MindSpore did not parse it, so it is not called
                    return replace(_join(self.fresh(), *everything), known=None)
                return self.apply(
                    summary,
                    [*([_NOTHING] if owner is not None else []), *args],
                    words,
                    node,
                    first,
                    _NOTHING,
                )
        return self.library(fn, node, everything)

    def refuse_writer(self, fn: Any, name: str, node: ast.Call, everything: list[_Value]) -> None:
        """Raise where a function, primitive or layer of MindSpore writes into its argument."""
        called = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        names = {name, called}
        if names & _ASSIGNMENTS and everything and everything[0].stores <= {_CAPTURED}:
            return  # to a Parameter
        if _REWRITTEN in self.file:
            return  # by mindspore.amp, with branches that are not taken; see `refuse_left`
        if (
            names & _ASSIGNMENTS
            or any(map(_INPLACE_FUNCTION.match, names))
            or (called.endswith("_") and not called.startswith("_") and called not in _NO_WRITERS)
            or (getattr(fn, "inplace", False) is True)
            or self.asks_in_place(fn, node)
        ):
            raise _Refused(
                f"{self.where(node)} writes in place, by an option or a function of MindSpore, and "
                "the derivatives of that are wrong there. Use what returns a new Tensor: without "
                "`inplace=True`, without the underscore, `y = y + x`."
            )

    def asks_in_place(self, fn: Any, node: ast.Call) -> bool:
        """Whether the option `inplace` is given, and perhaps true."""
        given = [word.value for word in node.keywords if word.arg == "inplace"]
        if not given and isinstance(fn, FunctionType) and "inplace" in fn.__code__.co_varnames:
            position = fn.__code__.co_varnames.index("inplace")
            given = node.args[position : position + 1] if position < fn.__code__.co_argcount else []
        if not given:
            return False
        if isinstance(given[0], ast.Constant):
            return bool(given[0].value)
        if (
            isinstance(given[0], ast.Attribute)
            and isinstance(given[0].value, ast.Name)
            and self.owner is not None
        ):
            return bool(getattr(self.owner, given[0].attr, True))
        return True

    def library(self, fn: Any, node: ast.Call, everything: list[_Value]) -> _Value:
        """A function, primitive, layer or class of MindSpore, or of Python."""
        name = getattr(fn, "__name__", None) or type(fn).__name__
        self.refuse_writer(fn, name, node, everything)
        owner = getattr(fn, "__self__", None)
        if (
            fn is getattr
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and everything[0].known
        ):
            return _join(
                *(self.attribute(holder, str(node.args[1].value)) for holder in everything[0].known)
            )
        if fn is super:
            return (
                _Value(known=(_super(self.fn, self.owner),)) if self.owner is not None else _UNKNOWN
            )
        if fn in (list, tuple, reversed, iter, sorted, set, enumerate, zip):
            out = _join(*everything) if everything else _NOTHING
            return replace(out, known=_listed(fn, everything), items=True, stale="")
        if fn in (max, min, next, map, filter):
            return self.unknown(node, everything) if fn in (map, filter) else _join(*everything)
        if isinstance(owner, list | tuple | dict) and isinstance(node.func, ast.Attribute):
            if name in _STORES:
                return self.unknown(node, everything)
            return _Value(
                _join(*everything, self.object(owner)).stores,
                (owner,) if name == "values" else None,
                True,
            )
        called = [
            item for value in everything for item in value.known or () if _runs_user_code(item)
        ]
        if isinstance(fn, type) and not is_library(fn):
            return self.unknown(node, everything)
        if called or (
            isinstance(fn, nn.Cell) and any(_runs_user_code(cell) for cell in fn.cells())
        ):
            return self.unknown(node, everything)
        if (
            name.lower().replace("_ext", "").rstrip("_") in _VIEWS
            or name in ("Identity", "SequentialCell")
            or (name.lower().startswith(("dropout", "flatten", "unflatten", "identity")))
        ):
            out = replace(_join(*everything) if everything else _NOTHING, known=None)
            return replace(out, items=True, parts=True) if name.rstrip("_") in _PARTS else out
        if not any(value.stores for value in everything) and isinstance(
            fn, BuiltinFunctionType | type
        ):
            return _NOTHING
        return self.fresh()

    def apply(
        self,
        summary: _Summary,
        args: list[_Value],
        words: dict,
        node: ast.Call,
        first: int,
        callee: _Value,
    ) -> _Value:
        """The call of a function that was followed."""
        bound = dict(zip(summary.names, args, strict=False))
        rest = [
            *args[len(summary.names) :],
            *(value for name, value in words.items() if name not in summary.names),
        ]
        bound.update((name, value) for name, value in words.items() if name in summary.names)
        if any(isinstance(arg, ast.Starred) for arg in node.args) or rest:
            everything = _join(*args, *words.values()) if args or words else _NOTHING
            bound = dict.fromkeys(summary.names, everything)
        for name, where in summary.writes.items():
            value = bound.get(name, _NOTHING)
            others = [*(v for n, v in bound.items() if n != name), *self.temporaries[:first]]
            if any(self.meet(value.stores, other.stores) for other in others):
                raise _Refused(
                    f"{where} overwrites an argument that the call {self.where(node)} uses in "
                    "another place too. Write it out of place: `y = y + x` for `y += x`."
                )
            self.write(value, node, None)
        stores: frozenset = callee.stores
        for store in summary.returned.stores:  # names of parameters, or `_CAPTURED`
            stores |= (
                frozenset({store}) if store == _CAPTURED else bound.get(store, _NOTHING).stores
            )
        known = summary.returned.known
        return _join(self.fresh(), replace(summary.returned, stores=stores, known=known))


def _one_of(holder: _Value, known: tuple | None) -> _Value:
    """An item of a container, where it is one of these objects."""
    if not known or any(isinstance(item, Tensor) for item in known):
        known = None
    elif all(isinstance(item, _NUMBERS) for item in known):
        return _NOTHING
    items = known is not None and all(isinstance(item, list | tuple | dict) for item in known)
    return replace(holder, known=known, items=items, shared=False, parts=False)


def _merged(envs: list[_Env]) -> _Env | None:
    if not envs:
        return None
    return {
        name: _join(*(env[name] for env in envs if name in env))
        for name in dict.fromkeys(itertools.chain.from_iterable(envs))
    }


def _items(holder: Any) -> list | None:
    """The items of a container; None for what is none."""
    if isinstance(holder, dict):
        return list(holder.values())
    if isinstance(holder, list | tuple | nn.CellList | nn.SequentialCell):
        return list(holder)
    return None


def _listed(fn: Any, values: list[_Value]) -> tuple | None:
    """What enumerate(), zip(), list(), ... give, where the items are known: a list of them, in no
    certain order.
    """
    held = [
        _items(value.known[0]) if value.known and len(value.known) == 1 else None
        for value in values
    ]
    if not held or (fn is not zip and held[0] is None):
        return None
    if fn is zip:
        length = min((len(items) for items in held if items is not None), default=0)
        return (
            (
                [
                    tuple(items[n] if items is not None else None for items in held)
                    for n in range(length)
                ],
            )
            if (all(items is not None for items in held))
            else None
        )
    items = held[0] or []
    return ([(number, item) for number, item in enumerate(items)],) if fn is enumerate else (items,)


def _runs_user_code(item: Any) -> bool:
    if isinstance(item, _Nested):
        return True
    if isinstance(item, nn.Cell):
        return not is_library(type(item)) or any(_runs_user_code(cell) for cell in item.cells())
    return isinstance(item, FunctionType | MethodType) and not is_library(
        getattr(item, "__func__", item)
    )


def _super(fn: FunctionType, owner: Any) -> Any:
    """What super() is in a method."""
    for cls in type(owner).__mro__:
        if (
            fn.__name__ in vars(cls)
            and inspect.unwrap(getattr(vars(cls)[fn.__name__], "__func__", vars(cls)[fn.__name__]))
            is fn
        ):
            return super(cls, owner)
    return super(type(owner), owner)
