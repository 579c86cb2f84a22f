"""What is the same text to Python and to MindSpore, and means something else: default values, functions
that see a variable which is set again later, lists and dicts under two names.

MindSpore evaluates the default of a parameter anew, where the function is compiled; a function inside
another sees the variables around it as they were where it was written; and a list is a value, so that
what one name does to it another does not see. Defaults are put right. The others are refused: MindSpore
compiles them without a word into another program, its own `jit` as well.
"""

from __future__ import annotations

import ast
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from mindspore_hessian._errors import NotCompilableError
from mindspore_hessian.core import source

_Function = ast.FunctionDef | ast.Lambda
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_names = itertools.count(1)


# --- default values -------------------------------------------------------------------------------


def with_defaults(
    fn: FunctionType, tree: ast.AST, place: Callable[[ast.AST, ast.AST], ast.AST]
) -> ast.AST:
    """The tree of a function with the default values that it has, in the place of their text.

    Args:
        place: ``place(new, old)`` gives a node the place of another.
    """
    found = _top(tree)
    if found is None or not (fn.__defaults__ or fn.__kwdefaults__):
        return tree
    if all(_says(fn, node, value) for node, value in _defaults(fn, found)):
        return tree
    tree = copy.deepcopy(tree)
    found = _top(tree)
    assert found is not None
    given = found.args
    given.defaults = [
        _node(fn, node, value, place)
        for node, value in zip(given.defaults, fn.__defaults__ or (), strict=False)
    ]
    named = fn.__kwdefaults__ or {}
    given.kw_defaults = [
        node if node is None else _node(fn, node, named.get(arg.arg), place)
        for arg, node in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return tree


def _top(tree: ast.AST) -> ast.FunctionDef | ast.Lambda | None:
    return next((node for node in ast.walk(tree) if isinstance(node, _Function)), None)


def _defaults(fn: FunctionType, node: _Function) -> Iterator[tuple[ast.expr, Any]]:
    yield from zip(node.args.defaults, fn.__defaults__ or (), strict=False)
    named = fn.__kwdefaults__ or {}
    for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if default is not None:
            yield default, named.get(arg.arg)


def _says(fn: FunctionType, node: ast.expr, value: Any) -> bool:
    """Whether the text of a default gives its value where MindSpore reads it."""
    if isinstance(node, ast.Name):
        code = fn.__code__
        own = node.id in (*code.co_freevars, *code.co_varnames)
        return not own and _is(fn.__globals__.get(node.id, _names), value)
    try:
        return _is(ast.literal_eval(node), value)
    except (ValueError, TypeError, SyntaxError):
        return False


def _is(one: Any, other: Any) -> bool:
    return one is other or (
        _is_literal(one) and type(one) is type(other) and repr(one) == repr(other)
    )


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_literal, value))
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str)


def _node(fn: FunctionType, node: ast.expr, value: Any, place: Callable) -> Any:
    if _says(fn, node, value):
        return node
    if _is_literal(value):
        new: ast.expr = ast.parse(repr(value), mode="eval").body
    else:  # a name of ours among the function's globals, which `forget` takes away
        name = f"_mindspore_hessian_default_{next(_names)}"
        fn.__globals__[name] = value
        _lent.append((fn.__globals__, name))
        new = ast.Name(name, ast.Load())
    for part in ast.walk(new):
        if isinstance(part, ast.expr):
            place(part, node)
    return new


def check_defaults(fn: FunctionType, tree: ast.AST) -> None:
    """Raise where the text of a default gives another value now than the function has; for functions
    in the user's own graph, whose tree cannot be changed.

    Raises:
        NotCompilableError: it names the function and the text.
    """
    found = _top(tree)
    for node, value in _defaults(fn, found) if found is not None else ():
        if any(isinstance(part, ast.Call | ast.Await | ast.Yield) for part in ast.walk(node)):
            continue  # what it would give cannot be known without calling it
        try:
            now = eval(compile(ast.Expression(node), "<default>", "eval"), fn.__globals__)
        except (
            Exception
        ):  # a name that is no global: MindSpore does not find it either, and says so
            continue
        if not _is(now, value):
            raise NotCompilableError(
                f"{_line(fn, node)}: the default `{ast.unparse(node)}` was another value when the "
                "function was made, and in your own graph MindSpore takes what it is now. Pass the "
                "argument in the call, or call the transform outside of the graph."
            )


