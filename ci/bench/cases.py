"""The cases of the side-by-side benchmark: their sizes and their numbers, the same for every
library. numpy only.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field

import numpy as np

# ours calls nothing; pinned is the same after configure(pin_threads=True)
OURS, PINNED, TORCH, JAX, NAIVE, BARE = (
    "ours",
    "ours, pinned",
    "torch.func",
    "jax.jit",
    "naive MindSpore",
    "bare MindSpore @jit",
)
EVERYWHERE = (OURS, PINNED, TORCH, JAX)
CLASSES = 10
POINT_WIDTH = 32  # hidden units of the networks of one point


@dataclass(frozen=True)
class Case:
    """One row group of the table.

    Attributes:
        problem: the function, see `numbers`.
        what: hessian, gradient, hvp, hvps (of several vectors), ggn or laplacian.
        params: the sizes.
        size: what the plot has on its axis, named by `axis`; cases of one `family` are one panel.
        gradient: name of the case that is one gradient of the same function.
    """

    name: str
    problem: str
    what: str
    params: dict
    family: str
    size: int
    axis: str
    libraries: tuple[str, ...] = EVERYWHERE
    gradient: str | None = None
    options: dict = field(default_factory=dict)

    def message(self) -> dict:
        """What a worker is told."""
        told = asdict(self)
        return {key: told[key] for key in ("problem", "what", "params", "options")}


def cases(quick: bool, large: bool, resnet: bool) -> list[Case]:
    out: list[Case] = []
    naive_most = 256  # of 1024 inputs it takes all memory of a machine with 24 GB
    for n in (8, 32) if quick else (64, 256, 1024, 4096) if large else (64, 256, 1024):
        out.append(
            Case(
                f"Hessian of an MLP by its {n} inputs",
                "mlp_input",
                "hessian",
                {"n": n},
                "Hessian of an MLP",
                n,
                "inputs",
                EVERYWHERE + ((NAIVE,) if n <= naive_most else ()),
                options={"chunk_size": 512} if n > 2048 else {},
            )
        )
    n = 32 if quick else 1024
    out.append(
        Case(
            f"Hessian of a quadratic form, n = {n}",
            "quadratic",
            "hessian",
            {"n": n},
            "quadratic form",
            n,
            "inputs",
            EVERYWHERE + ((NAIVE,) if n <= naive_most else ()),
        )
    )
    n = 10 if quick else 200
    out.append(
        Case(
            f"Hessian of Rosenbrock, n = {n}",
            "rosenbrock",
            "hessian",
            {"n": n},
            "Rosenbrock",
            n,
            "inputs",
            (*EVERYWHERE, NAIVE),
        )
    )
    for inputs, samples in (
        [(4, 16)] if quick else [(64, 256), (784, 256)] if large else [(64, 256)]
    ):
        count = (inputs + 1) * CLASSES
        out.append(
            Case(
                f"Hessian of softmax regression, {count} weights",
                "softmax",
                "hessian",
                {"inputs": inputs, "samples": samples},
                "softmax regression",
                count,
                "weights",
                options={"chunk_size": 500} if count > 2048 else {},
            )
        )
    for hidden in (8, 24) if quick else (70, 280, 960, 3120) if large else (70, 280, 960):
        params = {"inputs": 16 if quick else 64, "hidden": hidden, "batch": 8 if quick else 64}
        shapes = mlp_shapes(params)
        out += by_weights(
            "MLP", "mlp", params, sum(int(np.prod(shape)) for shape in shapes), EVERYWHERE
        )
    params = (
        {"inputs": 16, "hidden": 8, "batch": 8}
        if quick
        else {"inputs": 64, "hidden": 280, "batch": 64}
    )
    count = sum(int(np.prod(shape)) for shape in mlp_shapes(params))
    for vectors in (2, 4) if quick else (2, 8, 32, 128):
        out.append(
            Case(
                f"{vectors} HVPs of an MLP at once, {count:,} weights",
                "mlp",
                "hvps",
                {**params, "vectors": vectors},
                "HVPs at once",
                vectors,
                "vectors",
                gradient=f"MLP gradient, {count:,} weights",
            )
        )
    for batch in [4] if quick else [8, 64]:
        out += by_weights(f"LeNet, batch {batch},", "lenet", {"batch": batch}, 61_706, EVERYWHERE)
    params = (
        {"batch": 2, "tokens": 3, "width": 8} if quick else {"batch": 8, "tokens": 32, "width": 64}
    )
    count = sum(int(np.prod(shape)) for shape in transformer_shapes(params))
    out += by_weights("Transformer block", "transformer", params, count, EVERYWHERE)
    for batch in () if not resnet else (2,) if quick else (8, 64):
        params = {"batch": batch, "width": 8 if quick else 64, "pixels": 16 if quick else 32}
        shapes = [shape for name, shape in resnet_shapes(params) if name in ("w", "g", "b")]
        count = sum(int(np.prod(shape)) for shape in shapes)
        out += by_weights(f"ResNet-18, batch {batch},", "resnet", params, count, EVERYWHERE)
    for what, title in (("hessian", "Batched Hessian"), ("laplacian", "Laplacian")):
        for dims in (2, 3) if quick else (2, 3, 10):
            for points in (
                (20, 50) if quick else (1000, 10_000, 100_000) if large else (1000, 10_000)
            ):
                out.append(
                    Case(
                        f"{title}, {dims} inputs, {points} points",
                        "points",
                        what,
                        {"dims": dims, "points": points},
                        f"{title}, {dims} inputs",
                        points,
                        "points",
                        (*EVERYWHERE, NAIVE) if points in (20, 1000) and dims < 10 else EVERYWHERE,
                    )
                )
    out.append(
        Case(
            "Overhead: HVP of sin(x).sum(), 64 inputs",
            "sine",
            "hvp",
            {"n": 64},
            "overhead",
            64,
            "inputs",
            (*EVERYWHERE, NAIVE, BARE),
        )
    )
    return out


def by_weights(
    title: str, problem: str, params: dict, count: int, libraries: tuple[str, ...]
) -> list[Case]:
    gradient = f"{title} gradient, {count:,} weights"
    return [
        Case(
            f"{title} {label}, {count:,} weights",
            problem,
            what,
            params,
            f"{title} {label}",
            count,
            "weights",
            libraries,
            gradient,
        )
        for what, label in (("gradient", "gradient"), ("hvp", "HVP"), ("ggn", "GGN product"))
    ]


# --- numbers --------------------------------------------------------------------------------------


def mlp_shapes(params: dict) -> list[tuple[int, ...]]:
    """Weights of ``tanh(tanh(x @ w0 + w1) @ w2 + w3) @ w4 + w5``."""
    inputs, hidden = params["inputs"], params["hidden"]
    return [(inputs, hidden), (hidden,), (hidden, hidden), (hidden,), (hidden, CLASSES), (CLASSES,)]


LENET_SHAPES = [
    (6, 1, 5, 5),
    (6,),
    (16, 6, 5, 5),
    (16,),
    (400, 120),
    (120,),
    (120, 84),
    (84,),
    (84, 10),
    (10,),
]


HEADS = 4


def transformer_shapes(params: dict) -> list[tuple[int, ...]]:
    """Weights of one block, norms before attention and before the dense layers, and of the classes:
    q, k, v and output; scale and shift of both norms; two dense layers; one for the mean over the
    tokens."""
    n = params["width"]
    return (
        [(n, n)] * 4
        + [(n,)] * 4
        + [(n, 4 * n), (4 * n,), (4 * n, n), (n,), (n, CLASSES), (CLASSES,)]
    )


def resnet_units(params: dict) -> list[tuple[int, int, int, int]]:
    """(channels in, out, kernel, stride) of each convolution with its batch norm, in the order of
    the forward pass: the stem; two for each block; after those of a block that changes its shape,
    the one of its shortcut."""
    width = params["width"]
    units, channels = [(3, width, 3, 1)], width
    for stage in range(4):
        for block in range(2):
            out, stride = width << stage, 2 if stage and not block else 1
            units += [(channels, out, 3, stride), (out, out, 3, 1)]
            if channels != out:
                units.append((channels, out, 1, stride))
            channels = out
    return units


def resnet_shapes(params: dict) -> list[tuple[str, tuple[int, ...]]]:
    """(kind, shape): w convolution or dense, g gamma, b beta or bias, m mean, s variance."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for inside, out, kernel, _ in resnet_units(params):
        shapes += [
            ("w", (out, inside, kernel, kernel)),
            ("g", (out,)),
            ("b", (out,)),
            ("m", (out,)),
            ("s", (out,)),
        ]
    return [*shapes, ("w", (params["width"] * 8, CLASSES)), ("b", (CLASSES,))]


