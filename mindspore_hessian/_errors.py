"""Errors and warnings of this library. Each message names the offender, the value received and the
remedy.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator


class HessianError(Exception):
    """Base class of the errors that only this library raises."""


class NotCompilableError(HessianError, TypeError):
    """The user's callable cannot be compiled by MindSpore (its source is out of reach, or not
    supported).
    """


class MissingRuleError(HessianError, NotImplementedError):
    """A primitive of the function has no derivative, so its second derivative would be dropped or
    cannot be made.
    """


class KernelError(HessianError, RuntimeError):
    """A kernel failed while a compiled function ran: an index or a label out of range, for one."""


class UnsafeRuntimeError(HessianError, RuntimeError):
    """The process is in a state in which MindSpore returns wrong numbers or hangs (disk cache,
    forked child).
    """


class DeviceError(HessianError, RuntimeError):
    """A device was asked for that this process cannot use."""


class NonFiniteWarning(RuntimeWarning):
    """A derivative holds NaN or Inf. Make it an error with ``warnings.simplefilter("error",
    NonFiniteWarning)``.
    """


class RecompileWarning(RuntimeWarning):
    """A caller compiles again at every call."""


class FallbackWarning(RuntimeWarning):
    """A primitive has no batching rule: the products run one after another."""


class LateRulesWarning(RuntimeWarning):
    """The rules were installed after the first gradient of the process: MindSpore ignores some of
    them.
    """


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the user's code that called this library."""
    frame, level = sys._getframe(1), 2
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").split(".")[0] == __package__
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


_MISSING = re.compile(r"Primitive (\w+)'s bprop not defined")
# as rules say it, those too that are not for every operand
UNBATCHED = re.compile(r"primitive (\w+) has no batching rule")
_KERNEL = re.compile(
    r"(?:Select \w+ operator|Unsupported op \[|not support(?:ed)? the operator |"
    r"The kernel (?=\w+ unregistered))\[?(\w+)"
)
_PYTHON = re.compile(r"jit_syntax_level to LAX|In JIT strict mode|__call_func_str__")
_PRIMITIVE = re.compile(r"^primitive (\w+) has no (?:derivative|kernel)")
_LIBRARY = re.compile(r"/mindspore/|mindspore_hessian[/_]")  # places that are not the user's
_RAN = re.compile(r"LaunchKernel|ops/kernel/\w+/native|Model execution error")
_ADVICE = re.compile(
    r" ?Try to set jit_syntax_level to LAX\.?|"  # where there are no gradients
    r" ?You can use os\.environ\['MS_DEV_JIT_SYNTAX_LEVEL'\].*?syntax\.|"
    r", Please confirm whether the device target.*?support list\."
)
_VMAP = re.compile("integer modulo by zero|VmapGeneralPreprocess should be")
_LOOP = re.compile(
    r"The parameters number of the function is|EnvironGet|\[origin_abs\] is null|"
    r"For `(?:Scan|ForiLoop|WhileLoop)"
)
_DEFAULT = re.compile(r"Illegal AnfNode for evaluating, node: @\w+:param_(\w+)\(")