_lent: list[tuple[dict, str]] = []


def forget() -> None:
    """Take away the names that defaults were given; when the compilation is over."""
    while _lent:
        space, name = _lent.pop()
        space.pop(name, None)


# --- variables that are set again -----------------------------------------------------------------


@dataclass
class _Inner:
    """A function inside another: where it was made, and which variables it reads."""

    node: ast.AST
    made: int
    loops: tuple[int, ...]
    free: set[str]
    name: str | None = None  # what it is kept as
    kept: bool = False  # in a container, or given back
    uses: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


class _Scope(ast.NodeVisitor):
    """The events of a function in the order of its text: what is set, and which functions are made and
    used.
    """

    def __init__(self, node: _Function):
        self.at, self.loops = 0, ()  # type: tuple[int, tuple[int, ...]]
        self.sets: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        self.inner: list[_Inner] = []
        self.parents: dict[ast.AST, ast.AST] = {
            child: parent for parent in ast.walk(node) for child in ast.iter_child_nodes(parent)
        }
        for arg in _parameters(node):
            self._set(arg)
        body = node.body if isinstance(node.body, list) else [node.body]
        for statement in body:
            self.visit(statement)

    def _now(self) -> tuple[int, tuple[int, ...]]:
        self.at += 1
        return self.at, self.loops

    def _set(self, name: str) -> None:
        self.sets.setdefault(name, []).append(self._now())

    # what is evaluated comes before what is set
    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self._use(node.target.id, node.target)
        self.visit(node.target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.loops += (id(node),)
        self.visit(node.target)
        for statement in node.body:
            self.visit(statement)
        self.loops = self.loops[:-1]
        for statement in node.orelse:
            self.visit(statement)

    def visit_While(self, node: ast.While) -> None:
        self.loops += (id(node),)
        self.visit(node.test)
        for statement in node.body:
            self.visit(statement)
        self.loops = self.loops[:-1]

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._set(node.id)
        else:
            self._use(node.id, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inner(node, node.name)
        self._set(node.name)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        parent = self.parents.get(node)
        name = None
        if isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name):
            name = parent.targets[0].id
        kept = name is None and not _passes(node, self.parents)
        self._inner(node, name, kept)

    def _comprehension(self, node: Any) -> None:
        """Its variables are set at every turn."""
        self.loops += (id(node),)
        for part in node.generators:
            self.visit(part.iter)
            self.visit(part.target)
            for test in part.ifs:
                self.visit(test)
        for part in ("key", "value", "elt"):
            if hasattr(node, part):
                self.visit(getattr(node, part))
        self.loops = self.loops[:-1]

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _inner(self, node: _Function, name: str | None, kept: bool = False) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        at, loops = self._now()
        self.inner.append(_Inner(node, at, loops, free_names(node), name, kept))

    def _use(self, name: str, node: ast.AST) -> None:
        for one in self.inner:
            if one.name == name:
                one.uses.append(self._now())
                one.kept = one.kept or not _passes(node, self.parents)


def _parameters(node: Any) -> Iterator[str]:
    a = node.args
    for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
        if arg is not None:
            yield arg.arg


_KEEPERS = frozenset(("append", "insert", "extend", "add", "setdefault", "partial"))
_MAKERS = frozenset(
    (
        *("vmap", "grad", "value_and_grad", "jit", "partial", "jvp", "vjp", "jacfwd", "jacrev"),
        *("GradOperation", "hessian", "jacobian", "laplacian", "hessian_diag", "recompute"),
    )
)


def _passes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a function is called here, or handed to a call that is over when the statement is."""
    parent = parents.get(node)
    if isinstance(parent, ast.keyword):
        node, parent = parent, parents.get(parent)
    if not isinstance(parent, ast.Call):
        return False
    if parent.func is node:
        return True
    called = parent.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name in _KEEPERS:
        return False
    return name not in _MAKERS or _passes(parent, parents)  # what vmap(f) gives keeps f


def free_names(node: Any) -> set[str]:
    """The names that a function reads and does not set, at any depth."""
    own, read = set(_parameters(node)), set()
    waiting = [*node.body] if isinstance(node.body, list) else [node.body]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Function):
            read |= free_names(one)
            if isinstance(one, ast.FunctionDef):
                own.add(one.name)
            waiting += [d for d in (*one.args.defaults, *one.args.kw_defaults) if d is not None]
            continue
        if isinstance(one, ast.Name):
            (own if isinstance(one.ctx, ast.Store) else read).add(one.id)
        if isinstance(one, ast.Nonlocal | ast.Global):
            read |= set(one.names)
        waiting += ast.iter_child_nodes(one)
    return read - own


def _late(node: _Function) -> tuple[str, ast.AST] | None:
    """A variable that a function inside `node` sees as it was, and Python as it is when it is called."""
    scope = _Scope(node)
    for inner in scope.inner:
        names = _through(inner, scope.inner)
        for name in sorted(names & scope.sets.keys()):
            if name != inner.name and any(
                _seen_late(inner, at, loops) for at, loops in scope.sets[name]
            ):
                return name, inner.node
    return None


def _through(inner: _Inner, others: list[_Inner]) -> set[str]:
    """What it reads itself, and by functions beside it that it calls."""
    names, known = set(), {inner.name}
    waiting = [inner]
    while waiting:
        one = waiting.pop()
        names |= one.free
        for other in others:
            if other.name in one.free and other.name not in known:
                known.add(other.name)
                waiting.append(other)
    return names


def _seen_late(inner: _Inner, at: int, loops: tuple[int, ...]) -> bool:
    """Whether it is used after a variable was set, which was after it was made."""
    shared = [loop for loop in loops if loop in inner.loops]
    if inner.kept and (at > inner.made or shared):
        return True
    for used, around in inner.uses:
        if inner.made < at < used:
            return True
        again = [loop for loop in loops if loop in around]
        if again and not shared:  # made before a loop in which the variable is set and it is used
            return at > inner.made
        if shared and used < inner.made:  # that of the turn before
            return True
    return False


# --- lists and dicts under two names --------------------------------------------------------------

_CHANGES = frozenset(("append", "extend", "insert", "pop", "setdefault", "popitem"))
_CHANGES_ALONE = frozenset(("remove", "clear", "update", "reverse", "sort"))  # as a statement
_CONTAINERS = (ast.List, ast.Dict, ast.Set, *_COMPREHENSIONS)


def _aliased(node: ast.FunctionDef | ast.Lambda) -> tuple[str, str, ast.AST] | None:
    """A list or dict that is changed under one name and read under another: (changed, read, where)."""
    if isinstance(node, ast.Lambda):
        return None
    containers = _containers(node)
    order = {id(one): place for place, one in enumerate(_in_order(node))}
    aliases = [
        (one, other, whole, order[id(statement)])
        for statement in _in_order(node)
        if isinstance(statement, ast.Assign)
        for one, other, whole in _same(statement)
    ]
    for changed, how, where in _changed_names(node):
        for one, other, whole, made in aliases:
            if changed not in ((one, other) if whole else (one,)) or made > order[id(where)]:
                continue
            if how == "store" and not {one, other} & containers:
                continue
            read = other if changed == one else one
            for use in _in_order(node):
                if (
                    isinstance(use, ast.Name)
                    and use.id == read
                    and isinstance(use.ctx, ast.Load)
                    and order[id(use)] > order[id(where)]
                ):
                    return changed, read, where
    return None


def _same(statement: ast.Assign) -> Iterator[tuple[str, str, bool]]:
    """Pairs of names that are one object after an assignment, or the first a part of the second."""
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    base, whole = _base(statement.value), isinstance(statement.value, ast.Name)
    for one, other in itertools.pairwise(names):
        yield one, other, True
    if base is not None:
        for one in names:
            yield one, base, whole


def _changed_outside(fn: FunctionType, node: ast.FunctionDef) -> tuple[str, ast.AST] | None:
    """A list or dict that is not the function's own, and is changed in it: an argument, one of the
    function around, a global.
    """
    containers, own = _containers(node), set(_Scope(node).sets)
    for inner in ast.walk(node):
        if not isinstance(inner, _Function):
            continue
        free, given = free_names(inner), set(_parameters(inner))
        for changed, how, where in _changed_names(inner):
            if how == "method" and changed in given - _containers(inner):
                return changed, where
            if changed in free:
                there = own if inner is not node else ()
                if changed in there and (how == "method" or changed in containers):
                    return changed, where
                if changed not in there and isinstance(_captured(fn, changed), list | dict | set):
                    return changed, where
    return None


def _captured(fn: FunctionType, name: str) -> Any:
    """What a free name of a function is."""
    if name in fn.__code__.co_freevars:
        cell = (fn.__closure__ or ())[fn.__code__.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:
            return None
    return fn.__globals__.get(name)


def _in_order(node: ast.AST) -> list[ast.AST]:
    """Nodes in the order in which they are evaluated, those of functions inside left out."""
    children = [*ast.iter_child_nodes(node)]
    if isinstance(node, ast.Assign | ast.AugAssign):  # the value is there before the target
        children = [node.value, *(child for child in children if child is not node.value)]
    found: list[ast.AST] = []
    for child in children:
        if not isinstance(child, _Function):
            found += [child, *_in_order(child)]
    return found


def _containers(node: ast.AST) -> set[str]:
    """Names that are bound to a list, dict or set."""
    return {
        target.id
        for one in ast.walk(node)
        if isinstance(one, ast.Assign)
        and (
            isinstance(one.value, _CONTAINERS)
            or (
                isinstance(one.value, ast.Call)
                and isinstance(one.value.func, ast.Name)
                and one.value.func.id in ("list", "dict", "set")
            )
        )
        for target in one.targets
        if isinstance(target, ast.Name)
    }


def _base(value: ast.expr) -> str | None:
    """The name of which an expression is the object, or a part."""
    if isinstance(value, ast.Name):
        return value.id
    while isinstance(value, ast.Subscript):
        value = value.value
        if isinstance(value, ast.Name):
            return value.id
    return None


def _changed_names(node: ast.AST) -> Iterator[tuple[str, str, ast.AST]]:
    """Names whose object is changed: by a method of lists and dicts, or by setting an entry."""
    for one in _in_order(node):
        if isinstance(one, ast.Expr):
            name = _method_of(one.value, _CHANGES_ALONE)
        elif isinstance(one, ast.AugAssign) and isinstance(one.value, ast.List | ast.ListComp):
            name = one.target.id if isinstance(one.target, ast.Name) else None
        else:
            name = _method_of(one, _CHANGES)
        if name is not None:
            yield name, "method", one
        if isinstance(one, ast.Subscript) and isinstance(one.ctx, ast.Store):
            name = _base(one)
            if name is not None:
                yield name, "store", one


def _method_of(node: ast.AST, methods: frozenset[str]) -> str | None:
    """The name whose method, one of these, is called."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and isinstance(node.func.value, ast.Name)
    ):
        return node.func.value.id
    return None


