"""The table of tests of rules, calls/*.txt: every public differentiable function and every rule of
ours. numpy only.

A line is ``spaces: expression | name spec | name spec | more``. Without spaces the function is
looked for in all of `SPACES`; ``python`` is an expression as it stands. A spec is ``shape low
high`` for a float input that is differentiated, drawn uniformly (``none`` is the shape of one
number), or ``=int64[...]``, ``=float[...]``, ``=bool[...]``, ``=[...]`` (int32), ``=ones shape``
for a constant. x, y and z are 2 x 3 in (-2, 2) unless said otherwise. ``nn.Name(...)`` and
``mint.nn.Name(...)`` are layers, built once. And, where there is a reason:

- ``-> Name Name``: the derivative rules of ours that it goes through. The default run takes these lines alone.
- ``{0.3|0.2}`` in the expression: an attribute, and another value that must change the second derivative.
- ``torch expression``: what torch calls it (helpers in ci/golden/references.py).
- ``within 1e-6``: the accuracy of MindSpore's own kernel, where that is less than 1e-12 in float64, 3e-5 in float32
  (a third derivative may be off by ten times that).
- ``since 2.8.0``: the first MindSpore that has a kernel for it. ``refused words``: what the refusal says.
- ``loops Name``: a matrix is made row after row, with a warning of these words (a primitive without batching rule).
- ``in float32``: MindSpore's kernel does not take float64, or is less accurate in it.
- ``to 2``: the third derivative takes long, or MindSpore fails.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden" / "calls.npz"  # by ci/golden/make_calls.py
SPACES = ("ops", "mint", "F", "linalg", "special", "Tensor")
TITLES = {"F": "mint.nn.functional", "linalg": "mint.linalg", "special": "mint.special"}
LAYERS = ("nn", "mint.nn")
GRADIENT_LIMIT = {
    "float64": 1e-5,
    "float32": 2e-2,
}  # largest error of a first gradient that counts as right
_DTYPES = {"": np.int32, "int64": np.int64, "float": np.float64, "bool": np.bool_}
_MORE = re.compile(r"(->|torch|within|since|refused|loops|in|to) (.*)")
_ATTRIBUTE = re.compile(r"\{([^|{}]*)\|([^|{}]*)\}")
_NAME = re.compile(r"(?<![\w.'])([a-z])(?![\w('])")


@dataclass(frozen=True, eq=False)
class Call:
    """A line of the table: `text` with its `inputs` in order; those in `free` are
    differentiated.
    """

    line: str
    topic: str
    spaces: tuple[str, ...]
    text: str
    inputs: dict[str, np.ndarray]
    free: tuple[str, ...]
    more: dict[str, str]

    @property
    def rules(self) -> tuple[str, ...]:
        """Our derivative rules that it goes through."""
        return tuple(self.more.get("->", "").split())

    def limit(self, dtype: str) -> float:
        """The largest error of a derivative, relative to its largest entry."""
        return float(self.more.get("within", 1e-12 if dtype == "float64" else 3e-5))

    @property
    def since(self) -> tuple[int, ...]:
        """The first MindSpore that can."""
        return tuple(map(int, self.more.get("since", "2.7.2").split(".")))

    def other(self) -> Call | None:
        """The same call with the attribute's other value; None where none is marked."""
        if not (changed := _ATTRIBUTE.search(self.more["marked"])):
            return None
        marked = self.more["marked"]
        return replace(self, text=marked[: changed.start()] + changed[2] + marked[changed.end() :])

    @property
    def head(self) -> str:
        """The name of the function or layer."""
        if found := re.match(r"(?:x|y)\.(\w+)\(|(?:mint\.)?(?:nn\.)?(\w+)\(", self.text):
            return found[1] or found[2]
        return self.text

    @property
    def key(self) -> str:
        """The number of the line, under which golden.npz has it."""
        return f"{zlib.crc32(self.line.encode()):08x}"

    def vectors(self) -> dict[str, np.ndarray]:
        """A direction for each free input, of entries below 1."""
        rng = np.random.default_rng(1 + zlib.crc32(self.line.encode()))
        return {name: np.asarray(rng.uniform(-1, 1, self.inputs[name].shape)) for name in self.free}

    def source(self, space: str) -> str | None:
        """The expression as it is written in one namespace; None where that makes no sense."""
        if space in ("python", *LAYERS) or self.text.startswith("x."):
            return self.text if space in ("python", "Tensor", *LAYERS) else None
        if space != "Tensor":
            return f"{space}.{self.text}"
        first, rest, tail = _first_argument(self.text)
        if first[0] in "([{'0123456789" or first in self.inputs and first not in self.free:
            return None
        return f"{first if first.isalpha() else f'({first})'}.{self.head}({rest}){tail}"


