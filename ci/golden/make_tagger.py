"""Curvature of a recurrent tagger over padded sequences, by torch in float64: ``python
make_tagger.py`` writes tests/golden/tagger.npz.

Seven sequences in three batches, which are padded to different lengths: the loss is the mean of the
cross-entropy over all positions that are not padding. `hessian`, `ggn` (the Fisher information as
well) and `empirical` (the mean of g g^T over these positions) are by the flat vector of wx
(row-major), wh, b, v, c.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

SHAPES = {"wx": (3, 2), "wh": (3, 3), "b": (3,), "v": (4, 3), "c": (4,)}
LENGTHS = ((4, 2, 3), (6, 1), (3, 2))  # of the sequences of each batch
PAD = -100


def data() -> list[tuple[np.ndarray, np.ndarray]]:
    rng, batches = np.random.default_rng(8), []
    for lengths in LENGTHS:
        longest = max(lengths)
        x, y = (
            rng.standard_normal((len(lengths), longest, 2)),
            rng.integers(0, 4, (len(lengths), longest)),
        )
        for row, length in enumerate(lengths):
            y[row, length:] = PAD
        batches.append((x.astype(np.float32), y.astype(np.int32)))
    return batches


def logits(flat: torch.Tensor, batches: list) -> torch.Tensor:
    """Of all positions that are not padding, (positions, classes)."""
    parts, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        parts[name] = flat[start : start + size].reshape(shape)
        start += size
    out = []
    for x, y in batches:
        h = torch.zeros(len(x), 3, dtype=torch.float64)
        steps = []
        for t in range(x.shape[1]):
            h = torch.tanh(
                torch.tensor(x[:, t], dtype=torch.float64) @ parts["wx"].T
                + h @ parts["wh"].T
                + parts["b"]
            )
            steps.append(h @ parts["v"].T + parts["c"])
        out.append(torch.stack(steps, 1)[torch.tensor(y != PAD)])
    return torch.cat(out)


def main() -> None:
    batches = data()
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    flat = torch.tensor(
        np.random.default_rng(9).normal(0, 0.7, size).astype(np.float32), dtype=torch.float64
    )
    labels = torch.tensor(np.concatenate([y[y != PAD] for _, y in batches]), dtype=torch.int64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits(w, batches), labels)

    jacobian = torch.func.jacrev(lambda w: logits(w, batches))(
        flat
    )  # (positions, classes, weights)
    p = torch.softmax(logits(flat, batches), 1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    g = torch.einsum("pc,pcw->pw", p - torch.nn.functional.one_hot(labels, 4), jacobian)
    arrays = {
        "flat": flat,
        "hessian": torch.func.hessian(loss)(flat),
        "loss": loss(flat),
        "ggn": torch.einsum("pcw,pcd,pdv->wv", jacobian, bend, jacobian) / len(labels),
        "empirical": g.T @ g / len(labels),
    }
    arrays = {name: value.numpy() for name, value in arrays.items()}
    for number, (x, y) in enumerate(batches):
        arrays |= {f"x{number}": x, f"y{number}": y}
    path = Path(__file__).resolve().parents[2] / "tests" / "golden" / "tagger.npz"
    np.savez_compressed(path, **arrays)
    print(path, {name: value.shape for name, value in arrays.items()})


if __name__ == "__main__":
    main()
