"""Calls that are right but for one argument: each public function, each argument, each wrong kind
of value.

`SUBJECTS` has a row for each public call: what is called, with which good arguments, and for each
argument the bad values that are tried in its place, by a name. `rows` makes single cases of it. A
value may be plain, or one of

- `Made`: a function that makes it anew (a file, a generator, an operator);
- `Bad`: a value whose error names something else than the argument, or that is found out as the function compiles.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import scipy.sparse as sp
from mindspore import Parameter, Tensor, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import plot, rules, testing
from mindspore_hessian.operators import distributed


class Made(NamedTuple):
    """A bad value that is made anew for each call."""

    make: Callable


@dataclass(frozen=True)
class Bad:
    """A bad value, and what else is known of it.

    Attributes:
        value: as it is, or `Made`.
        says: a pattern of the message; None: the argument's name.
        compiles: it is found out only as the function compiles or runs.
        also: other arguments of this call.
    """

    value: Any
    says: str | None = None
    compiles: bool = False
    also: dict | None = None


class Row(NamedTuple):
    """One bad call."""

    name: str
    call: Callable
    arguments: dict
    says: str
    compiles: bool


# --- good values ----------------------------------------------------------------------------------

X, V = Tensor([1.0, 2.0]), Tensor([1.0, 1.0])
W = Parameter(Tensor([1.0, 2.0]), name="w")
OTHER = Parameter(Tensor([1.0, 2.0]), name="other")
WHOLE = Parameter(Tensor([1, 2]), name="whole", requires_grad=False)
EMPTY = Tensor(np.zeros((0, 3), np.float32))
NET = nn.SequentialCell(nn.Dense(2, 3), nn.Tanh(), nn.Dense(3, 2))
LOSS = nn.MSELoss()
XS, YS = Tensor(np.ones((4, 2), np.float32)), Tensor(np.zeros((4, 2), np.float32))
DATA = (XS, YS)
LABELS = Tensor(np.array([0, 1, 0, 1]), ms.int32)
MATRIX = np.diag([4.0, 3.0, 2.0, 1.0])
HERE = Path(__file__).resolve()


def cube(x):
    return (x**3).sum()


def entries(x):
    return x**3


def weighted(x):
    return (x**3 * W).sum()


def two(x, y):
    return (x * x * y * W).sum()


def vector(x):
    return x**2


def curvature_operator(kind=mh.HessianOperator):
    return kind(NET, LOSS, DATA, reduction="mean", check_deterministic=False)


# --- functions that are bad themselves ------------------------------------------------------------


def gives_none(x):
    y = x * x  # noqa: F841


def gives_text(x):
    return "f"


def gives_float(x):
    return 3.0


def gives_list(x):
    return [x, x]


def gives_dict(x):
    return {"y": x}


def gives_pair(x):
    return (x**2).sum(), x


def gives_whole(x):
    return (x**2).sum().astype(ms.int32)


def gives_bool(x):
    return (x**2).sum() > 0


def gives_complex(x):
    return x.astype(ms.complex64).sum()


def gives_array(x):
    return np.ones(2)


def gives_factors(x):
    return x * W


def adds_text(x):
    return (x + "1").sum()


def wrong_matmul(x):
    return ops.matmul(x.reshape(1, 2), ops.ones((3, 3))).sum()


def wrong_reshape(x):
    return x.reshape(7).sum()


def wrong_axis(x):
    return x.sum(5)


def wrong_name(x):
    return undefined_name(x).sum()  # noqa: F821


def wrong_attribute(x):
    return x.no_such_method().sum()


def calls_numpy(x):
    return Tensor(np.sum(x.asnumpy() ** 2))


def raises(x):
    raise ValueError("of mine")


def leaky(x):
    return mint.nn.functional.leaky_relu(x, 0.1).sum()


def elu(x):
    return mint.nn.functional.elu(x).sum()


def gelu(x):
    return mint.nn.functional.gelu(x).sum()


def norm(x):
    return mint.norm(x)


def normalized(x):
    return (mint.nn.functional.normalize(x.reshape(1, 2)) ** 3).sum()


def without_kernel(primitive: str, fn: Callable) -> Bad:
    return Bad(fn, rf"{primitive}.*no kernel", True)


# --- bad values, by what is wanted ----------------------------------------------------------------


def named(values: dict, says: str, **also: Any) -> dict:
    """The same values, where the message says another name."""
    return {
        name: Bad(value.value, value.says or says, value.compiles, {**(value.also or {}), **also})
        if isinstance(value, Bad)
        else Bad(value, says, also=also)
        for name, value in values.items()
    }


def without(values: dict, *names: str) -> dict:
    """Values without some of them, which the argument takes."""
    assert set(names) <= set(values), names
    return {name: value for name, value in values.items() if name not in names}


NO_CALLABLE = {"None": None, "an int": 3, "a string": "f", "a Tensor": X, "a list": [cube]}
LARGE = {
    "a large array": np.arange(5000.0).reshape(50, 100),
    "a network": NET,
}  # whose repr has many lines
NO_INT = {
    **LARGE,
    "a string": "1",
    "a float": 1.5,
    "a whole float": 2.0,
    "a bool": True,
    "NaN": np.nan,
    "a list": [1],
    "complex": 1j,
}
NO_COUNT = {**NO_INT, "None": None, "zero": 0, "negative": -1}
NO_COUNT_OR_NONE = without(NO_COUNT, "None")
NO_SEED = {**NO_INT, "None": None, "negative": -1}
NO_NUMBER = {
    **LARGE,
    "a string": "1e-3",
    "NaN": np.nan,
    "complex": 1j,
    "a list": [0.1],
    "an array": np.ones(2),
}
NO_POSITIVE = {**NO_NUMBER, "None": None, "zero": 0.0, "negative": -1.0, "infinite": np.inf}
NO_POSITIVE_OR_NONE = without(NO_POSITIVE, "None")
NO_TOL = without(NO_POSITIVE_OR_NONE, "zero")
NO_CHOICE = {
    **LARGE,
    "an unknown name": "fast",
    "an empty name": "",
    "an int": 3,
    "a list": ["auto"],
    "another case": "AUTO",
}
NO_BOOL = {
    **LARGE,
    "an int": 1,
    "a string": "yes",
    "None": None,
    "a list": [True],
    "a Tensor": Tensor(True),
}
NO_PROGRESS = {**LARGE, "a string": "yes", "an int": 2, "a list": [True], "an array": np.ones(2)}
NO_MODE = {**NO_CHOICE, "None": None}
NO_OBJECT = {"None": None, "a string": "op", "an int": 3, "a list": [1.0], "an object": object()}

NO_INPUTS = {
    "None": None,
    "a string": "x",
    "a float": 1.0,
    "an array": np.ones(2),
    "a dict": {"x": X},
}
BAD_ARGUMENT = {
    "an array in a tuple": Bad((np.ones(2),), "argument 0.*ndarray"),
    "a float in a tuple": Bad((1.0,), "argument 0"),
    "None in a tuple": Bad((None,), "argument 0"),
    "integers": Bad(Tensor([1, 2]), "argument 0 has dtype Int64"),
    "bools": Bad(Tensor([True, False]), "argument 0 has dtype Bool"),
    "complex": Bad(Tensor(np.ones(2, np.complex64)), "argument 0 has dtype Complex64"),
    "an empty Tensor": Bad(EMPTY, "argument 0.*empty"),
    "an empty tuple": Bad((), "nothing|out of range"),
    "a list of lists": Bad(([X, X],), "argument 0.*list"),
}
TOO_MANY = Bad((X, X), "argument", True, {"vectors": (V, V)})
NO_VECTORS = {
    "None": None,
    "a string": "v",
    "a float": 1.0,
    "an array": np.ones(2),
    "a dict": {"x": V},
    "an empty tuple": (),
    "another shape": Tensor([1.0]),
    "another rank": Tensor([[1.0, 1.0]]),
    "another dtype": Tensor(np.ones(2)),
    "integers": Tensor([1, 1]),
    "a list of floats": [1.0, 1.0],
    "an array in a tuple": (np.ones(2),),
    "two of them": (V, V),
    "None in a tuple": (None,),
    "a set": {1.0},
}
NO_POSITION = {
    **LARGE,
    "a string": "0",
    "a float": 0.5,
    "a bool": True,
    "out of range": 5,
    "below the range": -3,
    "one of two out of range": (0, 7),
    "twice the same": (0, 0),
    "a string in a tuple": (0, "x"),
    "a set": {0},
    "a Tensor": X,
    "an array": np.zeros(1),
    "None in a tuple": (None,),
    "an empty tuple": Bad((), "nothing to differentiate|grad_position"),
}
NO_WEIGHTS = {
    "a string": "w",
    "an int": 3,
    "a Tensor": X,
    "a list of Tensors": [X],
    "an empty list": [],
    "twice the same": [W, W],
    "a dict": {"w": W},
    "a set": {W},
    "an empty generator": Made(lambda: iter(())),
    "a network": NET,
    "None in a list": [None],
    "names in a list": ["w"],
    "integers": Bad([WHOLE], "'whole' has dtype"),
    "in a nested list": [[W]],
}
OF_ANOTHER = {
    "of another function": Bad([OTHER], "'other' is not in the function", also={"vectors": (V,)}),
    "of another function too": Bad(
        [W, OTHER], "'w' is not in the function", also={"vectors": (V, V)}
    ),
}
NO_AXES = {
    **LARGE,
    "a string": "0",
    "a float": 0.5,
    "a bool": True,
    "out of range": 4,
    "too many": (0, 0, 0),
    "a string in a tuple": ("0",),
    "an empty tuple": (),
    "only None": (None,),
    "a Tensor": X,
    "a set": {0},
}
NO_SPARSE = {
    "None": None,
    "a string": "yes",
    "an int": 2,
    "one row": np.ones(4),
    "not square": np.ones((2, 3)),
    "another size": sp.eye(5, format="csr"),
    "a list": [[1, 0], [0, 1]],
    "a Tensor": Tensor(np.eye(2)),
    "an array of text": np.array([["a", "b"], ["c", "d"]]),
}

FUNCTIONS = {
    "returns None": Bad(gives_none, "fn must return", True),
    "returns text": Bad(gives_text, "fn must return", True),
    "returns a float": Bad(gives_float, "fn must return", True),
    "returns a list": Bad(gives_list, "fn must", True),
    "returns a dict": Bad(gives_dict, "fn must return", True),
    "returns integers": Bad(gives_whole, "fn returned.*Int32", True),
    "returns a bool": Bad(gives_bool, "fn returned.*Bool", True),
    "returns complex numbers": Bad(gives_complex, "fn returned.*Complex", True),
}
PRODUCT_FUNCTIONS = {
    **FUNCTIONS,
    "returns a pair": Bad(gives_pair, "fn must", True),
    "returns an array": Bad(gives_array, "fn|numpy", True),
    "returns a vector": Bad(vector, r"one number.*shape \(2\)", True),
    "adds text": Bad(adds_text, "bad_inputs.py", True),
    "multiplies wrong shapes": Bad(wrong_matmul, "(?i)matmul", True),
    "reshapes wrongly": Bad(wrong_reshape, "(?i)reshape", True),
    "sums a wrong axis": Bad(wrong_axis, "(?i)sum|axis", True),
    "an unknown name": Bad(wrong_name, "undefined_name", True),
    "an unknown method": Bad(wrong_attribute, "no_such_method", True),
    "calls numpy": Bad(calls_numpy, "numpy|asnumpy", True),
    "raises": Bad(raises, "of mine", True),
    "takes two arguments": Bad(two, "argument", True),
    "a class": Bad(nn.Dense, "Dense"),
    "a builtin": Bad(len, "len"),
    "a primitive": Bad(ops.Add(), "argument|Add", True),
    "a ufunc": Bad(np.sin, "sin"),
    "typed by exec": Bad(eval("lambda x: x.sum()"), "source"),
    "has no kernel, leaky_relu": without_kernel("LeakyReLUGradExt", leaky),
    "has no kernel, elu": without_kernel("EluGradExt", elu),
    "has no kernel, gelu": without_kernel("GeluGradExt", gelu),
    "has no kernel, norm": without_kernel("LinalgVectorNorm", norm),
    "has no kernel, normalize": without_kernel("LinalgVectorNorm", normalized),
}


# --- transforms -----------------------------------------------------------------------------------


def made(transform):
    """A transform and the call of what it returns, as one call."""

    def call(fn, args=(X,), kwargs=None, **options):
        return transform(fn, **options)(*args, **(kwargs or {}))

    return call


ARGS = {
    "none": Bad((), "argument|grad_position"),
    "a float": Bad((1.0,), "argument 0"),
    "a string": Bad(("x",), "argument 0"),
    "an array": Bad((np.ones(2),), "argument 0"),
    "None": Bad((None,), "argument 0"),
    "a tuple": Bad(((X, X),), "argument 0"),
    "integers": Bad((Tensor([1, 2]),), "argument 0 has dtype"),
    "bools": Bad((Tensor([True]),), "argument 0 has dtype"),
    "empty": Bad((EMPTY,), "argument 0.*empty"),
    "complex": Bad((Tensor(np.ones(2, np.complex64)),), "argument 0 has dtype"),
}
OPTIONS = {"grad_position": NO_POSITION, "has_aux": NO_BOOL}
WITHOUT_AUX = {"has_aux": {**NO_BOOL, "without aux": Bad(True, "has_aux=True", True)}}
OF_TRANSFORM = {"fn": {**NO_CALLABLE, **FUNCTIONS}, "args": ARGS, **OPTIONS}
NOT_IN = {
    "of another function": Bad([OTHER], "'other' is not in the function"),
    "of another function too": Bad([W, OTHER], "'w' is not in the function"),
}
POINTS = Tensor([[1.0, 2.0], [3.0, 4.0]])

PRODUCT = {
    "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
    "vectors": NO_VECTORS,
    "grad_position": NO_POSITION,
    "weights": {**NO_WEIGHTS, **OF_ANOTHER},
}
HVP = {"fn": {**NO_CALLABLE, **FUNCTIONS}, **PRODUCT, **OPTIONS, "mode": NO_MODE}
GOOD_HVP = {"fn": cube, "inputs": X, "vectors": V}


TRANSFORMS = {
    "hvp": (
        mh.hvp,
        GOOD_HVP,
        {
            **HVP,
            "fn": {**NO_CALLABLE, **PRODUCT_FUNCTIONS},
            "inputs": {**NO_INPUTS, **BAD_ARGUMENT, "too many": TOO_MANY},
            **WITHOUT_AUX,
        },
    ),
    "grad_and_hvp": (mh.grad_and_hvp, GOOD_HVP, {**HVP, "fn": NO_CALLABLE}),
    "curvature": (
        mh.curvature,
        {"fn": cube, "inputs": X, "direction": V},
        {
            "fn": NO_CALLABLE,
            "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
            "direction": {**NO_VECTORS, "zero": V * 0},
            **OPTIONS,
            "weights": NO_WEIGHTS,
            "mode": NO_MODE,
        },
    ),
    "hvp_revfwd": (
        mh.hvp_revfwd,
        {"f": cube, "inputs": X, "vector": V},
        {
            "f": named(NO_CALLABLE, "fn"),
            "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
            "vector": named(NO_VECTORS, "vectors"),
        },
    ),
    "hvp_revrev": (
        mh.hvp_revrev,
        {"f": cube, "inputs": (X,), "vector": (V,)},
        {
            "f": named(NO_CALLABLE, "fn"),
            "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
            "vector": named(NO_VECTORS, "vectors"),
        },
    ),
    "ggnvp": (
        mh.ggnvp,
        {"forward": vector, "loss": cube, "inputs": X, "vectors": V},
        {
            "forward": {
                **named(NO_CALLABLE, "forward"),
                "returns None": Bad(gives_none, "forward", True),
                "returns a list": Bad(gives_list, "forward", True),
                "takes two": Bad(two, "argument", True),
                "returns integers": Bad(gives_whole, "forward", True),
            },
            "loss": {
                **NO_CALLABLE,
                "returns a vector": Bad(vector, "loss must return one number", True),
                "returns None": Bad(gives_none, "loss must return", True),
                "takes two": Bad(two, "argument", True),
            },
            **PRODUCT,
        },
    ),
    "hessian": (
        made(mh.hessian),
        {"fn": cube},
        {
            **OF_TRANSFORM,
            **WITHOUT_AUX,
            "weights": {**NO_WEIGHTS, **NOT_IN},
            "mode": {
                **NO_MODE,
                "of jacobian": "rev",
                "with chunk_size": Bad("revrev", "chunk_size", also={"chunk_size": 2}),
                "with sparse": Bad("revrev", "sparse", also={"sparse": True}),
            },
            "chunk_size": NO_COUNT_OR_NONE,
            "sparse": NO_SPARSE,
            "kwargs": {
                "unknown": Bad({"z": X}, "argument 'z'", True),
                "the same twice": Bad({"x": X}, "argument 'x'", True),
            },
        },
    ),
    "hessian, as of another library": (
        mh.hessian,
        {"fn": cube},
        {"grad_position": {"the point": Bad(X, r"grad_position.*hessian\(fn\)\(x\)")}},
    ),
    "value_grad_and_hessian": (
        made(mh.value_grad_and_hessian),
        {"fn": cube},
        {
            **OF_TRANSFORM,
            "fn": {**NO_CALLABLE, "returns a vector": Bad(vector, "one number", True)},
            "weights": {**NO_WEIGHTS, **NOT_IN},
            "mode": NO_MODE,
            "chunk_size": NO_COUNT_OR_NONE,
        },
    ),
    "jacobian": (
        made(mh.jacobian),
        {"fn": vector},
        {
            **OF_TRANSFORM,
            "weights": {**NO_WEIGHTS, **NOT_IN},
            "mode": {**NO_MODE, "of hessian": "revrev"},
            "chunk_size": {**NO_COUNT_OR_NONE, "with fwd": Bad(1, also={"mode": "fwd"})},
        },
    ),
    "hessian_diag": (
        made(mh.hessian_diag),
        {"fn": cube},
        {
            **OF_TRANSFORM,
            "fn": {**NO_CALLABLE, "returns a vector": Bad(vector, "one number", True)},
            "weights": {**NO_WEIGHTS, **NOT_IN},
            "in_axes": NO_AXES,
            "chunk_size": NO_COUNT_OR_NONE,
        },
    ),
    "laplacian": (
        made(mh.laplacian),
        {"fn": cube},
        {
            **OF_TRANSFORM,
            "fn": {**NO_CALLABLE, "returns None": Bad(gives_none, "fn must", True)},
            "weights": {
                **NO_WEIGHTS,
                **NOT_IN,
                "in forward mode": Bad([W], "of inputs", also={"fn": weighted, "mode": "forward"}),
            },
            "in_axes": NO_AXES,
            "chunk_size": NO_COUNT_OR_NONE,
            "batched": {
                "a string": "yes",
                "without in_axes": Bad(True, "needs in_axes"),
            },
            "mode": {**NO_MODE, "of hessian": "revrev"},
            "along": {
                "a float": 1.0,
                "a string": "x",
                "nothing": (),
                "a bool": True,
                "too large": 2,
                "negative": (0, -3),
                "twice": Bad((0, -2), "along names an entry twice"),
                "a Tensor": X,
            },
            "metric": {
                "a string": "x",
                "a vector": np.ones(2),
                "not square": np.ones((2, 3)),
                "too large": np.eye(3),
                "NaN": np.full((2, 2), np.nan),
                "complex": np.eye(2) * 1j,
                "a number": 1.0,
                "not for what is along": Bad(
                    np.eye(2), "metric must be a 1 x 1 matrix", also={"along": 0}
                ),
            },
        },
    ),
    "value_grad_and_laplacian": (
        made(mh.value_grad_and_laplacian),
        {"fn": cube},
        {
            **OF_TRANSFORM,
            "fn": {**NO_CALLABLE, "returns a vector": Bad(vector, "one number", True)},
            "in_axes": NO_AXES,
            "chunk_size": NO_COUNT_OR_NONE,
            "batched": {
                "a string": "yes",
                "without in_axes": Bad(True, "needs in_axes"),
            },
            "mode": {**NO_MODE, "of hessian": "revrev"},
        },
    ),
    "jvp": (
        mh.jvp,
        {"fn": vector, "inputs": X, "vectors": V},
        {**PRODUCT, "fn": {**NO_CALLABLE, "returns None": Bad(gives_none, "fn must", True)}},
    ),
    "jet": (
        mh.jet,
        {"fn": vector, "primals": X, "series": (V,)},
        {
            "fn": {**NO_CALLABLE, "returns None": Bad(gives_none, "fn must", True)},
            "primals": {"None": None, "a float": 1.0, "integers": Tensor([1, 2]), "empty": EMPTY},
            "series": {
                "None": None,
                "a Tensor": V,
                "empty": (),
                "a float": 1.0,
                "of floats": (1.0,),
                "of None": (None,),
                "too long": (Tensor([1.0, 2.0, 3.0]),),
                "of a pair": ((V,),),
                "float64": (V.astype(ms.float64),),
            },
        },
    ),
    "derivative": (
        made(mh.derivative),
        {"fn": entries, "order": 2},
        {
            "fn": {
                **NO_CALLABLE,
                "returns None": Bad(gives_none, "fn must", True),
                "returns one number": Bad(cube, "must begin with", True),
            },
            "args": ARGS,
            "order": NO_COUNT,
            "argnum": {**NO_INT, "None": None, "too large": Bad(1, "out of range")},
        },
    ),
    "batched_hessian": (
        made(mh.batched_hessian),
        {"fn": cube, "args": (POINTS,)},
        {
            **OF_TRANSFORM,
            "fn": {**NO_CALLABLE, "returns text": Bad(gives_text, "fn must", True)},
            "in_axes": {**NO_AXES, "None": None},
            "chunk_size": NO_COUNT_OR_NONE,
            "args": {
                **ARGS,
                "batches of two sizes": Bad(
                    (POINTS, Tensor([1.0])), "different sizes", also={"fn": two}
                ),
                "no axis": Bad((Tensor(1.0),), "in_axes"),
            },
        },
    ),
}


# --- operators ------------------------------------------------------------------------------------


def network_of_text(x):
    y = x * W  # noqa: F841
    return "f"


def network_of_nothing():
    return W * 2.0


def loss_of_none(output, target):
    y = output  # noqa: F841


def loss_of_vector(output, target):
    return output - target


def loss_of_one(output):
    return output.sum()


def product(op, v):
    return op @ v


BATCHES = {
    "None": None,
    "an int": 3,
    "a string": "data",
    "a float": 0.5,
    "an object": object(),
    "an empty list": [],
    "an iterator": Made(lambda: iter([DATA])),
    "a list of Tensors": [XS, YS],
    "an empty tuple": Bad((), "batch 0"),
    "an empty dict": Bad({}, "batch 0"),
    "no samples": Bad((EMPTY[:, :2], EMPTY[:, :2]), "batch 0 has no samples"),
    "no samples in the second": Bad([DATA, (EMPTY[:, :2], EMPTY[:, :2])], "batch 1 has no samples"),
    "a scalar": Bad((Tensor(1.0), YS), "batch 0.*batch_size_fn"),
    "text in a batch": Bad(("x", "y"), "batch 0"),
    "a list of text": Bad(["x", "y"], "batch 0"),
    "columns without a target": Bad({"x": XS, "z": YS}, "batch 0.*target"),
    "columns with two targets": Bad({"x": XS, "y": YS, "label": YS}, "batch 0.*target"),
    "a set": Bad({1, 2}, "data|batch"),
    "a generator function": Bad(Made(lambda: (DATA for _ in range(2))), "data"),
    "an array of objects": Bad(np.array([None, "x"]), "data|batch 0"),
}
OPERATOR = {
    "network": {**NO_CALLABLE, "a class": Bad(nn.Dense, "network")},
    "loss_fn": without(NO_CALLABLE, "None"),
    "data": BATCHES,
    "weights": {
        **without(NO_WEIGHTS, "a string", "names in a list"),
        "an unknown name": "dense.*",
        "unknown names": ["0.weight", "none.*"],
        "an empty name": "",
    },
    "block_diagonal": NO_CHOICE,
    "reduction": NO_CHOICE,
    "num_data": NO_COUNT_OR_NONE,
    "batch_size_fn": {
        **without(NO_CALLABLE, "None"),
        "gives text": lambda batch: "4",
        "gives None": lambda batch: None,
        "gives zero": lambda batch: 0,
        "gives a negative number": lambda batch: -4,
    },
    "micro_batch": NO_COUNT_OR_NONE,
    "chunk_size": NO_COUNT_OR_NONE,
    "distributed": {**NO_BOOL, "without a job": Bad(True, "distributed|msrun")},
    "check_deterministic": NO_BOOL,
    "progress": NO_PROGRESS,
    "output": {**without(NO_INT, "a string", "a network"), "a set": {0}, "a tuple": (0, 1)},
    "batch_weight": {
        **without(LARGE, "a network"),
        "an unknown name": "rows",
        "an int": 4,
        "a list": [4],
    },
}
GOOD_OPERATOR = {
    "network": NET,
    "loss_fn": LOSS,
    "data": DATA,
    "reduction": "mean",
    "check_deterministic": False,
}
LIKELIHOOD = {"likelihood": NO_CHOICE}
SHARED = (
    "network",
    "loss_fn",
    "data",
    "weights",
    "reduction",
    "progress",
)  # tried with every kind of operator
VECTOR = {
    "None": None,
    "text": "v",
    "a short one": np.ones(3),
    "complex": np.ones(17) * 1j,
    "of objects": np.array([None] * 17),
    "three axes": np.ones((17, 1, 1)),
    "a short Tensor": Tensor(np.ones(3, np.float32)),
    "an int": 1,
    "a short list": [1.0],
    "a list of text": ["a"] * 4,
    "a dict": {"v": 1},
    "a set": {1.0},
    "Tensors of wrong shapes": [X, X, X, X],
    "too many Tensors": [X] * 5,
    "None in a list": [None] * 4,
}


TRAINED = nn.SequentialCell(nn.Dropout(p=0.5)).set_train()


def jacobian():
    return mh.JacobianOperator(NET, DATA)


def run(kind):
    """An operator and a product with it, as one call."""

    def call(**arguments):
        op = kind(**arguments)
        return op @ np.ones(op.shape[0])

    return call


FILE = {
    "an int": 3,
    "a bool": True,
    "no folder": "none/file.npz",
    "a folder": "/",
    "a list": ["a"],
    "an empty name": "",
    "a foreign file": Made(lambda: str(HERE)),
}
OPERATORS = {
    "HessianOperator": (mh.HessianOperator, GOOD_OPERATOR, OPERATOR),
    "GGNOperator": (
        mh.GGNOperator,
        GOOD_OPERATOR,
        {**{name: OPERATOR[name] for name in SHARED}, "loss_fn": NO_CALLABLE},
    ),
    "FisherOperator": (
        mh.FisherOperator,
        GOOD_OPERATOR,
        {
            **{name: OPERATOR[name] for name in SHARED},
            "loss_fn": {**NO_CALLABLE, "unknown": Bad(loss_of_vector, "likelihood", True)},
            **LIKELIHOOD,
            "mc_samples": without(NO_COUNT, "zero"),
            "seed": NO_SEED,
        },
    ),
    "EmpiricalFisherOperator": (
        mh.EmpiricalFisherOperator,
        GOOD_OPERATOR,
        {**{name: OPERATOR[name] for name in SHARED}, "loss_fn": NO_CALLABLE, **LIKELIHOOD},
    ),
    **{
        name: (
            getattr(mh, name),
            GOOD_OPERATOR,
            {
                **{name: OPERATOR[name] for name in SHARED if name != "network"},
                "loss_fn": NO_CALLABLE,
                **LIKELIHOOD,
                "network": {
                    **NO_CALLABLE,
                    "a function": Bad(gives_factors, "of no Cell", True, {"weights": [W]}),
                },
                "fisher": {**NO_MODE, "None": None},
                "mc_samples": NO_COUNT,
                "approx": {**NO_MODE, "None": None},
                "separate_bias": NO_BOOL,
                "seed": NO_SEED,
                "blocks": without(NO_MODE, "None"),
                "block_diagonal": {"layer": "layer"},
                "checkpoint": FILE,
            },
        )
        for name in ("KFACOperator", "EKFACOperator")
    },
    "JacobianOperator": (
        mh.JacobianOperator,
        {"network": NET, "data": DATA},
        {
            **{
                name: OPERATOR[name]
                for name in ("network", "data", "weights", "chunk_size", "progress", "output")
            },
            "network": {
                **OPERATOR["network"],
                "in training mode": Bad(TRAINED, "training mode", also={"weights": [W]}),
            },
        },
    ),
    "J @": (
        product,
        {"op": Made(jacobian)},
        {
            "v": {
                **named(VECTOR, "vector|Tensor|weights?"),
                "an operator": Bad(Made(curvature_operator), "brackets"),
            }
        },
    ),
    "u @ J": (
        lambda op, v: v @ op,
        {"op": Made(jacobian)},
        {
            "v": named(
                {"a short one": np.ones(3), "complex": np.ones(8) * 1j, "None": None, "text": "v"},
                "vector",
            )
        },
    ),
    "per_sample_gradients": (
        mh.per_sample_gradients,
        {"network": NET, "loss_fn": LOSS, "batch": DATA},
        {
            **{
                name: OPERATOR[name]
                for name in ("network", "loss_fn", "weights", "chunk_size", "progress", "output")
            },
            "network": {
                **OPERATOR["network"],
                "in training mode": Bad(TRAINED, "training mode", also={"weights": [W]}),
            },
            "batch": {
                name: Bad(
                    bad.value if isinstance(bad, Bad) else bad,
                    bad.says if isinstance(bad, Bad) and bad.says else "data",
                )
                for name, bad in BATCHES.items()
            },
        },
    ),
    "a product with HessianOperator": (
        run(mh.HessianOperator),
        GOOD_OPERATOR,
        {
            "network": {
                "returns text": Bad(network_of_text, "network", True, {"weights": [W]}),
                "takes no arguments": Bad(network_of_nothing, "argument", True, {"weights": [W]}),
            },
            "loss_fn": {
                "returns None": Bad(loss_of_none, "loss_fn must", True),
                "returns a vector": Bad(loss_of_vector, "loss_fn must return one number", True),
                "takes one argument": Bad(loss_of_one, "argument", True),
            },
            "data": {
                "None in a batch": Bad((None, YS), "batch 0.*None", True),
                "fewer rows of targets": Bad((XS, YS[:3]), "batch 0", True),
                "fewer rows in the second": Bad([DATA, (XS, YS[:3])], "batch 1", True),
                "of another width": Bad(
                    (Tensor(np.ones((4, 5), np.float32)), YS), "batch 0.*MatMul", True
                ),
                "of another dtype": Bad((XS.astype(ms.float64), YS), "batch 0.*Float64", True),
                "of integers": Bad((XS.astype(ms.int32), YS), "batch 0.*Int32", True),
                "targets of another width": Bad(
                    (XS, Tensor(np.ones((4, 3), np.float32))), "batch 0.*shape", True
                ),
                "a third member": Bad((XS, XS, YS), "batch 0.*argument", True),
                "no target": Bad((XS,), "batch 0.*argument", True),
            },
            "output": {
                "of no tuple": Bad(5, "output", True),
                "no key of it": Bad("logits", "output", True),
                "of text": Bad(gives_text, "batch 0.*String", True),
            },
            "batch_weight": {
                "gives None": Bad(lambda batch: None, "batch_weight.*batch 0", True),
                "gives text": Bad(lambda batch: "4", "batch_weight.*batch 0", True),
                "gives NaN": Bad(lambda batch: np.nan, "batch_weight.*batch 0", True),
                "gives several": Bad(lambda batch: XS, "batch_weight.*batch 0", True),
                "gives a negative number": Bad(lambda batch: -1, "batch_weight.*batch 0", True),
            },
            "weights": {"not in the network": Bad([OTHER], "'other' is not in the function")},
        },
    ),
    "labels": (
        run(mh.GGNOperator),
        {**GOOD_OPERATOR, "loss_fn": nn.CrossEntropyLoss(), "data": (XS, LABELS)},
        {
            "data": {
                "floats": Bad((XS, LABELS.astype(ms.float32)), "batch 0.*labels", True),
                "bools": Bad((XS, LABELS.astype(ms.bool_)), "batch 0.*labels", True),
                "a column": Bad((XS, LABELS.reshape(4, 1)), "batch 0.*labels", True),
                "text": Bad((XS, "0101"), "batch 0.*target", True),
            }
        },
    ),
    "op @": (product, {"op": Made(curvature_operator)}, {"v": named(VECTOR, "vector|Tensor")}),
    "op.product": (
        lambda op, vectors, checkpoint=None: op.product(vectors, checkpoint),
        {"op": Made(curvature_operator), "vectors": np.ones(17, np.float32)},
        {
            "vectors": named(
                without(VECTOR, "Tensors of wrong shapes", "too many Tensors"), "vector"
            ),
            "checkpoint": {
                "an int": 3,
                "a bool": True,
                "no folder": "none/file.npz",
                "a folder": "/",
                "a list": ["a"],
                "a foreign file": Made(lambda: str(HERE)),
                "an empty name": "",
            },
        },
    ),
    "op.plan": (
        lambda op, columns=1, max_memory=None: op.plan(columns, max_memory),
        {"op": Made(curvature_operator)},
        {"columns": NO_COUNT, "max_memory": NO_COUNT_OR_NONE},
    ),
    "op.block": (
        lambda op, name: op.block(name),
        {"op": Made(curvature_operator)},
        {
            "name": named(
                {
                    "None": None,
                    "unknown": "dense",
                    "an int": 0,
                    "a list": ["0.weight"],
                    "empty": "",
                },
                "layer",
            )
        },
    ),
    "op.flatten": (
        lambda op, structure: op.flatten(structure),
        {"op": Made(curvature_operator)},
        {
            "structure": named(
                {
                    "None": None,
                    "an int": 3,
                    "text": "abcd",
                    "too few": [X],
                    "wrong shapes": [X] * 4,
                    "None inside": [None] * 4,
                    "an array": np.ones(17),
                },
                "weights?",
            )
        },
    ),
    "op.unflatten": (
        lambda op, flat: op.unflatten(flat),
        {"op": Made(curvature_operator)},
        {
            "flat": named(
                {
                    "None": None,
                    "an int": 3,
                    "text": "abcd",
                    "too short": np.ones(3),
                    "a matrix": np.ones((17, 2)),
                    "objects": np.array([None] * 17),
                },
                "vector",
            )
        },
    ),
    "op *": (
        lambda op, factor: op * factor,
        {"op": Made(curvature_operator)},
        {
            "factor": named(
                {
                    "None": None,
                    "text": "2",
                    "complex": 2j,
                    "NaN text": "nan",
                    "an object": object(),
                },
                "operator",
            )
        },
    ),
    "op /": (
        lambda op, factor: op / factor,
        {"op": Made(curvature_operator)},
        {"factor": named({"None": None, "text": "2", "complex": 2j, "zero": 0}, "operator")},
    ),
    "op +": (
        lambda op, other: op + other,
        {"op": Made(curvature_operator)},
        {
            "other": named(
                {
                    "None": None,
                    "a number": 0.1,
                    "text": "op",
                    "an array": np.eye(17),
                    "of another size": Made(lambda: curvature_operator().block("0")),
                },
                "operator",
            )
        },
    ),
    "op -": (
        lambda op, other: op - other,
        {"op": Made(curvature_operator)},
        {
            "other": named(
                {"None": None, "a number": 0.1, "text": "op", "an array": np.eye(17)}, "operator"
            )
        },
    ),
    "op.at": (
        lambda op, point: op.at(point).__enter__(),
        {"op": Made(curvature_operator)},
        {
            "point": named(
                {
                    "a short one": np.ones(3),
                    "complex": np.ones(17) * 1j,
                    "None": None,
                    "text": "v",
                    "NaN": np.full(17, np.nan),
                    "a matrix": np.ones((17, 1)),
                    "a short list": [X],
                },
                "point|weights",
            )
        },
    ),
    "op @ op": (
        product,
        {"op": Made(curvature_operator)},
        {
            "v": {
                "of another size": Bad(
                    Made(lambda: curvature_operator().block("0")), "operators of different shapes"
                )
            }
        },
    ),
    "v @ op": (
        lambda op, v: v @ op,
        {"op": Made(curvature_operator)},
        {
            "v": named(
                {"a short one": np.ones(3), "complex": np.ones(17) * 1j, "None": None, "text": "v"},
                "vector",
            )
        },
    ),
    "distributed.session": (
        lambda timeout: distributed.session(timeout).__enter__(),
        {},
        {"timeout": NO_COUNT},
    ),
}


# --- estimators -----------------------------------------------------------------------------------


class Given:
    """An operator whose product or whose attributes are bad."""

    shape, dtype = (4, 4), np.dtype(np.float64)

    def __init__(self, image=lambda v: v, **attributes):
        self.image = image
        self.__dict__.update(attributes)

    def __matmul__(self, v):
        return self.image(v)


class Layered(Given):
    layers = {"a": np.array([0, 1]), "b": np.array([2, 3])}


NO_OP = {
    **NO_OBJECT,
    "an array of one axis": np.ones(4),
    "not square": np.ones((4, 3)),
    "no rows": np.zeros((0, 0)),
    "three axes": np.ones((2, 2, 2)),
    "complex": np.eye(4) * 1j,
    "text": np.array([["a", "b"], ["c", "d"]]),
    "objects": np.array([[None, None], [None, None]]),
    "NaN inside": np.full((4, 4), np.nan),
    "a list of text": [["a"]],
    "the class, not an operator": mh.HessianOperator,
    "a network": NET,
    "a function": cube,
    "Identity alone": mh.Identity,
}
ATTRIBUTES = {
    "a shape of text": {"shape": "ab"},
    "a shape of one": {"shape": (4,)},
    "a shape of floats": {"shape": (4.5, 4.5)},
    "a shape that is a number": {"shape": 4},
    "a dtype of nothing": {"dtype": "nothing"},
    "a product of None": {"image": lambda v: None},
    "a product of text": {"image": lambda v: "v"},
    "a short product": {"image": lambda v: v[:2]},
    "a product of a list": {"image": lambda v: ["a"] * 4},
    "a product of NaN": {"image": lambda v: v * np.nan},
    "a complex product": {"image": lambda v: v * 1j},
}


def operators_with_bad(kind):
    """Operators of a kind with one bad attribute each."""
    return {name: Made(partial(kind, **attributes)) for name, attributes in ATTRIBUTES.items()}


BAD_OP = {**NO_OP, **operators_with_bad(Given)}
LOPSIDED = {"not symmetric": np.triu(np.ones((4, 4)))}
COMMON = {"seed": NO_SEED, "progress": NO_PROGRESS, "checkpoint": FILE}
PROBES = {"batch": NO_COUNT, "distribution": NO_MODE}
SEARCH_TOL = {"tol": NO_POSITIVE}
OP = {"op": MATRIX}
NO_RIGHT = {
    "text": "v",
    "short": np.ones(3),
    "a matrix": np.ones((4, 1)),
    "NaN": np.full(4, np.nan),
    "complex": np.ones(4) * 1j,
    "objects": np.array([None] * 4),
    "a number": 1.0,
    "ragged": [1.0, [1.0], 1.0, 1.0],
}

ESTIMATORS = {
    "trace": (
        mh.trace,
        OP,
        {
            "op": BAD_OP,
            "method": NO_MODE,
            "tol": NO_TOL,
            "max_products": NO_COUNT,
            **COMMON,
            **PROBES,
        },
    ),
    "diagonal": (
        mh.diagonal,
        OP,
        {
            "op": BAD_OP,
            "method": NO_MODE,
            "tol": NO_TOL,
            "max_products": NO_COUNT_OR_NONE,
            **COMMON,
            **PROBES,
        },
    ),
    "frobenius_norm": (
        mh.frobenius_norm,
        OP,
        {"op": BAD_OP, "tol": NO_TOL, "max_products": NO_COUNT, **COMMON, **PROBES},
    ),
    "logdet": (
        mh.logdet,
        OP,
        {
            "op": {
                **BAD_OP,
                **LOPSIDED,
                "not positive": Bad(np.diag([1.0, -1.0]), "positive definite"),
            },
            "damping": {**without(NO_POSITIVE, "zero")},
            "num_steps": NO_COUNT,
            "tol": NO_TOL,
            "max_products": NO_COUNT,
            **COMMON,
            **PROBES,
        },
    ),
    "spectral_density": (
        mh.spectral_density,
        OP,
        {
            "op": {**BAD_OP, **LOPSIDED},
            "num_probes": {**NO_COUNT, "one": 1},
            "num_steps": NO_COUNT,
            "grid": {
                "text": "grid",
                "one point": [0.0],
                "falling": [1.0, 0.0],
                "NaN": [0.0, np.nan],
                "a matrix": np.ones((2, 2)),
                "a number": 3.0,
                "a list of text": ["a", "b"],
                "complex": np.arange(4) * 1j,
                "None inside": [None, 1.0],
                "a dict": {},
                "negative on a log scale": Bad([-1.0, 1.0], also={"scale": "log"}),
            },
            "scale": NO_MODE,
            "kernel": NO_MODE,
            "sigma": NO_POSITIVE_OR_NONE,
            "max_products": NO_COUNT_OR_NONE,
            **COMMON,
            **PROBES,
        },
    ),
    "eigsh": (
        mh.eigsh,
        {**OP, "k": 1},
        {
            "op": {**BAD_OP, **LOPSIDED},
            "k": {**NO_COUNT, "more than n": 5},
            "which": NO_MODE,
            **SEARCH_TOL,
            "v0": {**NO_RIGHT, "zero": np.zeros(4), "a list of text": ["a"] * 4, "a dict": {}},
            "max_products": NO_COUNT_OR_NONE,
            "ncv": {**NO_COUNT_OR_NONE, "too small": 2},
            **COMMON,
        },
    ),
    "negative_curvature": (
        mh.negative_curvature,
        OP,
        {
            "op": {**BAD_OP, **LOPSIDED},
            **SEARCH_TOL,
            "max_products": {**NO_COUNT_OR_NONE, "one": 1},
            **COMMON,
        },
    ),
    "condition_number": (
        mh.condition_number,
        OP,
        {
            "op": {**BAD_OP, **LOPSIDED},
            **SEARCH_TOL,
            "max_products": {**NO_COUNT, "one": 1},
            **COMMON,
        },
    ),
    "solve": (
        mh.solve,
        {**OP, "b": np.ones(4)},
        {
            "op": {**BAD_OP, **LOPSIDED},
            "b": {
                **without(NO_RIGHT, "a matrix"),
                "None": None,
                "no columns": np.ones((4, 0)),
                "short columns": np.eye(3),
                "columns with NaN": np.full((4, 2), np.nan),
                "three axes": np.ones((4, 1, 1)),
                "columns with minres": Bad(np.eye(4), also={"method": "minres"}),
            },
            "damping": without(NO_POSITIVE, "zero", "negative"),
            "method": NO_MODE,
            **SEARCH_TOL,
            "max_products": {
                **NO_COUNT,
                "one": 1,
                "too few for three columns": Bad(5, also={"b": np.eye(4)[:, :3]}),
            },
            "learning_rate": {
                **named(NO_POSITIVE_OR_NONE, "learning_rate", method="neumann"),
                "with cg": 0.1,
            },
            **COMMON,
        },
    ),
    "solve with a preconditioner": (
        mh.solve,
        {**OP, "b": np.ones(4), "damping": 0.1, "preconditioner": "nystrom", "rank": 2},
        {
            "preconditioner": {
                "text": "kfac",
                "an int": 3,
                "of another size": np.eye(3),
                "a list": [],
                "negative": -np.eye(4),
                "with neumann": Bad("nystrom", also={"method": "neumann"}),
                "with lsmr": Bad("nystrom", also={"method": "lsmr"}),
                "with a checkpoint": Bad("nystrom", "checkpoint", also={"checkpoint": "a.npz"}),
            },
            "rank": NO_COUNT,
            "max_products": {"three": 3},
        },
    ),
    "nystrom": (
        mh.nystrom,
        {**OP, "rank": 2},
        {
            "op": {**BAD_OP, **LOPSIDED, "negative": Bad(-np.eye(4), "negative eigenvalues")},
            "rank": {**NO_COUNT, "more than n": 5},
            "seed": NO_SEED,
            "progress": NO_PROGRESS,
        },
    ),
    "inverse": (
        mh.inverse,
        {"op": mh.linops.Diagonal(np.ones(4)), "damping": 0.1},
        {
            "op": {
                **NO_OP,
                "not symmetric": mh.linops.Kronecker(np.triu(np.ones((4, 4)))),
                "singular": Bad(mh.linops.Diagonal(np.zeros(4)), "singular", also={"damping": 0.0}),
            },
            "damping": without(NO_POSITIVE, "zero", "negative"),
            "heuristic": {
                **NO_BOOL,
                "without structure": Bad(True, "heuristic", also={"op": Made(curvature_operator)}),
            },
            **SEARCH_TOL,
            "max_products": {**NO_COUNT, "one": 1},
            "preconditioner": {
                "text": "kfac",
                "an int": 3,
                "of another size": np.eye(3),
                "with structure": np.eye(4),
                "without damping": Bad(
                    "nystrom", also={"op": Made(curvature_operator), "damping": 0.0}
                ),
            },
            "rank": named(NO_COUNT, "rank", preconditioner=np.eye(4)),
        },
    ),
    "layer_report": (
        mh.layer_report,
        {"op": Made(Layered)},
        {
            "op": {
                **without(NO_OP, "Identity alone"),
                **operators_with_bad(Layered),
                "no layers": MATRIX,
                "layers of None": Made(lambda: Layered(layers=None)),
                "layers of text": Made(lambda: Layered(layers={"a": "b"})),
                "an index out of range": Made(lambda: Layered(layers={"a": np.array([7])})),
                "an index of floats": Made(lambda: Layered(layers={"a": np.array([0.5])})),
                "a list of layers": Made(lambda: Layered(layers=["a"])),
                "an empty layer": Made(lambda: Layered(layers={"a": []})),
            },
            "num_probes": {**NO_COUNT, "one": 1},
            **SEARCH_TOL,
            "max_products": {**NO_COUNT, "one": 1},
            **COMMON,
            "batch": NO_COUNT,
            "damping": NO_POSITIVE_OR_NONE,
        },
    ),
    "diagnose": (
        mh.diagnose,
        {**OP, "gradient": np.zeros(4)},
        {
            "op": {**BAD_OP, **LOPSIDED},
            "learning_rate": NO_POSITIVE_OR_NONE,
            "gradient": NO_RIGHT,
            "gradient_tol": NO_POSITIVE,
            **SEARCH_TOL,
            "max_products": {**NO_COUNT, "nine": 9},
            "seed": NO_SEED,
            "progress": NO_PROGRESS,
        },
    ),
}


# --- the rest -------------------------------------------------------------------------------------

GOOD_MONITOR = {"source": Made(curvature_operator)}
NO_PATH = {"an int": 3, "a list": ["a.csv"], "a bool": True}
MONITOR = {
    "source": {
        **without(NO_OBJECT, "None", "a list"),
        "None": Bad(None, "source|data"),
        "data without a network": Bad(DATA, "network"),
    },
    "network": {"a function": cube, "text": "net", "an int": 3, "a class": nn.Dense},
    "loss_fn": {"with an operator": LOSS},
    "every": NO_COUNT,
    "metrics": {
        "text": "trace",
        "None": None,
        "an int": 3,
        "unknown": ("speed",),
        "an int inside": (1,),
        "a list inside": [["trace"]],
    },
    "file": {
        **NO_PATH,
        "another ending": "a.txt",
        "no folder": "none/a.csv",
        "a folder": "/",
        "no ending": "a",
    },
    "tensorboard": NO_PATH,
    "seed": NO_SEED,
    "options": {
        "with an operator": {"reduction": "mean"},
        "text": "mean",
        "an int": 3,
        "a list": ["mean"],
    },
    "max_products": {**NO_COUNT, "three": 3},
    "tol": NO_POSITIVE,
    "progress": NO_PROGRESS,
}


def measured(step_number=1, learning_rate=None, name="step"):
    monitor = mh.CurvatureMonitor(curvature_operator(), every=1, metrics=())
    return getattr(monitor, name)(step_number, learning_rate)


CHECK = {
    "fn": NO_CALLABLE,
    "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
    "weights": NO_WEIGHTS,
    "modes": {
        **without(NO_MODE, "a list"),
        "an empty tuple": (),
        "an int inside": (1,),
        "unknown inside": ("auto", "fast"),
    },
    "rtol": NO_TOL,
    "atol": NO_TOL,
    "order": without(NO_POSITIVE, "zero"),
    "step": NO_POSITIVE,
    "directions": {**NO_COUNT, "one": 1},
    "seed": NO_SEED,
    "raise_exception": NO_BOOL,
}
EIGEN = mh.eigsh(MATRIX, k=1)
DENSITY = mh.spectral_density(MATRIX)
REPORT = mh.layer_report(Layered())
NO_AXES_OBJECT = {"an int": 3, "text": "ax", "a list": [1], "an object": object()}
DIRECTION = {
    "None": None,
    "text": "v",
    "short": np.ones(3),
    "zero": np.zeros(17),
    "NaN": np.full(17, np.nan),
    "complex": np.ones(17) * 1j,
    "objects": np.array([None] * 17),
    "a number": 1.0,
    "a short list": Bad([X], "vector"),
}
OF_NETWORK = {
    **NO_OBJECT,
    "a matrix": MATRIX,
    "a sum": Made(lambda: curvature_operator() + mh.Identity),
}
LINE = {"radius": NO_POSITIVE, "points": {**NO_COUNT, "even": 4, "one": 1}, "ax": NO_AXES_OBJECT}
FOUR = {"a": [0, 1], "b": [2, 3]}


def getter(prim):
    return None


REST = {
    "CurvatureMonitor": (mh.CurvatureMonitor, GOOD_MONITOR, MONITOR),
    "CurvatureMonitor, of data": (
        mh.CurvatureMonitor,
        {
            "source": DATA,
            "network": NET,
            "loss_fn": LOSS,
            "options": {"check_deterministic": False, "reduction": "mean"},
        },
        {
            "source": named(
                {
                    name: BATCHES[name]
                    for name in ("None", "an int", "an empty list", "an iterator")
                },
                "data",
            ),
            "network": without(NO_CALLABLE, "None"),
            "loss_fn": without(NO_CALLABLE, "None"),
            "options": {
                "unknown": Bad({"speed": 1}, "speed"),
                "a bad one": Bad({"chunk_size": 0}, "chunk_size"),
            },
        },
    ),
    "CurvatureMonitor.step": (
        measured,
        {},
        {
            "step_number": without(NO_SEED, "None"),
            "learning_rate": {
                "text": "0.1",
                "a list": [0.1],
                "an object": object(),
                "a long Tensor": X,
            },
        },
    ),
    "CurvatureMonitor.measure": (
        measured,
        {"name": "measure"},
        {"step_number": without(NO_SEED, "None")},
    ),
    "saliency": (
        mh.saliency,
        {"op": Made(partial(curvature_operator, mh.GGNOperator)), "damping": 0.1},
        {
            "op": OF_NETWORK,
            "method": NO_MODE,
            "damping": without(NO_POSITIVE, "zero"),
            "per": NO_MODE,
            "diagonal": {
                "text": "exact",
                "short": np.ones(3),
                "NaN": np.full(17, np.nan),
                "a number": 1.0,
                "complex": np.ones(17) * 1j,
                "with a damping": Bad(np.ones(17), "damping"),
                "not positive, for obs": Bad(np.zeros(17), also={"method": "obs", "damping": 0.0}),
            },
        },
    ),
    "noise_scale": (
        mh.noise_scale,
        {"op": Made(curvature_operator)},
        {"op": OF_NETWORK, "chunk_size": NO_COUNT_OR_NONE},
    ),
    "audit": (
        mh.audit,
        {"fn": cube, "inputs": X},
        {
            "fn": {**NO_CALLABLE, "a builtin": Bad(len, "len"), "a class": Bad(nn.Dense, "Dense")},
            "inputs": {**NO_INPUTS, **BAD_ARGUMENT},
            "grad_position": NO_POSITION,
            "weights": {**NO_WEIGHTS, **NOT_IN},
        },
    ),
    "configure": (
        mh.configure,
        {"device": "CPU"},
        {
            "device": {**NO_MODE, "unknown": "TPU"},
            "device_id": named({**NO_INT, "negative": -1, "no such device": 7}, "device_id|CPU:"),
            "mode": {**NO_CHOICE, "a bool": True},
            "jit_level": NO_CHOICE,
            "deterministic": without(NO_BOOL, "None"),
            "precision": NO_CHOICE,
            "pin_threads": without(NO_BOOL, "None"),
            "max_cpu_isa": NO_CHOICE,
        },
    ),
    "set_cache_size": (mh.set_cache_size, {}, {"maxsize": NO_COUNT}),
    "set_progress": (mh.set_progress, {}, {"progress": NO_PROGRESS}),
    "rules.register_derivative": (
        rules.register_derivative,
        {"primitive": "NoSuchPrimitive", "getter": getter},
        {
            "primitive": {
                "None": None,
                "an int": 3,
                "empty": "",
                "a primitive": ops.Add(),
                "a list": ["Add"],
            },
            "getter": NO_CALLABLE,
            "why": {"None": None, "an int": 3},
            "replaces": NO_BOOL,
        },
    ),
    "rules.register_batching": (
        rules.register_batching,
        {"primitive": "NoSuchPrimitive", "getter": getter},
        {
            "primitive": {
                "None": None,
                "an int": 3,
                "empty": "",
                "a primitive": ops.Add(),
                "a list": ["Add"],
            },
            "getter": NO_CALLABLE,
            "why": {"None": None, "an int": 3},
            "replaces": NO_BOOL,
        },
    ),
    "rules.register_forward": (
        rules.register_forward,
        {"primitive": "NoSuchPrimitive", "getter": getter},
        {
            "primitive": {
                "None": None,
                "an int": 3,
                "empty": "",
                "a primitive": ops.Add(),
                "a list": ["Add"],
            },
            "getter": NO_CALLABLE,
            "why": {"None": None, "an int": 3},
            "replaces": NO_BOOL,
        },
    ),
    "rules.register_taylor": (
        rules.register_taylor,
        {"primitive": "NoSuchPrimitive", "getter": getter},
        {
            "primitive": {
                "None": None,
                "an int": 3,
                "empty": "",
                "a primitive": ops.Add(),
                "a list": ["Add"],
            },
            "getter": NO_CALLABLE,
            "why": {"None": None, "an int": 3},
            "replaces": NO_BOOL,
        },
    ),
    "testing.check_hvp": (
        testing.check_hvp,
        {"fn": cube, "inputs": X},
        {
            **CHECK,
            "vectors": {**without(NO_VECTORS, "None"), "zero": V * 0},
            "grad_position": NO_POSITION,
        },
    ),
    "testing.check_hessian": (
        testing.check_hessian,
        {"fn": cube, "inputs": X},
        {**CHECK, "grad_position": NO_POSITION},
    ),
    "EigshResult.vector": (
        EIGEN.vector,
        {},
        {"i": {**NO_INT, "None": None, "above": 1, "below": -2}},
    ),
    "SpectralDensity.moment": (DENSITY.moment, {}, {"k": NO_SEED}),
    "SpectralDensity.mass_below": (DENSITY.mass_below, {}, {"x": {**NO_NUMBER, "None": None}}),
    "EigshResult.save": (EIGEN.save, {}, {"path": {**NO_PATH, "None": None, "a network": NET}}),
    "LayerReport.to_csv": (REPORT.to_csv, {}, {"path": {**NO_PATH, "a network": NET}}),
}


def of_laplace(name, **arguments):
    """A method of a posterior that is good."""
    return getattr(mh.Laplace(NET, (XS, LABELS), progress=False), name)(**arguments)


NO_PRIOR = {
    "None": None,
    "text": "1",
    "zero": 0.0,
    "negative": -1.0,
    "NaN": np.nan,
    "infinite": np.inf,
    "an empty list": [],
    "a matrix": np.eye(2),
    "one negative": [1.0, -1.0],
    "three": [1.0, 1.0, 1.0],
    "complex": 1j,
    "a network": NET,
}
LAPLACE = {
    "Laplace": (
        mh.Laplace,
        {"network": NET, "data": (XS, LABELS)},
        {
            "network": {
                **NO_CALLABLE,
                "a function": cube,
                "a class": nn.Dense,
                "in training": Bad(
                    nn.SequentialCell(nn.Dense(2, 2), nn.Dropout(p=0.5)).set_train(), "training"
                ),
            },
            "data": {
                **{
                    name: BATCHES[name]
                    for name in ("None", "an int", "an empty list", "an iterator")
                },
                "without labels": Bad(XS, "target"),
                "float labels": Bad((XS, YS), "integer label"),
                "labels out of range": Bad((XS, LABELS + 1), "from 0 to 1"),
                "labels of another shape": Bad((XS, LABELS.reshape(4, 1)), "label for each sample"),
            },
            "likelihood": NO_MODE,
            "structure": NO_MODE,
            "prior_precision": NO_PRIOR,
            "sigma_noise": {**NO_POSITIVE, "for classes": 0.5},
            "rank": NO_COUNT,
            "progress": NO_PROGRESS,
            "weights": {
                "text": "w",
                "an int": 3,
                "a Tensor": X,
                "an empty list": [],
                "twice the same": [W, W],
                "a dict": {"w": W},
                "None in a list": [None],
            },
        },
    ),
    "Laplace, of targets": (
        mh.Laplace,
        {"network": NET, "data": DATA, "likelihood": "regression"},
        {
            "data": {
                "integers": Bad((XS, LABELS), "float targets"),
                "one column": Bad((XS, YS[:, :1]), "float targets"),
            },
            "prior_precision": {
                "within a block, for kron": Bad(np.arange(1.0, 9.0), also={"structure": "kron"})
            },
        },
    ),
    "Laplace.predict": (
        of_laplace,
        {"name": "predict", "x": XS},
        {
            "x": {"None": None, "text": "x", "a float": 1.0, "a list": [1.0]},
            "link": NO_MODE,
            "num_samples": NO_COUNT,
            "seed": NO_SEED,
        },
    ),
    "Laplace.functional_variance": (
        of_laplace,
        {"name": "functional_variance", "x": XS},
        {"x": {"None": None, "text": "x"}, "diagonal": NO_BOOL},
    ),
    "Laplace.sample": (of_laplace, {"name": "sample"}, {"n": NO_COUNT, "seed": NO_SEED}),
    "Laplace.log_marginal_likelihood": (
        of_laplace,
        {"name": "log_marginal_likelihood"},
        {
            "prior_precision": without(NO_PRIOR, "None"),
            "sigma_noise": {**NO_POSITIVE_OR_NONE, "for classes": 0.5},
        },
    ),
    "Laplace.evidence_gradient": (
        of_laplace,
        {"name": "evidence_gradient"},
        {
            "prior_precision": without(NO_PRIOR, "None"),
            "sigma_noise": {**NO_POSITIVE_OR_NONE, "for classes": 0.5},
        },
    ),
    "Laplace.optimize_prior_precision": (
        of_laplace,
        {"name": "optimize_prior_precision"},
        {"per": NO_MODE, "noise": {**NO_BOOL, "for classes": True}, "max_iterations": NO_COUNT},
    ),
    "calibration": (
        mh.calibration,
        {"probabilities": [[0.9, 0.1], [0.2, 0.8]], "labels": [0, 1]},
        {
            "probabilities": {
                "None": None,
                "text": "p",
                "logits": [[3.0, -1.0], [0.2, 0.8]],
                "NaN": [[np.nan, 0.5], [0.2, 0.8]],
                "one axis": [0.9, 0.1],
                "empty": np.zeros((0, 2)),
            },
            "labels": {
                "None": None,
                "floats": [0.0, 1.0],
                "three": [0, 1, 1],
                "negative": [-1, 0],
                "too large": [0, 2],
            },
            "bins": NO_COUNT,
        },
    ),
}
OF_INFLUENCE = {
    "network": {
        **NO_CALLABLE,
        "a function": cube,
        "a class": nn.Dense,
        "in training": Bad(
            nn.SequentialCell(nn.Dense(2, 2), nn.Dropout(p=0.5)).set_train(), "training"
        ),
    },
    "loss_fn": NO_CALLABLE,
    "train": named(
        {name: BATCHES[name] for name in ("None", "an int", "an empty list", "an iterator")}, "data"
    ),
    "curvature": {
        **NO_MODE,
        "another size": Bad(mh.linops.Kronecker(np.eye(3)), "curvature.*weights"),
    },
    "damping": {**NO_NUMBER, "None": None, "negative": -1.0, "infinite": np.inf},
    "method": NO_MODE,
    "tol": NO_POSITIVE,
    "preconditioner": {
        "text": "kfac",
        "an int": 3,
        "of another size": np.eye(3),
        "with structure": Bad("nystrom", also={"curvature": "ekfac"}),
        "with a matrix": Bad("nystrom", also={"method": "dense"}),
        "without damping": Bad("nystrom", also={"damping": 0.0}, compiles=True),
    },
    "rank": named(NO_COUNT, "rank", preconditioner="nystrom"),
    "per_layer": NO_BOOL,
    "distributed": {**NO_BOOL, "without a job": Bad(True, "distributed=True.*msrun")},
    "progress": NO_PROGRESS,
    "weights": {
        "an int": 3,
        "a Tensor": X,
        "an empty list": [],
        "twice the same": [W, W],
        "an unknown name": "dense.*",
    },
}
INFLUENCE = {
    "influence": (
        mh.influence,
        {"network": NET, "loss_fn": LOSS, "train": DATA, "test": DATA},
        {
            **OF_INFLUENCE,
            "test": {
                **named({"None": None, "an int": 3, "an empty list": []}, "data"),
                "without a target": Bad(XS, "target"),
            },
            "query_rank": NO_COUNT_OR_NONE,
        },
    ),
    "self_influence": (
        mh.self_influence,
        {"network": NET, "loss_fn": LOSS, "train": DATA},
        OF_INFLUENCE,
    ),
    "most_influential": (
        mh.most_influential,
        {"scores": [[1.0, 2.0]], "k": 1},
        {
            "scores": {
                "None": None,
                "text": "s",
                "NaN": [np.nan],
                "empty": [],
                "three axes": np.ones((1, 1, 1)),
                "complex": [1j],
            },
            "k": {**NO_COUNT, "too many": 3},
            "which": NO_MODE,
        },
    ),
}
PLOTS = {
    "plot.density": (
        plot.density,
        {"found": DENSITY},
        {
            "found": {**NO_OBJECT, "a dict": {}, "an array": MATRIX},
            "floor": NO_POSITIVE_OR_NONE,
            "ax": NO_AXES_OBJECT,
        },
    ),
    "plot.training": (
        plot.training,
        {"history": [{"step": 1, "sharpness": 2.0}]},
        {
            "history": {
                "None": None,
                "an int": 3,
                "empty": [],
                "text": "history",
                "ints": [1, 2],
                "without sharpness": [{"step": 1}],
                "text inside": [{"step": "a", "sharpness": "b"}],
                "a bad rate": Bad(
                    [{"step": 1, "sharpness": 2.0, "learning_rate": "x"}], "learning_rate|history"
                ),
            },
            "learning_rate": NO_POSITIVE_OR_NONE,
            "ax": NO_AXES_OBJECT,
        },
    ),
    "plot.loss_line": (
        plot.loss_line,
        {"op": Made(curvature_operator), "vector": np.ones(17)},
        {"op": OF_NETWORK, "vector": DIRECTION, **LINE},
    ),
    "plot.loss_plane": (
        plot.loss_plane,
        {"op": Made(curvature_operator), "v1": np.eye(17)[0], "v2": np.eye(17)[1]},
        {
            "op": OF_NETWORK,
            "v1": DIRECTION,
            "v2": {**DIRECTION, "parallel to v1": np.eye(17)[0]},
            **LINE,
        },
    ),
    "plot.blocks": (
        plot.blocks,
        {"matrix": MATRIX, "layers": FOUR},
        {
            "matrix": {
                **NO_OBJECT,
                "not square": np.ones((4, 3)),
                "NaN": np.full((4, 4), np.nan),
                "complex": np.eye(4) * 1j,
                "text inside": [["a", "b"], ["c", "d"]],
                "ragged": [[1.0], [1.0, 2.0]],
            },
            "layers": {
                "text": "layers",
                "a list": [0, 1],
                "empty": {},
                "None without an operator": None,
                "out of range": Bad({"a": [7]}, "layer"),
                "negative": Bad({"a": [-1]}, "layer"),
                "floats": Bad({"a": [0.5]}, "layer"),
                "text inside": Bad({"a": "b"}, "layer"),
                "an empty layer": Bad({"a": []}, "layer"),
                "None inside": Bad({"a": None}, "layer"),
            },
            "entries": NO_BOOL,
            "ax": NO_AXES_OBJECT,
        },
    ),
    "plot.layers": (
        plot.layers,
        {"report": REPORT},
        {
            "report": {**NO_OBJECT, "a dict": {}},
            "columns": {
                "text": "trace",
                "None": None,
                "an int": 3,
                "empty": (),
                "unknown": ("speed",),
                "a list inside": [["trace"]],
                "an int inside": [1],
                "not in the report": ["effective_dimension"],
            },
            "ax": NO_AXES_OBJECT,
        },
    ),
    "plot.factors": (
        plot.factors,
        {"op": Made(partial(curvature_operator, mh.KFACOperator))},
        {"op": {**OF_NETWORK, "a Hessian": Made(curvature_operator)}, "ax": NO_AXES_OBJECT},
    ),
}


# --- optim ----------------------------------------------------------------------------------------

NO_START = {
    "None": None,
    "text": "x",
    "a float": 1.0,
    "an array": np.ones(2),
    "an empty tuple": (),
    "an array inside": (np.ones(2),),
    "None inside": (None,),
    "integers": Tensor([1, 2]),
    "complex": Tensor(np.ones(2, np.complex64)),
    "empty": EMPTY,
    "a set": {1.0},
}
NO_POINT = {
    "None": None,
    "text": "x",
    "short": np.ones(1),
    "a matrix": np.ones((2, 1)),
    "complex": np.ones(2) * 1j,
}
NO_PARAMETERS = {
    **without(NO_WEIGHTS, "integers", "in a nested list", "a network"),
    "integers": Bad([WHOLE], "'whole', has dtype"),
    "in a nested list": [[W]],
}
UNKNOWNS = {
    "fn": {**NO_CALLABLE, "a vector": Bad(vector, "one number", True)},
    "x0": NO_START,
    "sparse": NO_BOOL,
    "weights": without(NO_PARAMETERS, "a dict", "a set") | {"a dict": {"w": W}, "a set": {W}},
    "args": {"None": None, "a Tensor": X, "a list": [X]},
    "dtype": {"None": None, "text": "float64", "an int": 3, "integers": ms.int32},
}
FITTED = Parameter(Tensor([1.0, 2.0]), name="fitted")


def misfit(x):
    return FITTED * x - 1.0


def solver_of(kind=mh.optim.LevenbergMarquardt, **options):
    return kind(misfit, [FITTED], **options)


def ada(**options):
    return mh.optim.AdaHessian(NET.trainable_params(), **options)


def drawing():
    return mh.optim.Sophia(NET.trainable_params(), estimator="gnb")


NO_GROUPS = {
    **named(NO_PARAMETERS, "params"),
    "an unknown key": [{"params": [W], "speed": 3}],
    "integers": Bad([WHOLE], "'whole', has dtype"),
    "a group of text": Bad([{"params": "w"}], "weights"),
}
NO_SHARE = {**without(NO_POSITIVE, "zero"), "one": 1.0}
NO_RATE = {
    "text": "0.1",
    "None": None,
    "negative": -0.1,
    "NaN": np.nan,
    "a bool": True,
    "empty": [],
    "a dict": {"lr": 0.1},
    "a negative one": [0.1, -0.1],
}
RATES = {
    "params": NO_GROUPS,
    "learning_rate": NO_RATE,
    "beta1": NO_SHARE,
    "beta2": NO_SHARE,
    "weight_decay": without(NO_POSITIVE, "zero", "a network"),
    "loss_scale": NO_POSITIVE,
}
NO_SHARES = {
    "text": "1",
    "zero": (0.0,),
    "negative": (-1.0,),
    "NaN": (np.nan,),
    "empty": (),
    "an int": 3,
    "None inside": (None,),
    "nested": ((1.0,),),
}
FIT = {
    "max_steps": NO_COUNT,
    "tol": without(NO_POSITIVE, "zero"),
    "target": without(NO_POSITIVE, "zero", "negative", "None"),
    "max_seconds": NO_POSITIVE_OR_NONE,
    "callback": without(NO_CALLABLE, "None"),
    "progress": NO_PROGRESS,
    "checkpoint": FILE,
}
NO_STATE = {
    "None": None,
    "text": "state",
    "empty": {},
    "of another": {"speed": 1.0},
    "text inside": {"damping": "1", "growth": 2.0, "num_steps": 0},
    "NaN inside": {"damping": np.nan, "growth": 2.0, "num_steps": 0},
}
OPTIM = {
    "optim.AdaHessian": (
        mh.optim.AdaHessian,
        {"params": [W]},
        {
            **RATES,
            "eps": NO_POSITIVE,
            "hessian_power": {**without(NO_POSITIVE, "zero"), "above 1": 1.5},
            "spatial_average": without(NO_MODE, "None"),
        },
    ),
    "optim.Sophia": (
        mh.optim.Sophia,
        {"params": [W]},
        {**RATES, "rho": NO_POSITIVE, "update_interval": NO_COUNT, "estimator": NO_MODE},
    ),
    "optim.KFAC": (
        mh.optim.KFAC,
        {"network": NET},
        {
            "network": {**NO_OBJECT, "a function": cube, "a class": nn.Dense},
            "params": NO_GROUPS,
            "learning_rate": NO_RATE,
            "momentum": NO_SHARE,
            "damping": NO_POSITIVE,
            "fisher": NO_MODE,
            "approx": NO_MODE,
            "likelihood": without(NO_MODE, "None"),
            "curvature_ema": NO_SHARE,
            "curvature_update_period": NO_COUNT,
            "inverse_update_period": NO_COUNT,
            "norm_constraint": NO_POSITIVE_OR_NONE,
            "l2_reg": without(NO_POSITIVE, "zero"),
            "weight_decay": without(NO_POSITIVE, "zero", "a network"),
            "adaptive": NO_BOOL,
            "damping_interval": NO_COUNT,
            "min_damping": NO_POSITIVE,
            "burn_in": without(NO_COUNT, "zero"),
            "background": NO_BOOL,
            "loss_scale": NO_POSITIVE,
        },
    ),
    "optim.TrainStep": (
        mh.optim.TrainStep,
        {"network": NET, "loss_fn": LOSS, "optimizer": Made(ada)},
        {
            "network": {**NO_OBJECT, "a function": cube, "a class": nn.Dense},
            "loss_fn": {
                "an int": 3,
                "a string": "f",
                "a Tensor": X,
                "a class": nn.MSELoss,
                "None with drawn labels": Bad(None, "loss_fn", also={"optimizer": Made(drawing)}),
            },
            "optimizer": {
                **NO_OBJECT,
                "a class": mh.optim.Sophia,
                "of another network": Bad(
                    Made(lambda: mh.optim.AdaHessian([OTHER])), "'other'", also={"loss_fn": None}
                ),
            },
            "seed": NO_SEED,
            "clip_norm": NO_POSITIVE_OR_NONE,
            "accumulate": {
                **NO_COUNT,
                "with an adaptive K-FAC": Bad(
                    2,
                    "accumulate",
                    also={"optimizer": Made(lambda: mh.optim.KFAC(NET, adaptive=True))},
                ),
            },
            "distributed": {**NO_BOOL, "without a job": Bad(True, "joined no job")},
        },
    ),
    "optim.TrainStep()": (
        lambda **given: mh.optim.TrainStep(NET, LOSS, ada())(*given["inputs"]),
        {"inputs": DATA},
        {
            "inputs": {
                "none": (),
                "one": (XS,),
                "five": (XS,) * 5,
                "arrays": (np.ones((4, 2)), YS),
                "text": ("x", "y"),
                "None": (XS, None),
                "of another width": Bad((Tensor(np.ones((4, 5), np.float32)), YS), "MatMul", True),
            }
        },
    ),
    "optim.NewtonCG": (
        mh.optim.NewtonCG,
        {"operator": Made(curvature_operator)},
        {
            "operator": {
                **NO_OBJECT,
                "a matrix": MATRIX,
                "a class": mh.HessianOperator,
                "a network": NET,
            },
            "radius": NO_POSITIVE,
            "max_radius": NO_POSITIVE,
            "damping": without(NO_POSITIVE, "zero"),
            "max_products": NO_COUNT,
            "max_trials": NO_COUNT,
            "curvature": {**without(NO_OBJECT, "None"), "of another size": MATRIX},
            "preconditioner": {
                **without(NO_OBJECT, "None"),
                "of another size": MATRIX,
                "a name": "jacobi",
                "for a Hessian": Bad("nystrom", "preconditioner 'nystrom' .*HessianOperator"),
            },
            "rank": NO_COUNT,
            "seed": NO_SEED,
        },
    ),
    "optim.NewtonCG.fit": (
        lambda **given: mh.optim.NewtonCG(curvature_operator()).fit(**given),
        {},
        FIT,
    ),
    "optim.TrainStep(), labels": (
        lambda **given: mh.optim.TrainStep(NET, nn.CrossEntropyLoss(), drawing())(*given["inputs"]),
        {},
        {
            "inputs": {
                "one-hot targets": Bad(DATA, "gnb.*Float32"),
                "a column": Bad((XS, LABELS.reshape(4, 1)), "gnb|CrossEntropy|shape", True),
            }
        },
    ),
    "optim.LevenbergMarquardt": (
        mh.optim.LevenbergMarquardt,
        {"residuals": misfit, "weights": [FITTED]},
        {
            "residuals": NO_CALLABLE,
            "weights": NO_PARAMETERS,
            "damping": NO_POSITIVE,
            "geodesic": NO_BOOL,
            "scaled": NO_BOOL,
            "max_trials": NO_COUNT,
            "chunk_size": NO_COUNT_OR_NONE,
            "term_weights": NO_SHARES,
        },
    ),
    "optim.LevenbergMarquardt.step": (
        lambda x: solver_of().step(x),
        {"x": X},
        {"x": {"another shape": Bad(Tensor(np.ones(3, np.float32)), "(?i)shape|broadcast", True)}},
    ),
    "optim.LevenbergMarquardt.fit": (lambda **given: solver_of().fit(X, **given), {}, FIT),
    "optim.LevenbergMarquardt.load_state_dict": (
        lambda state: solver_of().load_state_dict(state),
        {},
        {"state": NO_STATE},
    ),
    "optim.ScipyProblem": (
        lambda **given: mh.optim.ScipyProblem(**given).fun(np.ones(2)),
        {"fn": cube, "x0": X},
        UNKNOWNS,
    ),
    "optim.ScipyProblem.fun": (
        lambda x: mh.optim.ScipyProblem(cube, X).fun(x),
        {"x": np.ones(2)},
        {"x": NO_POINT},
    ),
    "optim.ScipyProblem.hessp": (
        lambda p: mh.optim.ScipyProblem(cube, X).hessp(np.ones(2), p),
        {"p": np.ones(2)},
        {"p": NO_POINT},
    ),
    "optim.minimize": (
        mh.optim.minimize,
        {"fn": cube, "x0": X},
        {
            **UNKNOWNS,
            "method": {**NO_MODE, "without gradients": "Nelder-Mead"},
            "sparse": {
                **NO_BOOL,
                "with a dense method": Bad(True, "sparse=True", also={"method": "trust-exact"}),
                "with gradients only": Bad(True, "sparse=True", also={"method": "BFGS"}),
            },
            "bounds": {
                "with trust-ncg": [(0, 1), (0, 1)],
                **{
                    name: Bad(value, "bounds", also={"method": "TNC"})
                    for name, value in {
                        "text": "b",
                        "one pair": [(0, 1)],
                        "no pairs": [0, 1],
                        "text inside": [("a", "b"), ("a", "b")],
                        "an int": 3,
                    }.items()
                },
            },
            "constraints": {
                "with trust-ncg": [cube],
                **{
                    name: Bad(value, "constraint", also={"method": "SLSQP"})
                    for name, value in {
                        "a function": cube,
                        "text": "c",
                        "None inside": [None],
                        "a dict": {"type": "eq", "fun": cube},
                    }.items()
                },
            },
            "tol": without(NO_POSITIVE_OR_NONE, "zero"),
            "callback": without(NO_CALLABLE, "None"),
            "progress": NO_PROGRESS,
            "options": {
                "text": "gtol",
                "a list": ["gtol"],
                "unknown": Bad({"speed": 3}, "speed", True),
            },
        },
    ),
}
SUBJECTS: dict[str, tuple[Callable, dict, dict]] = {
    **TRANSFORMS,
    **OPERATORS,
    **ESTIMATORS,
    **LAPLACE,
    **INFLUENCE,
    **REST,
    **OPTIM,
}
if importlib.util.find_spec("matplotlib"):
    SUBJECTS |= PLOTS


def rows() -> Iterator[Row]:
    """Every bad call."""
    for subject, (call, good, wrong) in SUBJECTS.items():
        for argument, values in wrong.items():
            for kind, value in values.items():
                bad = value if isinstance(value, Bad) else Bad(value)
                arguments = {**good, **(bad.also or {}), argument: bad.value}
                yield Row(
                    f"{subject}, {argument}: {kind}",
                    call,
                    arguments,
                    argument if bad.says is None else bad.says,
                    bad.compiles,
                )
