"""Golden values for tests/networks.py: loss, gradients and Hessian-vector products of five small
networks in float64.

Run with a Python that has torch and jax, both on CPU: ``python ci/golden/make_networks.py``. Each
network is defined twice, and the file is written only where both frameworks agree to 1e-10. Keys
are ``network/kind/name``; the kinds are

    data       x and target
    weights    parameters under their MindSpore names (Dense and Conv2d have torch's layout)
    state      parameters that are not trained (running mean and variance)
    vectors    the directions: x and one per weight
    gradient   of the loss with respect to x and to each weight
    hvp        Hessian times vector: the x block under x, the whole weight block under the weights'
        names
    loss       the value, under the name value
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)
TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "networks.npz"


# --- torch ----------------------------------------------------------------------------------------


def torch_dense(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def torch_conv(p, name, x, stride, padding):
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride, padding=padding)


def torch_attention(p, x):
    q, k, v = (torch_dense(p, name, x) for name in ("query", "key", "value"))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
    return torch_dense(p, "out", x + mixed)


TORCH = {
    "mlp": lambda p, x: torch_dense(p, "out", torch.tanh(torch_dense(p, "hidden", x))),
    "conv": lambda p, x: torch_dense(
        p,
        "out",
        torch.relu(
            torch_conv(p, "conv2", torch.tanh(torch_conv(p, "conv1", x, 2, 1)), 1, 0)
        ).flatten(1),
    ),
    "layernorm": lambda p, x: torch_dense(
        p,
        "out",
        torch.tanh(
            F.layer_norm(
                torch_dense(p, "hidden", x), (6,), p["norm.gamma"], p["norm.beta"], eps=1e-5
            )
        ),
    ),
    "attention": torch_attention,
    "batchnorm": lambda p, x: torch_dense(
        p,
        "out",
        torch.relu(
            F.batch_norm(
                torch_conv(p, "conv", x, 1, 1),
                p["norm.moving_mean"],
                p["norm.moving_variance"],
                p["norm.gamma"],
                p["norm.beta"],
                training=False,
                eps=1e-5,
            )
        ).mean((2, 3)),
    ),
}


def torch_values(name, *given):
    data, weights, state, vectors = ({k: torch.tensor(v) for k, v in d.items()} for d in given)
    for leaf in (data["x"], *weights.values()):
        leaf.requires_grad_()
    loss = F.mse_loss(TORCH[name]({**weights, **state}, data["x"]), data["target"])
    groups = {"x": [data["x"]], "w": list(weights.values())}
    names = {"x": ["x"], "w": list(weights)}
    gradient, hvp = {}, {}
    for group, leaves in groups.items():
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        along = sum((g * vectors[n]).sum() for g, n in zip(first, names[group], strict=True))
        second = torch.autograd.grad(
            along, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient.update(zip(names[group], (g.detach().numpy() for g in first), strict=True))
        hvp.update(zip(names[group], (h.numpy() for h in second), strict=True))
    return {"loss": {"value": loss.detach().numpy()}, "gradient": gradient, "hvp": hvp}


# --- jax ------------------------------------------------------------------------------------------


def jax_dense(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def jax_conv(p, name, x, stride, padding):
    y = jax.lax.conv_general_dilated(
        x, p[f"{name}.weight"], (stride, stride), [(padding, padding)] * 2
    )
    return y + p[f"{name}.bias"][:, None, None]


def jax_layer_norm(p, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["norm.gamma"] + p["norm.beta"]


def jax_batch_norm(p, x):
    mean, variance, gamma, beta = (
        p[f"norm.{k}"][:, None, None] for k in ("moving_mean", "moving_variance", "gamma", "beta")
    )
    return (x - mean) / jnp.sqrt(variance + 1e-5) * gamma + beta


def jax_attention(p, x):
    q, k, v = (jax_dense(p, name, x) for name in ("query", "key", "value"))
    mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
    return jax_dense(p, "out", x + mixed)


JAX = {
    "mlp": lambda p, x: jax_dense(p, "out", jnp.tanh(jax_dense(p, "hidden", x))),
    "conv": lambda p, x: jax_dense(
        p,
        "out",
        jax.nn.relu(jax_conv(p, "conv2", jnp.tanh(jax_conv(p, "conv1", x, 2, 1)), 1, 0)).reshape(
            len(x), -1
        ),
    ),
    "layernorm": lambda p, x: jax_dense(
        p, "out", jnp.tanh(jax_layer_norm(p, jax_dense(p, "hidden", x)))
    ),
    "attention": jax_attention,
    "batchnorm": lambda p, x: jax_dense(
        p, "out", jax.nn.relu(jax_batch_norm(p, jax_conv(p, "conv", x, 1, 1))).mean((2, 3))
    ),
}


def jax_values(name, data, weights, state, vectors):
    def loss(x, w):
        return ((JAX[name]({**w, **state}, x) - data["target"]) ** 2).mean()

    along_w = {k: vectors[k] for k in weights}
    gradient_x, hvp_x = jax.jvp(lambda x: jax.grad(loss)(x, weights), (data["x"],), (vectors["x"],))
    gradient_w, hvp_w = jax.jvp(lambda w: jax.grad(loss, 1)(data["x"], w), (weights,), (along_w,))
    return {
        "loss": {"value": loss(data["x"], weights)},
        "gradient": {"x": gradient_x, **gradient_w},
        "hvp": {"x": hvp_x, **hvp_w},
    }


# --- the problems ---------------------------------------------------------------------------------


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


# x shape, target shape, shapes of the weights, shapes of the state
PROBLEMS = {
    "mlp": ((5, 4), (5, 3), {**layer("hidden", 8, 4), **layer("out", 3, 8)}, {}),
    "conv": (
        (2, 2, 8, 8),
        (2, 3),
        {**layer("conv1", 4, 2, 3, 3), **layer("conv2", 3, 4, 3, 3), **layer("out", 3, 12)},
        {},
    ),
    "layernorm": (
        (4, 5),
        (4, 2),
        {**layer("hidden", 6, 5), "norm.gamma": (6,), "norm.beta": (6,), **layer("out", 2, 6)},
        {},
    ),
    # the key has no bias: softmax does not see it, and its derivatives would be exactly zero
    "attention": (
        (2, 5, 4),
        (2, 5, 3),
        {
            **layer("query", 4, 4),
            "key.weight": (4, 4),
            **layer("value", 4, 4),
            **layer("out", 3, 4),
        },
        {},
    ),
    "batchnorm": (
        (2, 1, 6, 6),
        (2, 2),
        {**layer("conv", 4, 1, 3, 3), "norm.gamma": (4,), "norm.beta": (4,), **layer("out", 2, 4)},
        {"norm.moving_mean": (4,), "norm.moving_variance": (4,)},
    ),
}


def draw(rng, name, shape):
    """Weights of unit gain; gamma and variance around one."""
    if name.endswith(("gamma", "variance")):
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(size=shape) / max(1.0, np.sqrt(np.prod(shape[1:])))


def problem(name, seed=0):
    rng = np.random.default_rng([seed, *name.encode()])
    x, target, weights, state = PROBLEMS[name]
    data = {"x": rng.normal(size=x), "target": rng.normal(size=target)}
    weights = {k: draw(rng, k, s) for k, s in weights.items()}
    state = {k: draw(rng, k, s) for k, s in state.items()}
    vectors = {k: rng.normal(size=v.shape) for k, v in {"x": data["x"], **weights}.items()}
    return data, weights, state, vectors


def main() -> None:
    arrays = {}
    for name in PROBLEMS:
        given = problem(name)
        golden, second_opinion = torch_values(name, *given), jax_values(name, *given)
        for kind, values in golden.items():
            for key, value in values.items():
                np.testing.assert_allclose(
                    second_opinion[kind][key],
                    value,
                    rtol=1e-10,
                    atol=1e-12,
                    err_msg=f"{name} {kind} {key}",
                )
        kinds = dict(zip(("data", "weights", "state", "vectors"), given, strict=True))
        for kind, values in {**kinds, **golden}.items():
            arrays.update(
                {f"{name}/{kind}/{key}": np.asarray(value) for key, value in values.items()}
            )
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, **arrays)
    print(
        f"{TARGET}: {len(arrays)} arrays, {TARGET.stat().st_size / 1024:.0f} KiB, "
        f"torch {torch.__version__} and jax {jax.__version__} agree"
    )


if __name__ == "__main__":
    main()
