"""Check calls of the table in this process. As a program, one line of JSON each: ci/coverage/run.py
starts it.

Usage: python tests/rules/check.py NUMBER:SPACE ...

Of s = sum(w (y + y^2 / 2)) with y the output of the call: the compiled gradient against differences
of s, the product H v, the batched Hessian times v and the third derivative s'''[v, v] against torch
where its function has the same value and gradient (tests/golden/calls.npz), else against
differences of the gradient and of H v, of fourth order.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import calls
import mindspore
import numpy as np
from mindspore import Tensor, jit, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _compat

GOLDEN = np.load(calls.GOLDEN)
BY_DIFFERENCES = {"float64": 1e-6, "float32": 1e-2}  # the limit where there is no other truth
ROUNDED = 1e-4  # errors up to this in float64 may be those of a kernel that computes in float32
STEP = {"float64": 2e-3, "float32": 2e-2}
HEADER = """import numpy as np
import mindspore as ms
from mindspore import jit, mint, nn, ops
from mindspore.mint import linalg, special
from mindspore.mint.nn import functional as F
from mindspore.ops.operations.math_ops import Median
from mindspore.scipy.linalg import eigh
from mindspore_hessian import hvp

def c(x):
    return ops.Complex()(x, ops.flip(x, (-1,)) * 0.75)

def parts(y):
    return ops.concat((ops.real(y), ops.imag(y)), -1)
"""


PLACES = {
    "ops": ops,
    "mint": mint,
    "F": mint.nn.functional,
    "linalg": getattr(mint, "linalg", None),
    "special": getattr(mint, "special", None),
    "Tensor": mindspore.Tensor,
    "nn": nn,
    "mint.nn": mint.nn,
}


def spaces(call):
    """The namespaces of the line that have the function in this MindSpore."""
    return [
        space
        for space in call.spaces
        if call.source(space) is not None
        and (
            space == "python"
            or call.text.startswith("x.")
            and hasattr(mindspore.Tensor, call.head)
            or hasattr(PLACES.get(space), call.head)
        )
    ]


class NotDifferentiable(Exception):
    """No kernel or no first gradient here: not in the enumerated list."""


def module(call, space, folder, constants):
    """The call as functions in a file, because MindSpore compiles source text."""
    text = call.source(space)
    names, lines = ", ".join(call.inputs), [HEADER]
    if space in calls.LAYERS:
        built, rest = calls.split_layer(text)
        lines.append(
            "net = "
            + built.replace(".train()", ".set_train()").replace(".eval()", ".set_train(False)")
        )
        lines.append(f"net.update_parameters_name('{call.key}.')")  # one of its kind in a graph
        text = "net" + rest
    free = ", ".join(call.free)
    vectors = ", ".join(f"v{name}" for name in call.free)
    inner = " + ".join(f"(h[{k}] * v{name}).sum()" for k, name in enumerate(call.free))
    positions = tuple(range(len(call.free)))
    lines.append(f"""
def f({names}):
    return {text}

def s({free}):
    y = f({names})
    return (WEIGHT * (y + 0.5 * y * y)).sum()

def gradient({free}):
    return ms.grad(s, {positions})({free})

def along({free}, {vectors}):
    h = hvp(s, ({free},), ({vectors},), grad_position={positions})
    return {inner}

def third({free}, {vectors}):
    return ms.grad(along, {positions})({free}, {vectors})

def product({free}, {vectors}):
    return hvp(s, ({free},), ({vectors},), grad_position={positions})

def two_orders({free}, {vectors}):
    return gradient({free}), product({free}, {vectors})

def three_orders({free}, {vectors}):
    return gradient({free}), product({free}, {vectors}), third({free}, {vectors})