# --- what is refused ------------------------------------------------------------------------------


def check(fn: FunctionType, tree: ast.AST) -> None:
    """Raise where MindSpore compiles another program than Python runs.

    Raises:
        NotCompilableError: with the line, and what to write.
    """
    found = _top(tree)
    if found is None:
        return
    if isinstance(found, ast.FunctionDef) and (outside := _changed_outside(fn, found)):
        changed, where = outside
        raise NotCompilableError(
            f"{_line(fn, where)} changes {changed!r}, a list or dict that is an argument, global, or of "
            "the function around, and in MindSpore stays as it was. Return what is new instead."
        )
    for node in ast.walk(found):
        if not isinstance(node, _Function):
            continue
        if late := _late(node):
            name, where = late
            raise NotCompilableError(
                f"{_line(fn, where)}: a function inside another reads {name!r}, which is set again "
                "before it is called. Python sees the new value, MindSpore the old one. Make it an "
                f"argument of the inner function, or a default (`{name}={name}`) to keep the old value."
            )
        if aliased := _aliased(node):
            changed, read, where = aliased
            raise NotCompilableError(
                f"{_line(fn, where)} changes the list or dict {changed!r}, which is read again as "
                f"{read!r}. To MindSpore these are two, and the other one stays as it was. Use one "
                "name, or copy it (list(...), dict(...)) where two are meant."
            )


def _line(fn: FunctionType, node: ast.AST) -> str:
    first = fn.__code__.co_firstlineno
    return f"{source.where(fn)}, line {first - 1 + getattr(node, 'lineno', 1)}"
