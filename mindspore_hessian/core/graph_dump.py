"""The compiled graph as MindSpore writes it to a file: its primitives, the user's lines, what
depends on what.

MindSpore writes no such file through Python, but does so while it compiles when
``MS_DEV_SAVE_GRAPHS`` is set. The file is read defensively: what is not understood counts as
depending on everything.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore as ms

from mindspore_hessian import _compat, _errors
from mindspore_hessian.core import source

CONTROL = "Switch"  # stands for everything that a data-dependent `if` or `while` brings
_CONTROL = ("Switch", "Environ", "Partial")
_PLUMBING = frozenset(
    {
        "MakeTuple",
        "TupleGetItem",
        "MakeList",
        "ListGetItem",
        "Return",
        "Depend",
        "Load",
        "UpdateState",
        "fake_bprop",
        "mutable",
        "call",
    }
)
# argument positions in which a primitive is constant between kinks, so that nothing is
# differentiated through them
_EVERY = frozenset(range(9))
_STEPS = {
    "ReluGrad": {1},
    "ReLU6Grad": {1},
    "LeakyReLUGrad": {1},
    "LeakyReLUGradExt": {1},
    "HShrinkGrad": {1},
    "MaximumGrad": {0, 1},
    "MinimumGrad": {0, 1},
    "MaxPoolGrad": {0, 1},
    "Select": {0},
    "MaskedFill": {1},
    **dict.fromkeys(
        (
            "Sign",
            "Floor",
            "Ceil",
            "Round",
            "Trunc",
            "Equal",
            "NotEqual",
            "Less",
            "LessEqual",
            "Greater",
            "GreaterEqual",
            "LogicalAnd",
            "LogicalOr",
            "LogicalNot",
            "IsNan",
            "IsInf",
            "IsFinite",
            "Argmax",
            "ArgMaxExt",
            "Argmin",
            "ZerosLike",
            "OnesLike",
            "ZerosLikeExt",
            "OnesLikeExt",
            "Shape",
            "StopGradient",
        ),
        _EVERY,
    ),
}


_PREFIX = "mindspore_hessian_audit_"


@contextlib.contextmanager
def saved() -> Iterator[Path]:
    """While MindSpore compiles inside, it writes its graphs into the folder, which is removed at
    the end.
    """
    _remove_leftovers()
    folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_")
    try:
        with _compat.graphs_saved_in(folder, "optimize"):
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """The folders of processes that were killed as MindSpore wrote."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*_*"):
        number = path.name[len(_PREFIX) :].partition("_")[0]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def lines_of(name: str, compile_it: Callable[[], Any]) -> tuple[list[str], Exception | None]:
    """The user's lines that a primitive comes from, in a graph that `compile_it` compiles, or those
    of the primitive whose backward it is; and the error, where that failed."""
    error = None
    with saved() as folder:
        try:
            compile_it()
        except Exception as err:
            error = err
        graph = read(folder)
    return origin(name, graph.lines() if graph else {}), error


def origin(name: str, lines: dict[str, list[str]]) -> list[str]:
    """The lines of a primitive, or where MindSpore has none, as in a rule in Python, of that whose
    backward it is.
    """
    forward = [
        other
        for other in lines
        if re.match(
            rf"{re.escape(re.sub('(V[0-9]+|Ext)$', '', other))}(V\d+|Ext)?(Grad|Backprop|Backward)",
            name,
        )
    ]
    return lines.get(name) or lines.get(max(forward, key=len, default="")) or []


def primitives(compile_it: Callable[[], Any]) -> set[str]:
    """The primitives of a graph that `compile_it` compiles."""
    with saved() as folder:
        compile_it()
        graph = read(folder)
    return {public_name(node.primitive) for node in graph.nodes.values()} if graph else set()


@dataclass
class Node:
    """One call of a primitive.

    Attributes:
        primitive: its name; ``call`` for the call of a subgraph.
        names: what each argument refers to.
        lines: the user's lines that it comes from.
        missing: for a gradient that MindSpore could not make, the primitive that has no derivative.
        made_for: the primitive whose derivative this node is a part of.
    """

    primitive: str
    names: list[list[str]]
    lines: list[str] = field(default_factory=list)
    missing: str = ""
    made_for: str = ""


@dataclass
class Graph:
    """The optimised graph: its nodes in order, by name; several subgraphs where there is control
    flow.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    returned: list[str] = field(default_factory=list)
    subgraphs: int = 0
    inputs: list[str] = field(default_factory=list)  # what stands for the arguments, in order
    weights: dict[str, str] = field(
        default_factory=dict
    )  # a Parameter's name -> what stands for it

    def lines(self) -> dict[str, list[str]]:
        """The user's lines of every primitive of the graph, without the compiler's own plumbing."""
        found: dict[str, list[str]] = {}
        for node in self.nodes.values():
            name = public_name(node.primitive)
            if name:
                here = found.setdefault(name, [])
                here += [line for line in node.lines if line not in here]
        return found

    def missing(self) -> list[str]:
        """The primitives without a derivative."""
        return list(dict.fromkeys(node.missing for node in self.nodes.values() if node.missing))

    def references(self, positions: tuple[int, ...], weights: list[str]) -> set[str]:
        """What stands for some of the inputs, and for the weights of these names."""
        return {self.inputs[position] for position in positions if position < len(self.inputs)} | {
            self.weights[name] for name in weights if name in self.weights
        }

    def differentiated(self, variables: set[str]) -> set[str]:
        """The primitives of a gradient's graph through which a further derivative goes."""
        depends = self._depends(variables)
        return {
            public_name(node.primitive)
            for node in self.nodes.values()
            if self.subgraphs != 1 or any(depends.intersection(names) for names in node.names)
        } - {""}

    def constant_outputs(self, variables: set[str]) -> list[bool]:
        """For each output of a gradient's graph, whether it is certainly constant between kinks."""
        if self.subgraphs != 1:
            return []
        depends, out = self._depends(variables), self.returned
        while (
            len(out) == 1
            and out[0] in self.nodes
            and self.nodes[out[0]].primitive in ("Depend", "MakeTuple")
        ):
            node = self.nodes[out[0]]
            if node.primitive == "MakeTuple":
                return [not depends.intersection(names) for names in node.names]
            out = node.names[0]
        return []

    def _depends(self, variables: set[str]) -> set[str]:
        depends = set(variables)
        for name, node in self.nodes.items():  # in the order of computation
            steps = _STEPS.get(node.primitive, ())
            if any(
                place not in steps and depends.intersection(names)
                for place, names in enumerate(node.names)
            ):
                depends.add(name)
        return depends