""")
    path = folder / f"call_{call.key}_{space.replace('.', '_')}.py"
    path.write_text("\n".join(lines))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = made
    vars(made).update(constants)
    spec.loader.exec_module(made)
    return made


def flat(parts):
    parts = parts if isinstance(parts, tuple | list) else (parts,)
    return np.concatenate([np.array(part.asnumpy(), np.float64).reshape(-1) for part in parts])


def differences(function, point, vector, step):
    """d/dt function(point + t vector) of fourth order, and how far the step is from half of it; of
    three steps the one whose two values are nearest."""

    def slope(h):
        def at(t):
            return function([x + t * v for x, v in zip(point, vector, strict=True)])

        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)

    found = []
    for size in (step, 4 * step, 16 * step):
        fine = slope(size / 2)
        found.append((error_of(slope(size), fine), fine))
    doubt, best = min(found, key=lambda one: one[0])
    return best, doubt


def error_of(found, expected):
    if not np.isfinite(found).all():
        return float("inf") if np.isfinite(expected).all() else float("nan")
    return float(
        np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-2)
    )


class Check:
    """One call in one namespace and dtype."""

    def __init__(self, call, space, dtype, folder):
        self.call, self.dtype = call, dtype

        def tensor(value):
            return Tensor(value.astype(dtype) if value.dtype == np.float64 else value)

        constants = {
            name: tensor(value) for name, value in call.inputs.items() if name not in call.free
        }
        self.module = module(call, space, folder, constants)
        if space in calls.LAYERS:
            for number, weight in enumerate(self.module.net.trainable_params()):
                weight.set_data(tensor(calls.parameter(number, weight.shape)))
        self.tensor = tensor
        self.point = [call.inputs[name] for name in call.free]
        self.vector = list(call.vectors().values())
        self.positions = tuple(range(len(call.free)))
        inputs = [tensor(value) for value in call.inputs.values()]
        try:
            value = self.module.f(*inputs)
        except RuntimeError:  # a kernel that only the compiler does without
            value = jit(self.module.f)(*inputs)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise NotDifferentiable(f"returns {getattr(value, 'dtype', type(value).__name__)}")
        if str(value.dtype) != {"float64": "Float64", "float32": "Float32"}[dtype]:
            raise NotDifferentiable(f"returns {value.dtype} of {dtype}")
        self.value = np.array(value.asnumpy(), np.float64)
        self.module.WEIGHT = tensor(np.asarray(calls.weight(value.shape)))

    def tensors(self, arrays):
        return tuple(self.tensor(np.asarray(array)) for array in arrays)

    def gradient(self, arrays):
        return flat(self._gradient(*self.tensors(arrays)))

    def scalar(self, arrays):
        return np.array([float(self._scalar(*self.tensors(arrays)).asnumpy())])

    def hvp(self, arrays):
        return flat(
            mh.hvp(
                self.module.s,
                self.tensors(arrays),
                self.tensors(self.vector),
                grad_position=self.positions,
            )
        )

    def orders(self, highest):
        """Gradient, product and, if `highest` is 3, third derivative, of one graph."""
        arguments = self.tensors(self.point + self.vector)
        function = self.module.three_orders if highest == 3 else self.module.two_orders
        found = _compat.Graph(function, arguments, "O0")(arguments)
        return dict(zip(("gradient", "hvp", "third"), map(flat, found), strict=False))

    def hessian_times_vector(self):
        blocks = mh.hessian(self.module.s, self.positions)(*self.tensors(self.point))
        rows = []
        for i, x in enumerate(self.point):
            row = np.zeros(x.size)
            for j, v in enumerate(self.vector):
                row += np.array(blocks[i][j].asnumpy(), np.float64).reshape(
                    x.size, v.size
                ) @ v.reshape(-1)
            rows.append(row)
        return np.concatenate(rows)

    def start(self):
        """Compile the gradient; compare it with differences of the value."""
        self._gradient, self._scalar = jit(self.module.gradient), jit(self.module.s)
        try:
            gradient = self.gradient(self.point)
        except Exception as error:
            raise NotDifferentiable(f"no first gradient: {words(error)}") from None
        slope, doubt = differences(self.scalar, self.point, self.vector, STEP[self.dtype])
        vector = np.concatenate([v.reshape(-1) for v in self.vector])
        size = max(
            float(np.abs(slope[0])), float(np.abs(gradient * vector).max()), 1e-2
        )  # terms may cancel
        return (
            gradient,
            float(np.abs(gradient @ vector - slope[0])) / size,
            doubt * abs(float(slope[0])) / size,
        )


def words(error):
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split("\n\n")[0].split())[:220]


def truth(check, gradient):
    """(source, H v or None, third or None)."""
    key = check.call.key
    if f"{key}/value" in GOLDEN:
        limit = 1e-6 if check.dtype == "float64" else 1e-3
        value = GOLDEN[f"{key}/value"]
        same = value.shape == check.value.shape and error_of(check.value, value) < limit
        expected = GOLDEN[f"{key}/gradient"]
        if (
            same
            and np.isfinite(GOLDEN[f"{key}/hvp"]).all()
            and error_of(gradient, expected) < limit
        ):
            return "torch", GOLDEN[f"{key}/hvp"], GOLDEN[f"{key}/third"]
        if same and error_of(gradient, expected) >= limit:
            return "torch's gradient differs", None, None
    return "", None, None


def checked(call, space, dtype, folder):
    """The row of one call, without its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check = Check(call, space, dtype, folder)
        gradient, slope_error, slope_doubt = check.start()
        row = {"dtype": dtype, "gradient": slope_error, "gradient_doubt": slope_doubt}
        note, expected, third = truth(check, gradient)
        source = "torch" if expected is not None else "differences"
        row |= {
            "truth": source,
            "limit": call.limit(dtype) if source == "torch" else BY_DIFFERENCES[dtype],
        }
        if expected is None:
            expected, doubt = differences(check.gradient, check.point, check.vector, STEP[dtype])
            row |= {"note": note, "doubt": doubt}
        began = time.monotonic()
        try:
            found = check.hvp(check.point)
            row["hvp"] = error_of(found, expected)
            if source == "torch" and not row["hvp"] < row["limit"]:  # who is wrong?
                other, doubt = differences(check.gradient, check.point, check.vector, STEP[dtype])
                if error_of(found, other) < BY_DIFFERENCES[dtype]:
                    expected, third, source = other, None, "differences"
                    row |= {
                        "note": "torch's second derivative differs",
                        "hvp": error_of(found, other),
                        "truth": source,
                        "limit": BY_DIFFERENCES[dtype],
                        "doubt": doubt,
                    }
        except Exception as error:
            return row | {"refused": f"{type(error).__name__}: {words(error)}"}
        row["seconds"] = time.monotonic() - began
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            row["hessian"] = error_of(check.hessian_times_vector(), expected)
            row["loop"] = [
                str(w.message)[:200] for w in caught if issubclass(w.category, mh.FallbackWarning)
            ]
        except Exception as error:
            row["hessian_refused"] = f"{type(error).__name__}: {words(error)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if third is None:
                third, row["third_doubt"] = differences(
                    check.hvp, check.point, check.vector, STEP[dtype]
                )
            found = flat(
                jit(check.module.third)(*check.tensors(check.point), *check.tensors(check.vector))
            )
            row["third"] = error_of(found, third)
            if "third_doubt" not in row and not row["third"] < 10 * row["limit"]:
                other, doubt = differences(check.hvp, check.point, check.vector, STEP[dtype])
                if error_of(found, other) < max(BY_DIFFERENCES[dtype], 1e-5):
                    row |= {
                        "third": error_of(found, other),
                        "third_doubt": doubt,
                        "note": "torch's third derivative differs from differences of its second",
                    }
        except Exception as error:
            row["third_refused"] = f"{type(error).__name__}: {words(error)}"
    return row