def split_layer(text: str) -> tuple[str, str]:
    """``nn.Dense(3, 2)(x)[0]`` as ``nn.Dense(3, 2)`` and ``(x)[0]``; a method as ``.train()`` stays
    with the layer.
    """
    end = _closing(text, text.index("("))
    while text[end + 1 : end + 2] == ".":
        end = _closing(text, text.index("(", end))
    return text[: end + 1], text[end + 1 :]


def _closing(text: str, start: int) -> int:
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "([{") - (text[position] in ")]}")
        if depth == 0:
            return position
    raise ValueError(f"unbalanced brackets: {text}")


def _first_argument(text: str) -> tuple[str, str, str]:
    """``f(a, b, c)[0]`` as ``a``, ``b, c``, ``[0]``."""
    start = text.index("(")
    end, depth = _closing(text, start), 0
    inside = text[start + 1 : end]
    for position, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            return inside[:position], inside[position + 1 :].strip(), text[end + 1 :]
    return inside, "", text[end + 1 :]


def _value(spec: str, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """The array, and whether it is differentiated."""
    if spec.startswith("=ones"):
        return np.ones(_shape(spec[5:].strip())), False
    if spec.startswith("="):
        dtype, rest = re.fullmatch(r"=(\w*)(\[.*\])", spec).groups()
        return np.array(eval(rest), _DTYPES[dtype]), False  # noqa: S307 -- the table is ours
    shape, low, high = spec.split()
    return np.asarray(rng.uniform(float(low), float(high), _shape(shape))), True


def _shape(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(size) for size in text.split(","))


def _parsed(line: str, topic: str) -> Call:
    parts = [part.strip() for part in line.split(" | ")]
    more = dict(found.groups() for part in parts[1:] if (found := _MORE.fullmatch(part)))
    expression, *specs = (part for part in parts if not _MORE.fullmatch(part))
    line = " | ".join((_ATTRIBUTE.sub(r"\1", expression), *specs))
    spaces: tuple[str, ...] = SPACES
    if found := re.match(r"([\w, ]+): ", expression):
        spaces, expression = tuple(found[1].replace(" ", "").split(",")), expression[found.end() :]
    elif expression.startswith(("nn.", "mint.nn.")):
        spaces = ("mint.nn",) if expression.startswith("mint") else ("nn",)
    more["marked"], expression = expression, _ATTRIBUTE.sub(r"\1", expression)
    given = {}
    for spec in specs:
        name, rest = re.fullmatch(r"(\w)\s*(=?.*)", spec).groups()
        given[name] = rest
    rng = np.random.default_rng(zlib.crc32(line.encode()))
    inputs, free = {}, []
    for name in dict.fromkeys(_NAME.findall(expression)):
        if name in "xyz" or name in given:
            inputs[name], differentiated = _value(given.get(name, "2,3 -2 2"), rng)
            free += [name] * differentiated
    assert set(given) <= set(inputs), line
    return Call(line, topic, spaces, expression, inputs, tuple(free), more)


def calls() -> list[Call]:
    out = []
    for path in sorted((HERE / "calls").glob("*.txt")):
        if path.stem != "left_out":
            out += [
                _parsed(line.strip(), path.stem)
                for line in path.read_text().splitlines()
                if line.strip() and not line.startswith("#")
            ]
    assert len({call.line for call in out}) == len(out), "a line twice"
    return out


def left_out() -> dict[str, str]:
    """Name -> why it has no line in the table."""
    out, reason = {}, ""
    for line in (HERE / "calls" / "left_out.txt").read_text().splitlines():
        if line.startswith("#"):
            reason = line[1:].strip()
        else:
            out |= dict.fromkeys(line.split(), reason)
    return out


def wave(*shape: int, phase: float = 0.3) -> np.ndarray:
    """Constants without a file: sin(phase + 1.7 k)."""
    return np.sin(phase + 1.7 * np.arange(int(np.prod(shape)))).reshape(shape)


def weight(shape: tuple[int, ...]) -> np.ndarray:
    """w of the scalar function sum(w (y + y^2 / 2))."""
    return wave(*shape, phase=2.2) + 1.5


def parameter(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a layer's Parameter."""
    return 0.6 * np.sin(0.4 + number + 1.3 * np.arange(int(np.prod(shape)))).reshape(shape) + 0.1
