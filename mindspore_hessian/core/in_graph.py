"""The transforms inside the user's own graphs (``@jit`` functions, ``Cell.construct``), where
nothing is cached.

MindSpore's parser follows ``__wrapped__``: each public function carries there a twin for graphs,
generated from its signature. As MindSpore compiles the user's graph, the twin has what Python
computes outside computed in Python, too: the same checks, the same Program, of stand-ins for the
Tensors, of whose shape and dtype a graph tells enough. So the differentiated function must be known
then: defined outside of the graph, or a method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from mindspore_hessian._compat import GRADIENT_WITH_NAMES
from mindspore_hessian.core import source
from mindspore_hessian.core.captures import GRAPH, Captures

FUNCTIONS = ("fn", "forward", "loss")  # the names of parameters that are functions to differentiate
WEIGHTS = "weights"


# --- what the graph tells: MindSpore compiles these functions -------------------------------------


def described(value):
    """What is known of a value while a graph compiles, as constants."""
    if isinstance(value, Tensor):
        return ("tensor", value.shape, value.dtype)
    if isinstance(value, (tuple, list)):  # noqa: UP038 -- compiled by MindSpore
        items = ()
        for item in value:
            items = items + (described(item),)
        if isinstance(value, list):
            return ("list", items)
        return ("tuple", items)
    if isinstance(value, dict):
        items = ()
        for item in value.values():
            items = items + (described(item),)
        return ("dict", tuple(value.keys()), items)
    return ("constant", value)


def _same(x):
    return x


def named(weights):
    """The same for weights; a graph tells the name of a Parameter only with its gradient."""
    if isinstance(weights, Parameter):
        pairs = GRADIENT_WITH_NAMES(_same, (weights,))(1.0)
        return ("parameter", weights.shape, weights.dtype, pairs[0][0])
    if isinstance(weights, (tuple, list)):  # noqa: UP038 -- compiled by MindSpore
        items = ()
        for weight in weights:
            items = items + (named(weight),)
        return ("tuple", items)
    return described(weights)


# --- what Python makes of it ----------------------------------------------------------------------


def stand_in(description: tuple, parameters: dict[str, list[Parameter]] | None = None) -> Any:
    """A value of that description: its Tensors are zeros, its Parameters those of their name where
    there are any.
    """
    kind, *rest = description
    if kind == "constant":
        return rest[0]
    if kind == "dict":
        return {
            name: stand_in(item, parameters) for name, item in zip(rest[0], rest[1], strict=True)
        }
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(stand_in(item, parameters) for item in rest[0])
    shape, dtype, *name = rest
    found = (parameters or {}).get(name[0], []) if name else []
    if len(found) > 1:
        raise ValueError(
            "inside your own graph a weight is known by its name, and the function holds "
            f"{len(found)} Parameters named {name[0]!r}. Give them different names"
        )
    if found:
        return found[0]
    zeros = Tensor(np.zeros(shape, np.float32), dtype)
    return Parameter(zeros, name=name[0]) if name else zeros


def tensors_in(values: Any, tensors: Iterable[Tensor]) -> Callable:
    """``select(values)``: these of the Tensors (stand-ins) in a structure, as MindSpore compiles
    it; one that is not in it, as one that a partial holds, is a constant."""
    places: dict[int, str] = {}

    def number(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            places[id(value)] = path
        for key, item in (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, tuple | list)
            else ()
        ):
            number(item, f"{path}[{key!r}]")

    number(values, "values")
    constants = [tensor for tensor in tensors if id(tensor) not in places]
    names = iter(range(len(constants)))
    items = [places.get(id(tensor)) or f"c{next(names)}" for tensor in tensors]
    return _selector(", ".join([*items, ""]), len(constants))(*constants)


@functools.lru_cache(maxsize=256)
def _selector(items: str, constants: int) -> Callable:
    free = ", ".join(f"c{number}" for number in range(constants))
    return _made(
        f"def make({free}):\n    def select(values):\n        return ({items})\n    return "
        "select\n",
        "select",
    )


def _made(text: str, name: str) -> Callable:
    """``make`` of our own text, which holds names and brackets only, so that MindSpore can read
    what it makes.
    """
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, source.register(text, name), "exec"), space)
    return space["make"]


class Recipe:
    """``build(...)``, which Python runs while a graph compiles. An object: MindSpore's parser reads
    no `build`.
    """

    def __init__(self, build: Callable):
        self.build = build


setattr(Recipe, GRAPH, True)  # what a function captured by it counts by value


@ms.jit_class
class Inside:
    """A graph function that ``recipe.build(...)`` made while MindSpore compiles the user's
    graph.
    """

    def __init__(self, recipe, *given):
        self.call = recipe.build(*given)

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


# --- twins ----------------------------------------------------------------------------------------


def readable_in_graph(eager: Callable, twin: Callable) -> Callable:
    """MindSpore, compiling the user's own graph, reads `twin` in the place of `eager`, which is
    returned.
    """
    eager.__wrapped__ = twin  # type: ignore[attr-defined]
    setattr(eager, GRAPH, True)
    return eager


def twin_of(body: Callable, finish: Callable, values: tuple[str, ...]) -> Callable:
    """The version for graphs of a public function.

    Args:
        body: the function, which Python runs on stand-ins.
        finish: of what it returns, and the stand-ins for `values`, makes the graph function.
        values: the names of its parameters that hold Tensors; the graph function takes a tuple of
            these. Empty: what it returns is called later.
    """
    parameters = inspect.signature(body).parameters
    known = tuple(name for name in parameters if name not in (*values, WEIGHTS))

    def build(description: tuple, names: tuple, *constants: Any) -> Callable:
        arguments = dict(zip(known, constants, strict=True))
        functions = [arguments[name] for name in FUNCTIONS if name in arguments]
        if None in functions:  # of what it does not know, the graph gives None
            raise TypeError(
                "fn must be callable, but got None: inside your own graph, the function to "
                "differentiate must be defined outside of it (a function of the module or a "
                "method, not a def or lambda in the graph)"
            )
        given = stand_in(description)
        if WEIGHTS in parameters:
            arguments[WEIGHTS] = stand_in(
                names, _parameters(functions) if names != ("constant", None) else None
            )
        return finish(body(**arguments, **dict(zip(values, given, strict=True))), given)

    tensors = f"({''.join(f'{name}, ' for name in values)})"
    weights = f"named({WEIGHTS})" if WEIGHTS in parameters else "None"
    made = f"Inside(recipe, described({tensors}), {weights}, {', '.join(known)})"
    text = (
        f"def make(recipe):\n"
        f"    def {body.__name__}({_signature(parameters)}):\n"
        f"        return {made}{f'({tensors})' if values else ''}\n"
        f"    return {body.__name__}\n"
    )
    return _made(text, body.__name__)(Recipe(build))


def _signature(parameters: Any) -> str:
    """The parameters as source text; their defaults are plain values."""
    out = []
    for parameter in parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in out:
            out.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        out.append(parameter.name + default)
    return ", ".join(out)


def _parameters(functions: list) -> dict[str, list[Parameter]]:
    """What the functions can reach, by name."""
    out: dict[str, list[Parameter]] = {}
    for parameter in Captures(*functions).parameters.values():
        out.setdefault(parameter.name, []).append(parameter)
    return out


def twin_of_derived(fn: Any, build: Callable) -> Callable:
    """The version for graphs of a function that a transform of `fn` returns; ``build(args,
    kwargs)`` makes, of stand-ins, the function of ``(args, kwargs)``."""
    recipe = Recipe(lambda description: build(*stand_in(description)))

    def in_graph(*args):
        return Inside(recipe, described((args, {})))((args, {}))

    def with_keywords(*args, **kwargs):
        return Inside(recipe, described((args, kwargs)))((args, kwargs))

    return with_keywords if _takes_keywords(fn) else in_graph


def _takes_keywords(fn: Any) -> bool:
    """Whether `fn` has parameters that one gives by name: MindSpore cannot `vmap` a function that
    takes keywords, so the others get a version without."""
    try:
        signature = inspect.signature(
            fn.construct if isinstance(fn, nn.Cell) else fn, follow_wrapped=False
        )
    except (TypeError, ValueError):  # of C
        return False
    return any(
        p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) or p.default is not p.empty
        for p in signature.parameters.values()
    )