def translate(err: BaseException, ran: bool = False) -> BaseException:
    """MindSpore's pages of text as one paragraph of ours; the original stays as the cause.

    Args:
        ran: the function was compiled, and failed as it ran.
    """
    if isinstance(err, HessianError):
        return err
    text = str(err)
    if ran or _RAN.search(text):
        return KernelError(
            "a kernel failed as the function ran, which a value that it does not take brings "
            "about (most often an index or a label out of range). MindSpore says: "
            f"{first_paragraph(text)}"
        )
    found = _MISSING.search(text)
    if found and found[1] == "ShapeCalc":
        return MissingRuleError(
            "a shape in this function depends on values (x[mask], ops.nonzero, ops.unique), and "
            "second derivatives need shapes that are known. Write ops.where(mask, a, b) for what "
            "is picked by a mask."
        )
    if found:
        return MissingRuleError(
            f"primitive {found[1]} has no derivative in MindSpore, so this second derivative "
            "cannot be computed. Write the function with another operation, or supply the rule: "
            f"mindspore_hessian.rules.register_derivative({found[1]!r}, getter)."
        )
    if found := UNBATCHED.search(text):
        return MissingRuleError(
            f"primitive {found[1]} has no batching rule, and a graph with a copy of it for each "
            "sample would be too large. Write the function with another operation, or supply the "
            f"rule: mindspore_hessian.rules.register_batching({found[1]!r}, getter)."
        )
    short = first_paragraph(text)
    if "compile temporary source code in terminal" in text or "could not get source code" in text:
        return NotCompilableError(
            "a function that is called inside has no source (typed at a plain Python prompt, "
            "`python -c`, or exec()), "
            "and MindSpore compiles source text. Put it into a .py file or a notebook cell. "
            f"MindSpore says: {short}"
        )
    if _PYTHON.search(text):
        return NotCompilableError(
            "a part of the function cannot be compiled: MindSpore would run it as Python, where "
            "its gradient is lost (numpy or another library on a Tensor, asnumpy(), a functools "
            f"object). MindSpore says: {short}"
        )
    if found := _KERNEL.search(text):
        return MissingRuleError(
            f"primitive {found[1]} has no kernel for this device and dtype, so that no rule can "
            f"help: use another operation or dtype. MindSpore says: {short}"
        )
    if _VMAP.search(text):
        return NotCompilableError(
            "a function under vmap reads a Tensor that the function around has computed, and "
            "MindSpore cannot compile that: hand it over as an argument, vmap(f, in_axes=(0, "
            f"None))(x, h). MindSpore says: {short}"
        )
    if _LOOP.search(text):
        return NotCompilableError(
            "MindSpore cannot differentiate a loop of this function so often. A `while` over a "
            "Tensor can be, where what it carries are variables of their own (i, x = turn((i, x))), "
            "no tuple or list, as in ops.WhileLoop. A Python loop of a known number of turns (for i "
            f"in range(3)) always is. MindSpore says: {short}"
        )
    if found := _DEFAULT.search(text):
        return NotCompilableError(
            f"MindSpore lost {found[1]!r}. If that is an argument whose default value is an nn.Cell "
            "or a variable of the function around, MindSpore cannot compile a call that leaves it "
            "out: pass it in that call, or let the function read it from outside. If it is a "
            "Parameter, this happens in processes that "
            "have compiled some hundred graphs, and a new process compiles it. "
            f"MindSpore says: {short}"
        )
    if type(err) in (ValueError, TypeError, NotImplementedError):
        return type(err)(short)
    return NotCompilableError(f"MindSpore cannot compile this function: {short}")


def primitive_of(error: BaseException) -> str:
    """The primitive that a `MissingRuleError` names; "" for none."""
    found = _PRIMITIVE.search(str(error))
    return found[1] if found else ""


def first_paragraph(text: str) -> str:
    """The part of a MindSpore message that a user can read: before its stacks and rules of dashes,
    in one line.
    """
    text = _ADVICE.sub("", text)
    bodies = [" ".join(part.split()).strip("' ") for part in re.split(r"\n?-{10,}\n", "\n" + text)]
    line = next((body for body in bodies if body and not body.startswith("- ")), "")
    places = [
        place for place in re.findall(r"In file (\S+?:\d+)", text) if not _LIBRARY.search(place)
    ]
    return line if not places or line.startswith("fn must") else f"{line} (in {places[-1]})"


@contextlib.contextmanager
def debris_removed() -> Iterator[None]:
    """Remove the ``rank_0/om/analyze_fail.ir`` that MindSpore leaves in the working directory when
    it fails.
    """
    top = os.path.join(os.getcwd(), f"rank_{os.environ.get('RANK_ID', '0')}")
    om, file = os.path.join(top, "om"), os.path.join(top, "om", "analyze_fail.ir")
    before = {path: os.path.exists(path) for path in (file, om, top)}
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not before[file] and os.path.exists(file):
                os.remove(file)
            for folder in (om, top):
                if not before[folder] and os.path.isdir(folder):
                    os.rmdir(folder)  # only where it is empty
