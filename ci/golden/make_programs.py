"""Golden products for tests/programs.py: four programs as model libraries write them, in float64,
by torch alone.

Run with a Python that has torch, on CPU: ``python ci/golden/make_programs.py``. Weights and batches
come from tests/program_data.py. Keys are ``program/kind``, all flat over the weights in the order
of ``program/order`` (that of MindSpore's ``trainable_params()``, which the test checks) and in
float32 (they are compared at 1e-3):

    order      names of the weights;  shapes of them under ``program/shape/name``
    hessian, ggn, ef    the product with direction(program, size); the Fisher information is the GGN
    for these losses

Conventions are those of make_operators.py.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import program_data  # noqa: E402

torch.set_default_dtype(torch.float64)
TARGET = ROOT / "tests" / "golden" / "programs.npz"


def dense(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def layer_norm(p, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.gamma"], p[f"{name}.beta"], eps)


def attend(qkv, heads, mask=None):
    n, t, c = qkv.shape
    q, k, v = qkv.reshape(n, t, 3, heads, c // 3 // heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c // 3)


def vit(p, x):
    x = (
        F.conv2d(x, p["patch_embed.weight"], p["patch_embed.bias"], stride=4)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], 1) + p["pos_embed"]
    for i in range(2):
        name = f"blocks.{i}."
        x = x + dense(
            p,
            name + "attn.proj",
            attend(dense(p, name + "attn.qkv", layer_norm(p, name + "norm1", x, 1e-6)), 2),
        )
        h = F.gelu(dense(p, name + "mlp.fc1", layer_norm(p, name + "norm2", x, 1e-6)))
        x = x + dense(p, name + "mlp.fc2", h)
    return dense(p, "head", layer_norm(p, "norm", x, 1e-6)[:, 0])


def gpt(p, words):
    x = p["wte.embedding_table"][words] + p["wpe.embedding_table"][: words.shape[1]]
    mask = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).triu(1)
    for i in range(2):
        name = f"h.{i}."
        x = x + dense(
            p,
            name + "proj",
            attend(dense(p, name + "attn", layer_norm(p, name + "ln_1", x, 1e-5)), 2, mask),
        )
        h = F.gelu(dense(p, name + "fc", layer_norm(p, name + "ln_2", x, 1e-5)), approximate="tanh")
        x = x + dense(p, name + "out", h)
    x = layer_norm(p, "ln_f", x, 1e-5)
    return (x @ p["wte.embedding_table"].T).flatten(0, 1)


def gru(p, prefix, suffix, x):
    w, r, b, c = (
        p[f"{prefix}.{kind}_l0{suffix}"]
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    h = x.new_zeros(len(x), r.shape[1])
    steps = []
    for step in x.unbind(1):
        a, d = F.linear(step, w, b).chunk(3, -1), F.linear(h, r, c).chunk(3, -1)
        reset, update = torch.sigmoid(a[0] + d[0]), torch.sigmoid(a[1] + d[1])
        h = (1 - update) * torch.tanh(a[2] + reset * d[2]) + update * h
        steps.append(h)
    return torch.stack(steps, 1)


def tagger(p, words):
    x = p["embed.embedding_table"][words] * 20
    both = torch.cat([gru(p, "rnn", "", x), gru(p, "rnn", "_reverse", x.flip(1)).flip(1)], -1)
    return dense(p, "out", layer_norm(p, "norm", both, 1e-5)).flatten(0, 1)


def pinn(p, points):
    """Laplacian + value of a tanh network by the chain rule: the value h, its derivatives d and its
    Laplacian curve.
    """
    h, d, curve = points, torch.eye(2)[:, None].expand(2, *points.shape), torch.zeros_like(points)
    for i in range(2):
        w = p[f"layers.{i}.weight"]
        h, d, curve = torch.tanh(dense(p, f"layers.{i}", h)), d @ w.T, curve @ w.T
        slope = 1 - h**2
        d, curve = slope * d, slope * curve - 2 * h * slope * (d**2).sum(0)
    return curve @ p["out.weight"].T + dense(p, "out", h)


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, size):
    return {f"{name}.gamma": (size,), f"{name}.beta": (size,)}


def many(*parts):
    return {key: shape for part in parts for key, shape in part.items()}


def block(name, one, two, attn, proj, fc, out, c):
    return many(
        norm(name + one, c),
        linear(name + attn, 3 * c, c),
        linear(name + proj, c, c),
        norm(name + two, c),
        linear(name + fc, 2 * c, c),
        linear(name + out, c, 2 * c),
    )


GRU = {
    f"rnn.{kind}_l0{suffix}": shape
    for kind, shape in (
        ("weight_ih", (12, 6)),
        ("weight_hh", (12, 4)),
        ("bias_ih", (12,)),
        ("bias_hh", (12,)),
    )
    for suffix in ("", "_reverse")
}
SHAPES = {
    "vit": many(
        {
            "cls_token": (1, 1, 8),
            "pos_embed": (1, 5, 8),
            "patch_embed.weight": (8, 2, 4, 4),
            "patch_embed.bias": (8,),
        },
        *(
            block(
                f"blocks.{i}.", "norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", 8
            )
            for i in range(2)
        ),
        norm("norm", 8),
        linear("head", 3, 8),
    ),
    "gpt": many(
        {"wte.embedding_table": (7, 8), "wpe.embedding_table": (6, 8)},
        *(block(f"h.{i}.", "ln_1", "ln_2", "attn", "proj", "fc", "out", 8) for i in range(2)),
        norm("ln_f", 8),
    ),
    "tagger": many({"embed.embedding_table": (9, 6)}, GRU, norm("norm", 8), linear("out", 5, 8)),
    "pinn": many(linear("layers.0", 8, 2), linear("layers.1", 8, 8), linear("out", 1, 8)),
}
PROGRAMS = {"vit": vit, "gpt": gpt, "tagger": tagger, "pinn": pinn}


def products(program):
    shapes, net, classes = SHAPES[program], PROGRAMS[program], program_data.CLASSES[program]
    weights = [torch.tensor(program_data.weight(program, k, s)) for k, s in shapes.items()]
    flat = torch.cat([w.flatten() for w in weights])
    v = torch.tensor(program_data.direction(program, len(flat)))
    data = [(torch.tensor(x), torch.tensor(y)) for x, y in program_data.batches(program)]
    total = sum(len(x) for x, _ in data)

    def outputs(w, x):
        parts = w.split([k.numel() for k in weights])
        return net(
            {k: part.reshape(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}, x
        )

    def loss(f, y):
        return F.cross_entropy(f, y.flatten()) if classes else F.mse_loss(f, y)

    def risk(w):
        return sum(len(x) / total * loss(outputs(w, x), y) for x, y in data)

    hessian = torch.func.vjp(torch.func.grad(risk), flat)[1](v)[0]
    ggn, ef, terms = torch.zeros_like(flat), torch.zeros_like(flat), 0
    for x, y in data:

        def f_of(w, x=x):
            return outputs(w, x)

        f, u = torch.func.jvp(f_of, (flat,), (v,))
        _, pull = torch.func.vjp(f_of, flat)
        bent = torch.func.vjp(torch.func.grad(lambda f, y=y: loss(f, y)), f)[1](u)[0]
        ggn += len(x) / total * pull(bent)[0]
        slope = (
            torch.func.grad(lambda f, y=y: loss(f, y))(f) * len(f) * (1 if classes else f.shape[1])
        )  # of a term
        ef += pull(slope * (slope * u).sum(-1, keepdim=True))[0]
        terms += len(f)
    return {"hessian": hessian, "ggn": ggn, "ef": ef / (terms if classes else terms * f.shape[1])}


def main():
    arrays = {}
    for program, shapes in SHAPES.items():
        found = products(program)
        for kind, values in found.items():
            arrays[f"{program}/{kind}"] = values.numpy().astype(np.float32)
        arrays[f"{program}/order"] = np.array(list(shapes))
        arrays.update({f"{program}/shape/{k}": np.array(s) for k, s in shapes.items()})
        print(program, len(values), {k: f"{v.norm():.3g}" for k, v in found.items()})
    np.savez_compressed(TARGET, **arrays)
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