def public_name(primitive: str) -> str:
    """A primitive's name as a report shows it: all control flow under one name, "" for the
    compiler's plumbing.
    """
    if primitive.startswith(_CONTROL):
        return CONTROL
    return "" if primitive in _PLUMBING else primitive


_PARAMETER = re.compile(r"^(%para\d+_[^\s:]*)\s*: (<.*)$", re.MULTILINE)
_SEQUENCE = re.compile(r"_(\d+)\.ir$")
_NODE = re.compile(r"^  (?:(%[^(\s]+)\(.*?\) = |(?=Return\())(.*)$", re.DOTALL)
_OPERATION = re.compile(r"^(?:PrimFunc_|S_Prim_|DoSignaturePrimitive::S-Prim-)?([A-Za-z_]\w*)\(")
_REFERENCE = re.compile(r"%[^\s,()\[\]{}]+")
_PLACE = re.compile(r"# In file (.+?):(\d+)(?:~\d+)?(?:[,/]|$)")
_MISSING = re.compile(r"Primitive (\w+)'s bprop not defined")
_MADE_FOR = re.compile(r'forward_node_name: "(\w+)_\d+"')


def read(folder: Path) -> Graph | None:
    """The last optimised graph that MindSpore wrote into a folder of `saved`; None where it wrote
    none.
    """
    found = [
        (int(number[1]), path)
        for path in folder.rglob("*.ir")
        if (number := _SEQUENCE.search(path.name)) and re.match(r"\d+_optimize_\d", path.name)
    ]
    return parse(max(found)[1].read_text(errors="replace")) if found else None


def parse(text: str) -> Graph:
    """MindSpore's text of a graph."""
    graph, entry = Graph(), re.search(r"IR entry: @(\S+)", text)
    for name, kind in _PARAMETER.findall(text.split("\nsubgraph @", 1)[0]):
        key = re.search(r"ref_key=([^,>]+)", kind)
        if key:
            graph.weights[key[1]] = name
        else:
            graph.inputs.append(name)
    for block in re.split(r"^subgraph @", text, flags=re.MULTILINE)[1:]:
        graph.subgraphs += 1
        prefix = f"{graph.subgraphs}:"  # numbers of nodes begin anew in every subgraph
        for item in re.split(r"\n(?=  (?:%|Return\())", block.split("\n}", 1)[0])[1:]:
            head, _, tail = item.partition("\n      : ")
            match = _NODE.match(head)
            if match is None:
                continue
            name, rest = match[1], match[2]
            operation = _OPERATION.match(rest)
            names = [
                [n if n.startswith("%para") else prefix + n for n in _REFERENCE.findall(argument)]
                for argument in _arguments(rest)
            ]
            if operation and operation[1] == "Return":
                if entry is None or block.startswith(entry[1]):
                    graph.returned = names[0] if names else []
                continue
            missing, made_for = _MISSING.search(rest), _MADE_FOR.search(rest)
            graph.nodes[prefix + name] = Node(
                operation[1] if operation else "call",
                names,
                _user_lines(tail),
                missing[1] if missing else "",
                made_for[1] if made_for else "",
            )
    return graph


def _arguments(rest: str) -> list[str]:
    """The arguments of ``Name(a, b, ...)``, split at the commas outside of brackets."""
    out: list[str] = []
    depth = start = 0
    for place, letter in enumerate(rest):
        if letter in "([{":
            depth += 1
            if depth == 1:
                start = place + 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0:
                return [*out, rest[start:place]] if rest[start:place].strip() else out
        elif letter == "," and depth == 1:
            out.append(rest[start:place])
            start = place + 1
    return [rest]


def _user_lines(text: str) -> list[str]:
    """The innermost line of the user's code of each stack, as ``file.py:12``."""
    found: list[str] = []
    innermost = ""
    for line in (*text.split("\n"), ""):
        if place := _PLACE.search(line):
            innermost = _user_line(place[1], int(place[2])) or innermost
        elif innermost:
            found.append(innermost)
            innermost = ""
    return list(dict.fromkeys(found))


_LIBRARIES = tuple(
    os.path.join(os.path.dirname(file), "") for file in (ms.__file__, _errors.__file__)
)


def _user_line(path: str, line: int) -> str:
    """``file.py:12``, or "" for a file of MindSpore or of this library."""
    if path.startswith(_LIBRARIES):
        return ""
    if path in source._ours:
        lambdas = [code for code, file in source._lambda_files.items() if file == path]
        if not lambdas:
            return ""
        path, line = lambdas[0].co_filename, lambdas[0].co_firstlineno
    return f"{os.path.basename(path)}:{line}"
