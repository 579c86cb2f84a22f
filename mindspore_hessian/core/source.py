"""The source text of the user's functions, which is what MindSpore compiles.

MindSpore reads the file again when it compiles. Two things go wrong there without a word: a file
edited since the import gives another function, and a lambda inside a call cannot be cut out of its
line. Both are handled here.
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
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType

from mindspore_hessian import _compat
from mindspore_hessian._errors import NotCompilableError

_numbers = itertools.count(1)
_COMPILER_FLAGS = 0x1FF0000  # the `from __future__` bits of co_flags


def register(text: str, label: str) -> str:
    """Make `text` a file that `inspect` and MindSpore can read; returns its name.

    A real file, since MindSpore logs an error at every compilation for a name that is none. Reading
    does not depend on it: linecache keeps the text.
    """
    name = _file(text, label)
    _ours.add(name)
    return name


_ours: set[str] = set()


def _file(text: str, label: str) -> str:
    name = os.path.join(_folder(), f"{label}_{next(_numbers)}.py")
    with contextlib.suppress(OSError), open(name, "w", encoding="utf-8") as file:
        file.write(text)
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    return name


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
        f"the source of {where(fn)} is out of reach, and MindSpore compiles source text. Functions "
        "typed at a plain Python prompt without readline's history, passed to `python -c`, or "
        "made by exec() have none. Put the function into a .py file or a notebook cell."
    )


_PROMPT = "<stdin>"  # what Python calls the file of all that is typed at its prompt
_LONGEST = 400  # lines of a statement that is looked for in the history


def _find_in_history(fn: FunctionType) -> None:
    """Give a function that was typed at the prompt the file that it lacks: its statement, as
    readline remembers it.

    Only where that compiles to the function's own code. The newest comes first. The function keeps
    its code, which names the file from then on.
    """
    code, shape = fn.__code__, _shape(fn.__code__)
    for text in _statements("lambda" if code.co_name == "<lambda>" else code.co_name):
        with contextlib.suppress(SyntaxError, ValueError):
            shapes = _shapes(text, code.co_flags & _COMPILER_FLAGS, "plain")
            if shape in shapes.get((code.co_name, code.co_firstlineno), ()):
                fn.__code__ = _in_file(code, _file(text, "prompt"))
                return


def _statements(word: str) -> Iterator[str]:
    """What was typed at the prompt and has the word in it, a statement each, the newest first."""
    readline = sys.modules.get("readline")
    count = readline.get_current_history_length() if readline is not None else 0
    lines = (
        [readline.get_history_item(i + 1) or "" for i in range(count)]
        if readline is not None
        else []
    )
    for start in reversed(range(count)):
        if lines[start][:1].isspace():
            continue
        for end in range(start + 1, min(start + _LONGEST, count) + 1):
            if end < count and lines[end][:1].isspace():
                continue
            text = "\n".join(lines[start:end]) + "\n"
            try:
                ast.parse(text)
            except SyntaxError:
                continue  # it may go on
            if word in text:
                yield text
            break


def _in_file(code: CodeType, name: str) -> CodeType:
    consts = tuple(
        _in_file(const, name) if isinstance(const, CodeType) else const for const in code.co_consts
    )
    return code.replace(co_filename=name, co_consts=consts)


def _text(fn: FunctionType) -> str:
    if fn.__code__.co_filename == _PROMPT:
        _find_in_history(fn)
    try:
        return "".join(inspect.findsource(fn)[0])
    except (OSError, TypeError, IndexError) as err:
        raise _no_source(fn) from err


def _parse(fn: FunctionType) -> ast.Module:
    text = _text(fn)
    try:
        return ast.parse(text)
    except SyntaxError as err:
        raise _changed(fn) from err


def has_source(fn: FunctionType) -> bool:
    """Whether a text can be found that says to be that of `fn`."""
    try:
        _text(fn)
    except NotCompilableError:
        return False
    return True


def tree_of(fn: FunctionType) -> ast.AST | None:
    """The syntax tree of a function with its lines counted from its own first, or None where there
    is no source.
    """
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        return ast.parse(textwrap.dedent(inspect.getsource(fn)))
    return None


def _changed(fn: FunctionType) -> NotCompilableError:
    return NotCompilableError(
        f"the source of {where(fn)} is not what Python runs: the file was edited after the import. "
        "MindSpore would compile the new text. Import the module again (importlib.reload, or "
        "restart the kernel)."
    )


def _shape(code: CodeType) -> tuple:
    """What two compilations of the same text share, whatever their place in the file.

    How a call or an attribute is compiled is left out: CPython compiles ``math.sqrt(x)`` in two
    ways, by whether it saw the import. What is read stays, and in which order: ``x - y`` is not ``y
    - x``.
    """
    consts = tuple(
        _shape(const) if isinstance(const, CodeType) else repr(const) for const in code.co_consts
    )
    steps = tuple(
        (step.opname.partition("_")[0], _read(step.argval))
        if step.opname.startswith("LOAD_")
        else (step.opname, step.arg if step.opname in ("BINARY_OP", "COMPARE_OP") else None)
        for step in dis.get_instructions(code)
        if not step.opname.startswith(("CALL", "PRECALL", "PUSH_NULL", "EXTENDED_ARG", "CACHE"))
    )
    return steps, consts, code.co_names, code.co_varnames, code.co_freevars


def _read(value: object) -> str:
    """A name or a constant as text; the code of an inner function is compared with the other
    constants.
    """
    return "" if isinstance(value, CodeType) else repr(value)


def _compiled(node: ast.expr | ast.stmt, fn: FunctionType) -> CodeType | None:
    """The code of `node`, compiled where the free variables of `fn` are free."""
    body: list[ast.stmt] = [node] if isinstance(node, ast.stmt) else [ast.Return(node)]
    names = [ast.arg(name) for name in fn.__code__.co_freevars]
    outer = ast.FunctionDef(
        "outer", ast.arguments([], names, None, [], [], None, []), body, [], None
    )
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


def _codes(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _codes(const)


@functools.lru_cache(maxsize=64)
def _shapes(text: str, flags: int, asserts: str) -> dict[tuple[str, int], list[tuple]]:
    """The functions of a file, compiled as a whole: (name, line) -> shapes. `asserts` is "pytest"
    or "plain".
    """
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as in a notebook
    tree = compile(text, "<check>", "exec", flags=flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    if asserts == "pytest":
        sys.modules["_pytest.assertion.rewrite"].rewrite_asserts(tree, text.encode())
    found: dict[tuple[str, int], list[tuple]] = {}
    for code in _codes(compile(tree, "<check>", "exec", flags=flags, dont_inherit=True)):
        found.setdefault((code.co_name, code.co_firstlineno), []).append(_shape(code))
    return found


def check_unchanged(fn: FunctionType) -> None:
    """Raise if the text MindSpore would compile is not the function that Python runs.

    The whole file is compiled again and compared; where pytest has rewritten its assert statements,
    they are.

    Raises:
        NotCompilableError: no source, or a source edited after the import.
    """
    code = fn.__code__
    if is_ours(code):
        return
    text, shape = _text(fn), _shape(code)
    for asserts in ("plain", "pytest"):
        if asserts == "pytest" and not any(name.startswith("@py") for name in _all_names(code)):
            break
        try:
            shapes = _shapes(text, code.co_flags & _COMPILER_FLAGS, asserts)
        except (SyntaxError, ValueError) as err:
            raise _changed(fn) from err
        if shape in shapes.get((code.co_name, code.co_firstlineno), ()):
            return
    raise _changed(fn)


def _all_names(code: CodeType) -> Iterator[str]:
    for one in (code, *_codes(code)):
        yield from one.co_names
        yield from one.co_varnames


def check_private_names(functions: Iterable[FunctionType], kinds: Iterable[type]) -> None:
    """Raise where MindSpore would read another attribute: in a method of a base class it takes
    ``self.__x`` for that of the object's class, Python for that of the class in which the method
    stands.

    Raises:
        NotCompilableError: both classes have such an attribute. (Where one has not, MindSpore does
            not find it.)
    """
    private = [
        (fn, name)
        for fn in functions
        for name in fn.__code__.co_names
        if re.match(r"_[^\W_]\w*?__\w", name)
    ]
    for cls in kinds if private else ():
        for base in cls.__mro__[1:]:
            theirs, own = (f"_{one.__name__.lstrip('_')}__" for one in (base, cls))
            for fn, name in private:
                if (
                    theirs != own
                    and name.startswith(theirs)
                    and _has_name(cls, own + name[len(theirs) :])
                ):
                    short = "__" + name[len(theirs) :]
                    raise NotCompilableError(
                        f"{where(fn)} reads `{short}` of {base.__name__}, and {cls.__name__} has a "
                        f"`{short}` of its own: MindSpore would read that one. Give one of them "
                        "another name (a single underscore)."
                    )


def _has_name(cls: type, name: str) -> bool:
    spaces = [vars(base) for base in cls.__mro__]
    return any(
        name in space
        or any(
            name in item.__code__.co_names
            for item in space.values()
            if isinstance(item, FunctionType)
        )
        for space in spaces
    )


def _has_flag(*flags: int) -> Callable[[FunctionType], bool]:
    return lambda fn: any(fn.__code__.co_flags & flag for flag in flags)


def _says_with(fn: FunctionType) -> bool:
    return any(
        step.opname in ("BEFORE_WITH", "SETUP_WITH", "BEFORE_ASYNC_WITH")
        for step in dis.get_instructions(fn.__code__)
    )


def _is_method_without_self(fn: FunctionType) -> bool:
    names, (owner, _, _) = fn.__code__.co_varnames, fn.__qualname__.rpartition(".")
    return bool(owner) and not owner.endswith("<locals>") and names[:1] != ("self",)


# What MindSpore's text says, which function causes it, and what to write instead
_CAUSES: tuple[tuple[str, Callable[[FunctionType], bool], str], ...] = (
    (
        "Parse Lambda Function Fail|Async|Await",
        _has_flag(inspect.CO_COROUTINE, inspect.CO_ASYNC_GENERATOR),
        "is an `async def`, which MindSpore cannot compile. Write it with a plain `def`, without "
        "`await`.",
    ),
    (
        "Yield",
        _has_flag(inspect.CO_GENERATOR),
        "is a generator (it says `yield`), which MindSpore cannot compile. Collect the values in a "
        "list and return it.",
    ),
    (
        r"jit_class instance|issubclass\(\) arg 1|'(Async)?With'|__enter__|__exit__|No such file",
        _says_with,
        "has a `with` block, which MindSpore cannot compile. Enter the context around the call of "
        "the transform, or leave "
        "it out of the function.",
    ),
    (
        r"Unable to cast Python instance of type <class 'NoneType'>",
        lambda fn: fn.__module__ is None,
        "was made by exec() in a name space without a `__name__`, where MindSpore cannot look. Put "
        "it into a .py file.",
    ),
    (
        "parameters number of the function",
        _is_method_without_self,
        "is a method whose first argument is not called `self`, and MindSpore knows a method by "
        "that name. Call it `self`.",
    ),
)


def cause(
    functions: Iterable[FunctionType], err: BaseException | None
) -> NotCompilableError | None:
    """Why MindSpore refused, where that is a way of writing that its text does not name."""
    while err is not None:
        for pattern, fits, text in _CAUSES:
            if re.search(pattern, str(err)):
                for fn in functions:
                    if fits(fn) and fn.__code__.co_filename.endswith("/mindspore/train/amp.py"):
                        return NotCompilableError(
                            "amp.auto_mixed_precision(network, 'auto') makes a network that "
                            "MindSpore can compile no gradient of here (a `with` block of its own). "
                            "Use the level 'O1', 'O2' or 'O3', or the network without it."
                        )
                    if fits(fn):
                        return NotCompilableError(f"{where(fn)} {text}")
        err = err.__cause__
    return None


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
    return _compat.copy_function(fn, code=fn.__code__.replace(co_filename=name, co_firstlineno=1))


def is_readable(fn: FunctionType) -> bool:
    """Whether MindSpore's parser can cut `fn` out of its file as it stands."""
    return fn.__code__.co_name != "<lambda>" or is_ours(fn.__code__)


_lambda_files: dict[CodeType, str] = {}
