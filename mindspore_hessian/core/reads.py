"""What a piece of Python code may read, by its bytecode: the globals and closure variables, and
names of attributes.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_CELLS = {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}
_OF_UNKNOWN = {*_ATTRIBUTES, "LOAD_SUPER_ATTR", "IMPORT_FROM"}


class Chain(NamedTuple):
    """``name.a.b`` as it stands in the code: the variable, and the attributes that are read of it
    at once.
    """

    name: str
    attributes: tuple[str, ...]


class Reads(NamedTuple):
    """What a code object, and the functions defined inside it, read.

    Attributes:
        globals: chains that begin at a global.
        cells: chains that begin at a variable of an enclosing function.
        imports: modules imported inside.
        attributes: names of attributes read of anything else (of ``self``, of a result).
    """

    globals: tuple[Chain, ...]
    cells: tuple[Chain, ...]
    imports: tuple[str, ...]
    attributes: tuple[str, ...]


def _steps(code: CodeType) -> Iterator[tuple[str, str]]:
    """(operation, name) in order; an empty operation between steps of which the second can be
    jumped to.
    """
    for step in dis.get_instructions(code):
        if step.is_jump_target:
            yield "", ""
        if step.opname != "EXTENDED_ARG":
            yield step.opname, step.argval if isinstance(step.argval, str) else ""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _steps(const)


@functools.lru_cache(maxsize=4096)
def reads(code: CodeType) -> Reads:
    """See `Reads`."""
    found: dict[str, dict] = {"globals": {}, "cells": {}, "imports": {}, "attributes": {}}
    kind, chain = "", [""]
    for operation, name in (*_steps(code), ("", "")):
        if operation in _ATTRIBUTES and kind:
            chain.append(name)
            continue
        if kind:
            found[kind][Chain(chain[0], tuple(chain[1:]))] = None
        kind = "globals" if operation in _GLOBALS else "cells" if operation in _CELLS else ""
        chain = [name]
        if operation in _OF_UNKNOWN:
            found["attributes"][name] = None
        elif operation == "IMPORT_NAME":
            found["imports"][name] = None
    return Reads(*(tuple(names) for names in found.values()))
