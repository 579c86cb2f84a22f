"""The source text of the user's functions, which is what MindSpore compiles.

MindSpore reads the file again when it compiles. Two things go wrong there without a word: a file edited since the
import gives another function, and a lambda inside a call cannot be cut out of its line. Both are handled here.
"""
from __future__ import annotations

import ast
import atexit
import contextlib
import dis
import functools
import inspect
import itertools
import linecache
import os
import shutil
import tempfile
import textwrap
from types import CodeType, FunctionType

from mindspore_hessian._errors import NotCompilableError

_numbers = itertools.count(1)
_COMPILER_FLAGS = 0x1FF0000  # the `from __future__` bits of co_flags


def register(text: str, label: str) -> str:
    """Make `text` a file that `inspect` and MindSpore can read; returns its name.

    A real file, since MindSpore logs an error at every compilation for a name that is none. Reading does not depend
    on it: linecache keeps the text.
    """
    name = os.path.join(_folder(), f"{label}_{next(_numbers)}.py")
    with contextlib.suppress(OSError), open(name, "w", encoding="utf-8") as file:
        file.write(text)
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    _ours.add(name)
    return name


_ours: set[str] = set()


@functools.lru_cache(maxsize=1)
def _folder() -> str:
    folder, owner = tempfile.mkdtemp(prefix="mindspore_hessian_"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)
    atexit.register(remove)
    return folder


def is_ours(code: CodeType) -> bool:
    """Whether the code was compiled from a text of ours."""
    return code.co_filename in _ours


def where(fn) -> str:
    """A function as an error names it: name, file and line."""
    code = getattr(fn, "__code__", None)
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def _no_source(fn: FunctionType) -> NotCompilableError:
    return NotCompilableError(
        f"the source of {where(fn)} is out of reach, and MindSpore compiles source text. Functions typed at a plain "
        "Python prompt, passed to `python -c`, or made by exec() have none. Put the function into a .py file or a "
        "notebook cell.")


def _parse(fn: FunctionType) -> ast.Module:
    try:
        lines, _ = inspect.findsource(fn)
        return ast.parse("".join(lines))
    except (OSError, TypeError, IndexError) as err:
        raise _no_source(fn) from err
    except SyntaxError as err:
        raise _changed(fn) from err


def tree_of(fn: FunctionType) -> ast.AST | None:
    """The syntax tree of a function with its lines counted from its own first, or None where there is no source."""
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        return ast.parse(textwrap.dedent(inspect.getsource(fn)))
    return None


def _changed(fn: FunctionType) -> NotCompilableError:
    return NotCompilableError(
        f"the source of {where(fn)} is not what Python runs: the file was edited after the import. MindSpore would "
        "compile the new text. Import the module again (importlib.reload, or restart the kernel).")


def _shape(code: CodeType) -> tuple:
    """What two compilations of the same text share, whatever their place in the file.

    Calls and attributes are left out: CPython compiles ``math.sqrt(x)`` in two ways, by whether it saw the import.
    """
    consts = tuple(_shape(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts)
    steps = tuple((step.opname, step.arg if step.opname in ("BINARY_OP", "COMPARE_OP") else None)
                  for step in dis.get_instructions(code)
                  if not step.opname.startswith(("LOAD_", "CALL", "PRECALL", "PUSH_NULL", "EXTENDED_ARG", "CACHE")))
    return steps, consts, code.co_names, code.co_varnames, code.co_freevars


def _compiled(node: ast.expr | ast.stmt, fn: FunctionType) -> CodeType | None:
    """The code of `node`, compiled where the free variables of `fn` are free."""
    body: list[ast.stmt] = [node] if isinstance(node, ast.stmt) else [ast.Return(node)]
    names = [ast.arg(name) for name in fn.__code__.co_freevars]
    outer = ast.FunctionDef("outer", ast.arguments([], names, None, [], [], None, []), body, [], None)
    if "type_params" in ast.FunctionDef._fields:  # Python 3.12
        outer.type_params = []  # type: ignore[attr-defined]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    flags = fn.__code__.co_flags & _COMPILER_FLAGS
    code = compile(module, "<check>", "exec", flags=flags, dont_inherit=True).co_consts[0]
    return next((const for const in code.co_consts if isinstance(const, CodeType)), None)


def lambda_text(fn: FunctionType) -> str:
    """The text of a lambda, found among those of its line by comparing bytecode."""
    wanted = _shape(fn.__code__)
    for node in ast.walk(_parse(fn)):
        if isinstance(node, ast.Lambda) and node.lineno == fn.__code__.co_firstlineno:
            text = ast.unparse(node)
            code = _compiled(node, fn)
            if code is not None and _shape(code) == wanted:
                return text
    raise _changed(fn)


def check_unchanged(fn: FunctionType) -> None:
    """Raise if the text MindSpore would compile is not the function that Python runs.

    Raises:
        NotCompilableError: no source, or a source edited after the import.
    """
    code = fn.__code__
    if is_ours(code):
        return
    for node in ast.walk(_parse(fn)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        decorators = getattr(node, "decorator_list", [])
        if getattr(node, "name", "<lambda>") != code.co_name or code.co_firstlineno not in (
                node.lineno, *(decorator.lineno for decorator in decorators)):
            continue
        if any(isinstance(child, ast.Assert) for child in ast.walk(node)):
            return  # pytest rewrites assert statements: the bytecode says nothing
        if not isinstance(node, ast.Lambda):
            node.decorator_list = []
        found = _compiled(node, fn)
        if found is None or "__class__" in code.co_freevars or any("__" in name for name in code.co_names):
            return  # names mangled by the class around it: not comparable from outside
        if _shape(found) == _shape(code):
            return
    raise _changed(fn)


def with_own_source(fn: FunctionType) -> FunctionType:
    """A copy of a lambda that stands alone in a file of its own."""
    if is_readable(fn):
        return fn
    name = _lambda_files.get(fn.__code__)
    if name is None:
        name = register(f"function = {lambda_text(fn)}\n", "lambda")
        if len(_lambda_files) > 4096:
            _lambda_files.clear()
        _lambda_files[fn.__code__] = name
    return copy_function(fn, code=fn.__code__.replace(co_filename=name, co_firstlineno=1))


def is_readable(fn: FunctionType) -> bool:
    """Whether MindSpore's parser can cut `fn` out of its file as it stands."""
    return fn.__code__.co_name != "<lambda>" or is_ours(fn.__code__)


_lambda_files: dict[CodeType, str] = {}


def copy_function(fn: FunctionType, code: CodeType | None = None, closure: tuple | None = None) -> FunctionType:
    """A new function object with the same behaviour, without attributes such as ``__wrapped__``."""
    copy = FunctionType(code or fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure or fn.__closure__)
    copy.__kwdefaults__ = fn.__kwdefaults__
    copy.__module__, copy.__qualname__ = fn.__module__, fn.__qualname__
    return copy
