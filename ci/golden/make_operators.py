"""Golden values for tests/operator_cases.py: curvature matrices of thirteen small problems, in
float64.

Run with a Python that has torch and curvlinops, both on CPU: ``python
ci/golden/make_operators.py``. Each matrix is computed densely with torch, and the file is written
only where curvlinops' operators agree to 1e-10 (UNCONFIRMED names what it cannot do). Keys are
``case/kind/name``; P is the number of weights, N that of samples; the kinds are

    data       batch i is x<i> and y<i>; the inputs of dict_mse_mean are a<i> and b<i>
    weights    parameters under their MindSpore names (Dense, Conv2d and LSTM have torch's layout)
    state      parameters that are not trained (running mean and variance)
    order      names: those of the weights, in the order of the flat vector of P entries (C order
        within a weight)
    loss       value: the risk R over all the data
    gradient   flat: of R, (P,)
    matrix     hessian, ggn, fisher, ef: (P, P) each

The risk is R = sum_b (n_b / N) L_b where the loss L_b of batch b is a mean, and R = sum_b L_b where
it is a sum. MSE and BCE are means over all entries, N times C of them, and the cross-entropy of (N,
C, L) over N times L positions.

A *term* t is a row of C outputs f_t with its target: a sample, or for (N, C, L) one position of one
sample. J_t is the Jacobian (C, P) of f_t, and l_t the loss of the term, not divided by anything:
cross-entropy, or the SUM over C of squared errors or of binary cross-entropies. T is the number of
terms in the data, and the scale is

    s = 1 for sums;  s = 1 / T for mean cross-entropy;  s = 1 / (T C) for mean MSE and mean BCE.

    ggn     s sum_t J_t' (d2 l_t / df_t2) J_t, computed here from the loss itself: J' (d2 R / df2) J
    fisher  s sum_t E_y [g_t(y) g_t(y)'] with g_t(y) = J_t' dl_t(f_t, y)/df_t, y drawn from the
    model's own likelihood:
            softmax(f_t), Bernoulli(sigmoid(f_t)), or normal(f_t, variance 1/2), whose negative
            logarithm is l_t up to a constant. Exact, by listing the outcomes; it equals the GGN
            (checked).
    ef      s sum_t g_t(y_t) g_t(y_t)', the convention of curvlinops' EFLinearOperator. So for mean
    MSE and BCE it is
            C / N sum_n (d m_n)(d m_n)' with m_n the mean over C of sample n, and for (N, C, L) it
            sums the outer products of the gradients of single positions, not of samples.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import curvlinops
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "operators.npz"
TOLERANCE = 1e-10
#: what curvlinops 3.0.1 cannot do; torch's values are stored unconfirmed
UNCONFIRMED = {("mlp_soft_mean", "ef"): "its EF flattens soft labels as if they were class indices"}


# --- the networks ---------------------------------------------------------------------------------


def dense(p, name, x):
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def mlp(p, x):
    return dense(p, "out", torch.tanh(dense(p, "hidden", x)))


def conv_bn(p, x):
    x = F.conv2d(x, p["conv.weight"], p["conv.bias"], padding=1)
    x = F.batch_norm(
        x,
        p["norm.moving_mean"],
        p["norm.moving_variance"],
        p["norm.gamma"],
        p["norm.beta"],
        training=False,
        eps=1e-5,
    )
    return dense(p, "out", torch.tanh(x).mean((2, 3)))


def lstm(p, x):
    h = c = x.new_zeros(len(x), p["lstm.weight_hh_l0"].shape[1])
    for step in x.unbind(1):
        gates = F.linear(step, p["lstm.weight_ih_l0"], p["lstm.bias_ih_l0"]) + F.linear(
            h, p["lstm.weight_hh_l0"], p["lstm.bias_hh_l0"]
        )
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return dense(p, "out", h)


def attention(p, x):
    q, k, v = (dense(p, name, x) for name in ("query", "key", "value"))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
    return dense(p, "out", (x + mixed).mean(1))


def tied(p, x):
    return torch.tanh(x @ p["weight"].T + p["encoder_bias"]) @ p["weight"] + p["decoder_bias"]


def two_inputs(p, x):
    return dense(p, "out", torch.tanh(dense(p, "left", x["a"]) * dense(p, "right", x["b"])))


def per_position(p, x):
    h = torch.tanh(dense(p, "hidden", x))
    return dense(p, "out", h - h.mean(1, keepdim=True)).transpose(1, 2)


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def two_layers(inputs, hidden, outputs):
    return {**layer("hidden", hidden, inputs), **layer("out", outputs, hidden)}


CONV_BN = {**layer("conv", 3, 1, 3, 3), "norm.gamma": (3,), "norm.beta": (3,), **layer("out", 3, 3)}
STATE = {"norm.moving_mean": (3,), "norm.moving_variance": (3,)}
LSTM = {
    "lstm.weight_ih_l0": (12, 2),
    "lstm.weight_hh_l0": (12, 3),
    "lstm.bias_ih_l0": (12,),
    "lstm.bias_hh_l0": (12,),
    **layer("out", 2, 3),
}
# the key has no bias: softmax does not see it
ATTENTION = {
    **layer("query", 4, 4),
    "key.weight": (4, 4),
    **layer("value", 4, 4),
    **layer("out", 3, 4),
}
TIED = {"weight": (4, 6), "encoder_bias": (4,), "decoder_bias": (6,)}
TWO_INPUTS = {**layer("left", 4, 3), **layer("right", 4, 2), **layer("out", 2, 4)}


@dataclass(frozen=True)
class Problem:
    net: object
    weights: dict  # shapes
    x: object  # shape of a sample, or one per input
    y: tuple  # shape of a sample's target
    loss: str  # "ce", "soft", "mse" or "bce"
    classes: int
    reduction: str = "mean"
    batches: tuple = (5, 5, 3)
    state: dict | None = None

    @property
    def loss_fn(self):
        kind = {"mse": nn.MSELoss, "bce": nn.BCEWithLogitsLoss}.get(self.loss, nn.CrossEntropyLoss)
        return kind(reduction=self.reduction)


PROBLEMS = {
    "mlp_ce_mean": Problem(mlp, two_layers(4, 5, 3), (4,), (), "ce", 3),
    "mlp_ce_sum": Problem(mlp, two_layers(4, 5, 3), (4,), (), "ce", 3, "sum"),
    "mlp_mse_mean": Problem(mlp, two_layers(4, 6, 2), (4,), (2,), "mse", 2),
    "mlp_mse_sum": Problem(mlp, two_layers(4, 6, 2), (4,), (2,), "mse", 2, "sum", (4, 4, 4)),
    "mlp_bce_mean": Problem(mlp, two_layers(4, 6, 3), (4,), (3,), "bce", 3, batches=(5, 5, 2)),
    "mlp_soft_mean": Problem(mlp, two_layers(4, 5, 3), (4,), (3,), "soft", 3, batches=(6, 6)),
    "conv_bn_ce_mean": Problem(conv_bn, CONV_BN, (1, 5, 5), (), "ce", 3, state=STATE),
    "lstm_mse_mean": Problem(lstm, LSTM, (4, 2), (2,), "mse", 2),
    "attention_ce_mean": Problem(attention, ATTENTION, (4, 4), (), "ce", 3, batches=(6, 6, 1)),
    "tied_mse_mean": Problem(tied, TIED, (6,), (6,), "mse", 6),
    "dict_mse_mean": Problem(
        two_inputs, TWO_INPUTS, {"a": (3,), "b": (2,)}, (2,), "mse", 2, batches=(6, 6)
    ),
    "linear_ce_mean": Problem(
        lambda p, x: dense(p, "out", x), layer("out", 4, 9), (9,), (), "ce", 4, batches=(8, 8, 4)
    ),
    "nd_ce_mean": Problem(per_position, two_layers(4, 5, 3), (4, 4), (4,), "ce", 3),
}


def draw(rng, name, shape):
    """Weights of unit gain; gamma and variance around one."""
    if name.endswith(("gamma", "variance")):
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(size=shape) / max(1.0, np.sqrt(np.prod(shape[1:])))


def draw_target(rng, problem, shape):
    if problem.loss == "ce":
        return rng.integers(0, problem.classes, shape)
    if problem.loss == "bce":
        return (rng.random(shape) < 0.5).astype(np.float64)
    return (
        rng.dirichlet(np.ones(shape[-1]), shape[:-1])
        if problem.loss == "soft"
        else rng.normal(size=shape)
    )


def drawn(name):
    """Weights, state and batches as Tensors."""
    problem = PROBLEMS[name]
    rng = np.random.default_rng([0, *name.encode()])
    weights, state = (
        {k: torch.tensor(draw(rng, k, s)) for k, s in shapes.items()}
        for shapes in (problem.weights, problem.state or {})
    )
    batches = []
    for n in problem.batches:
        shapes = problem.x if isinstance(problem.x, dict) else {"x": problem.x}
        x = {k: torch.tensor(rng.normal(size=(n, *s))) for k, s in shapes.items()}
        y = torch.tensor(draw_target(rng, problem, (n, *problem.y)))
        batches.append((x if isinstance(problem.x, dict) else x["x"], y))
    return weights, state, batches


# --- dense, with torch ----------------------------------------------------------------------------


def unflatten(flat, like):
    parts = flat.split([w.numel() for w in like.values()])
    return {k: part.reshape(w.shape) for part, (k, w) in zip(parts, like.items(), strict=True)}


def outcomes(loss, f):
    """(probability, score dl/df) of every target that the likelihood can draw, for rows f of C
    outputs.

    Two points a dimension stand for the normal: they have its mean and its variance, and scores are
    linear in y.
    """
    classes = f.shape[-1]
    if loss in ("ce", "soft"):
        p = f.softmax(-1)
        return [(p[:, c], p - torch.eye(classes)[c]) for c in range(classes)]
    out = []
    for signs in itertools.product((0.0, 1.0), repeat=classes):
        y = torch.tensor(signs)
        if loss == "bce":
            p = f.sigmoid()
            out.append(((p * y + (1 - p) * (1 - y)).prod(-1), p - y))
        else:
            score = (2 * np.sqrt(0.5) * (2 * y - 1)).expand_as(f)
            out.append((torch.full(f.shape[:1], 0.5**classes), score))
    return out


def terms(problem, values):
    """Outputs, or their Jacobian with its last axis for the weights, as one row of C for each
    term.
    """
    if problem.loss == "ce" and problem.y:  # (N, C, L, ...)
        values = values.movedim(1, 2).flatten(0, 1)
    return values


def torch_values(problem, weights, state, batches):
    flat = torch.cat([w.flatten() for w in weights.values()])
    samples = sum(len(y) for _, y in batches)
    share = {"sum": lambda y: 1.0, "mean": lambda y: len(y) / samples}[problem.reduction]
    loss_fn, total = problem.loss_fn, type(problem.loss_fn)(reduction="sum")

    def outputs(w, x):
        return problem.net({**unflatten(w, weights), **state}, x)

    def risk(w):
        return sum(share(y) * loss_fn(outputs(w, x), y) for x, y in batches)

    hessian = torch.autograd.functional.hessian(risk, flat)
    ggn, fisher, ef = (torch.zeros_like(hessian) for _ in range(3))
    rows = 0
    for x, y in batches:
        f, jacobian = outputs(flat, x), torch.func.jacrev(outputs)(flat, x)
        curvature = torch.autograd.functional.hessian(lambda f, y=y: loss_fn(f, y), f).reshape(
            f.numel(), f.numel()
        )
        of_all = jacobian.reshape(f.numel(), -1)
        ggn += share(y) * of_all.T @ curvature @ of_all
        slope = torch.func.grad(lambda f, y=y: total(f, y))(f)
        f, jacobian, slope = (terms(problem, v) for v in (f, jacobian, slope))
        rows += len(f)
        g = torch.einsum("tc,tcp->tp", slope, jacobian)
        ef += g.T @ g
        for probability, score in outcomes(problem.loss, f):
            g = torch.einsum("tc,tcp->tp", score, jacobian)
            fisher += g.T @ (probability[:, None] * g)
    per_term = 1 if problem.loss in ("ce", "soft") else problem.classes
    scale = 1.0 if problem.reduction == "sum" else 1 / (rows * per_term)
    return {
        "loss": risk(flat),
        "gradient": torch.func.grad(risk)(flat),
        "hessian": hessian,
        "ggn": ggn,
        "fisher": scale * fisher,
        "ef": scale * ef,
    }


# --- curvlinops -----------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self, net, weights, state):
        super().__init__()
        self.net, self.state, self.names = net, state, {k.replace(".", "__"): k for k in weights}
        for name, key in self.names.items():
            self.register_parameter(name, nn.Parameter(weights[key].clone()))

    def forward(self, x):
        return self.net(
            {**{key: getattr(self, name) for name, key in self.names.items()}, **self.state}, x
        )


OPERATORS = {
    "hessian": curvlinops.HessianLinearOperator,
    "ggn": curvlinops.GGNLinearOperator,
    "ef": curvlinops.EFLinearOperator,
}


def second_opinion(problem, weights, state, batches):
    """What curvlinops finds, and for what it cannot do, its exception."""
    net = Network(problem.net, weights, state)
    given = net, problem.loss_fn, list(net.parameters()), batches
    size = {"batch_size_fn": lambda x: len(x["a"])} if isinstance(problem.x, dict) else {}
    found = {}
    for kind, operator in OPERATORS.items():
        try:
            found[kind] = operator(*given, **size) @ torch.eye(
                sum(w.numel() for w in weights.values())
            )
        except (RuntimeError, ValueError, NotImplementedError) as err:
            found[kind] = err
    gradient, loss = curvlinops.HessianLinearOperator(*given, **size).gradient_and_loss()
    found.update(loss=loss, gradient=torch.cat([g.flatten() for g in gradient]))
    try:  # a Monte Carlo estimate: only whether it exists, and has about the trace
        estimate = curvlinops.FisherMCLinearOperator(*given, **size, mc_samples=500)
        found["mc"] = (estimate @ torch.eye(estimate.shape[1])).trace()
    except (RuntimeError, ValueError, NotImplementedError) as err:
        found["mc"] = err
    return found


def check(name, what, found, expected):
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error < TOLERANCE, f"{name} {what}: relative error {error:.1e}"


def checked(name, golden, second):
    for kind in ("loss", "gradient", *OPERATORS):
        unable = isinstance(second[kind], Exception)
        assert unable == ((name, kind) in UNCONFIRMED), (
            f"{name} {kind}: curvlinops says {second[kind]!r}"
        )
        if not unable:
            check(name, kind, second[kind], golden[kind])
    check(name, "fisher", golden["fisher"], golden["ggn"])
    for kind in ("hessian", "ggn", "fisher", "ef"):
        check(name, f"symmetry of {kind}", golden[kind].T, golden[kind])
    mc = second["mc"]
    print(
        f"{name}: {len(golden['gradient'])} weights,",
        f"no Monte Carlo Fisher: {mc}"
        if isinstance(mc, Exception)
        else f"trace of the Fisher {golden['fisher'].trace():.4f}, Monte Carlo {mc:.4f}",
    )


def main() -> None:
    arrays = {}
    for name, problem in PROBLEMS.items():
        weights, state, batches = drawn(name)
        golden = torch_values(problem, weights, state, batches)
        checked(name, golden, second_opinion(problem, weights, state, batches))
        data = {}
        for i, (x, y) in enumerate(batches):
            data.update(
                {f"{k}{i}": v for k, v in (x if isinstance(x, dict) else {"x": x}).items()},
                **{f"y{i}": y},
            )
        kinds = {
            "data": data,
            "weights": weights,
            "state": state,
            "order": {"names": np.array(list(weights))},
            "loss": {"value": golden.pop("loss")},
            "gradient": {"flat": golden.pop("gradient")},
            "matrix": golden,
        }
        for kind, values in kinds.items():
            arrays.update(
                {f"{name}/{kind}/{key}": np.asarray(value) for key, value in values.items()}
            )
    np.testing.assert_allclose(
        arrays["linear_ce_mean/matrix/hessian"],
        arrays["linear_ce_mean/matrix/ggn"],
        rtol=0,
        atol=1e-14,
    )
    np.savez_compressed(TARGET, **arrays)
    print(
        f"{TARGET}: {len(arrays)} arrays, {TARGET.stat().st_size / 1024:.0f} KiB, "
        f"torch {torch.__version__} and curvlinops agree"
    )


if __name__ == "__main__":
    main()
