"""What is right, in float64 and by formulas: numpy only. LeNet and ResNet have none: PyTorch in
float64 does them.
"""

from __future__ import annotations

import numpy as np
from cases import CLASSES, Case, numbered


def reference(case: Case, data: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """The results in the order in which the workers give them, or None."""
    wide = {
        key: array.astype(np.float64) if array.dtype == np.float32 else array
        for key, array in data.items()
    }
    formula = FORMULAS.get(case.problem)
    if case.what == "hvps":
        vectors = [key for key in wide if key[0] == "v"]
        each = [
            FORMULAS[case.problem]("hvp", {**wide, **{key: wide[key][number] for key in vectors}})
            for number in range(case.params["vectors"])
        ]
        return [np.stack(part) for part in zip(*each, strict=True)]
    return None if formula is None else formula(case.what, wide)


def relative_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Length of the difference over length of what is right, all parts together."""
    if [part.shape for part in found] != [part.shape for part in expected]:
        raise ValueError(
            f"shapes {[p.shape for p in found]} instead of {[p.shape for p in expected]}"
        )
    off = sum(
        float(((f.astype(np.float64) - e) ** 2).sum()) for f, e in zip(found, expected, strict=True)
    )
    return (off / sum(float((e**2).sum()) for e in expected)) ** 0.5


def mlp_input(what: str, d: dict) -> list[np.ndarray]:
    a = np.tanh(d["x"] @ d["w0"])
    return [(d["w0"] * (-2 * a * (1 - a**2) * d["w1"].sum(1))) @ d["w0"].T]


def quadratic(what: str, d: dict) -> list[np.ndarray]:
    return [(d["w0"] + d["w0"].T) / 2]


def rosenbrock(what: str, d: dict) -> list[np.ndarray]:
    x = d["x"]
    diagonal = np.zeros_like(x)
    diagonal[:-1] = 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    diagonal[1:] += 200
    return [np.diag(diagonal) + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)]


def sine(what: str, d: dict) -> list[np.ndarray]:
    return [-np.sin(d["x"]) * d["v0"]]


def softmax_of(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax(what: str, d: dict) -> list[np.ndarray]:
    p = softmax_of(d["x"] @ d["w0"] + d["w1"])
    x = np.concatenate([d["x"], np.ones((len(p), 1))], 1)
    inner = (p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :]) / len(p)
    full = np.einsum("si,scd,sj->icjd", x, inner, x, optimize=True)
    return [full[:-1, :, :-1], full[:-1, :, -1], full[-1, :, :-1], full[-1, :, -1]]


def mlp(what: str, d: dict) -> list[np.ndarray]:
    """Gradient, and Pearlmutter's R-operator: forward and backward pass with their derivatives
    along v.
    """
    w, v, x = numbered(d, "w"), numbered(d, "v"), d["x"]
    inputs, tangents = [x], [np.zeros_like(x)]  # of each layer
    for layer in range(0, 6, 2):
        a, ra = inputs[-1], tangents[-1]
        z, rz = a @ w[layer] + w[layer + 1], ra @ w[layer] + a @ v[layer] + v[layer + 1]
        if layer < 4:
            inputs.append(np.tanh(z))
            tangents.append((1 - inputs[-1] ** 2) * rz)
    p = softmax_of(z)
    delta = (p - np.eye(CLASSES)[d["y"]]) / len(p)
    rdelta = p * (rz - (p * rz).sum(1, keepdims=True)) / len(p)
    if what == "ggn":  # the gradient is linear in delta, and so is J^T
        delta = rdelta
    gradient, product = [], []
    for layer in (4, 2, 0):
        a, ra = inputs[layer // 2], tangents[layer // 2]
        gradient = [a.T @ delta, delta.sum(0), *gradient]
        product = [ra.T @ delta + a.T @ rdelta, rdelta.sum(0), *product]
        back, rback = delta @ w[layer].T, rdelta @ w[layer].T + delta @ v[layer].T
        delta, rdelta = back * (1 - a**2), rback * (1 - a**2) - 2 * back * a * ra
    return product if what == "hvp" else gradient


def points(what: str, d: dict) -> list[np.ndarray]:
    w0, b0, w1, b1, last = numbered(d, "w")
    a = np.tanh(d["x"] @ w0 + b0)
    b = np.tanh(a @ w1 + b1)
    slope = np.einsum(
        "dk,sk,kl->sdl", w0, 1 - a**2, w1, optimize=True
    )  # of the second layer's z by x
    outer = last * (1 - b**2)
    out = np.einsum("sl,sdl,sel->sde", -2 * b * outer, slope, slope, optimize=True)
    out += np.einsum("sk,dk,ek->sde", (outer @ w1.T) * -2 * a * (1 - a**2), w0, w0, optimize=True)
    return [np.trace(out, axis1=1, axis2=2)] if what == "laplacian" else [out]


FORMULAS = {
    "mlp_input": mlp_input,
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "sine": sine,
    "softmax": softmax,
    "mlp": mlp,
    "points": points,
}