def row_of(call, space, folder):
    """In float64 where MindSpore can, else in float32; also where float64 is refused, or MindSpore
    computes it with the accuracy of float32, and float32 is right."""
    reasons, first = [], None
    for dtype in ("float64", "float32"):
        try:
            row = checked(call, space, dtype, folder)
            rounded = row.get("hvp", 0) >= row["limit"] and row.get("hvp", 0) < ROUNDED
            if first and not row.get("hvp", 1) < row["limit"]:
                return first
            if (
                "refused" not in row
                and row["gradient"] < calls.GRADIENT_LIMIT[dtype]
                and not rounded
            ):
                return row | ({"note": "not in float64"} if first else {})
            first = first or row
        except NotDifferentiable as error:
            reasons.append(str(error))
        except Exception as error:
            reasons.append(f"does not run: {words(error)}")
    return first or {"left_out": reasons[-1]}


def main():
    table = calls.calls()
    with tempfile.TemporaryDirectory() as folder:
        for item in sys.argv[1:]:
            number, space = item.split(":")
            call = table[int(number)]
            row = row_of(call, space, Path(folder))
            mh.clear_cache()
            print(
                json.dumps(
                    {
                        "item": item,
                        "line": call.line,
                        "head": call.head,
                        "space": space,
                        "topic": call.topic,
                        **row,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