def numbers(case: Case) -> dict[str, np.ndarray]:
    """float32 arrays: x inputs, y classes, w0, w1, ... what is fixed or the weights, v0, v1, ...
    the vectors. The same for gradient, HVP and GGN of one function."""
    seed = zlib.crc32(json.dumps([case.problem, case.params], sort_keys=True).encode())
    rng, p = np.random.default_rng(seed), case.params
    many = [p["vectors"]] if "vectors" in p else []

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def weights(shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
        out = {}
        for number, shape in enumerate(shapes):
            inside = int(np.prod(shape[1:] if len(shape) == 4 else shape[:1]))
            out[f"w{number}"] = normal(*shape, scale=0.1 if len(shape) == 1 else inside**-0.5)
            out[f"v{number}"] = normal(*many, *shape)
        return out

    def labels(count: int) -> np.ndarray:
        return rng.integers(0, CLASSES, count).astype(np.int32)

    if case.problem == "mlp_input":
        n = p["n"]
        return {
            "x": normal(n),
            "w0": normal(n, n, scale=n**-0.5),
            "w1": normal(n, n, scale=n**-0.5),
        }
    if case.problem == "quadratic":
        return {"x": normal(p["n"]), "w0": normal(p["n"], p["n"])}
    if case.problem == "rosenbrock":
        return {"x": normal(p["n"])}
    if case.problem == "sine":
        return {"x": normal(p["n"]), "v0": normal(p["n"])}
    if case.problem == "softmax":
        return {
            "x": normal(p["samples"], p["inputs"]),
            "y": labels(p["samples"]),
            **weights([(p["inputs"], CLASSES), (CLASSES,)]),
        }
    if case.problem == "mlp":
        return {
            "x": normal(p["batch"], p["inputs"]),
            "y": labels(p["batch"]),
            **weights(mlp_shapes(p)),
        }
    if case.problem == "lenet":
        return {
            "x": normal(p["batch"], 1, 28, 28),
            "y": labels(p["batch"]),
            **weights(LENET_SHAPES),
        }
    if case.problem == "transformer":
        out = {
            "x": normal(p["batch"], p["tokens"], p["width"]),
            "y": labels(p["batch"]),
            **weights(transformer_shapes(p)),
        }
        out["w4"] += 1
        out["w6"] += 1
        return out
    if case.problem == "points":
        width = POINT_WIDTH
        return {
            "x": normal(p["points"], p["dims"]),
            **weights([(p["dims"], width), (width,), (width, width), (width,), (width,)]),
        }
    return resnet_numbers(p, normal, labels, rng)


def resnet_numbers(params: dict, normal, labels, rng) -> dict[str, np.ndarray]:
    """w0, w1, ... trainable, with v0, ...; m0, s0, m1, ... the statistics of the batch norms."""
    out = {
        "x": normal(params["batch"], 3, params["pixels"], params["pixels"]),
        "y": labels(params["batch"]),
    }
    trained = norms = 0
    for kind, shape in resnet_shapes(params):
        if kind == "m":
            out[f"m{norms}"] = normal(*shape, scale=0.1)
        elif kind == "s":
            out[f"s{norms}"] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            norms += 1
        else:
            inside = int(np.prod(shape[1:] if len(shape) == 4 else shape[:1]))
            scale = (2 / inside) ** 0.5 if kind == "w" else 0.1
            out[f"w{trained}"] = normal(*shape, scale=scale) + np.float32(kind == "g")
            out[f"v{trained}"] = normal(*shape)
            trained += 1
    return out


def numbered(data: dict, letter: str) -> list:
    """The arrays w0, w1, ... of the data, in order."""
    return [data[f"{letter}{number}"] for number in range(sum(key[0] == letter for key in data))]
