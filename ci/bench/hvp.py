"""Time of a Hessian-vector product by three ways: `mindspore_hessian.hvp`; the recipe of
MindSpore's tutorial, which compiles at every call; and the least that MindSpore can do, one
function compiled by hand. They take turns, so that whatever else the machine does meets all of them
alike; their results are compared first."""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("GLOG_v", "3")  # MindSpore's log says nothing here that a user could act on

import mindspore as ms
import numpy as np
from mindspore import nn, ops

import mindspore_hessian as mh

OURS, RECIPE, BARE = "hvp", "jvp(grad(f), x, v)", "compiled by hand"
CALLS = {OURS: 50, RECIPE: 1, BARE: 50}  # a turn
LIMIT = 1e-4  # largest difference, relative to the largest entry
rng = np.random.default_rng(0)


def tensor(*shape: int) -> ms.Tensor:
    return ms.Tensor(rng.standard_normal(shape).astype(np.float32))


def sine():
    """f(x) = sum(sin x), 64 inputs: all of the time is overhead."""

    def f(x):
        return ops.sin(x).sum()

    gradient = ms.grad(f)

    @ms.jit
    def bare(x, v):
        return ms.jvp(gradient, x, v)[1]

    x, v = tensor(64), tensor(64)
    return {
        OURS: lambda: mh.hvp(f, x, v),
        RECIPE: lambda: ms.jvp(ms.grad(f), x, v)[1],
        BARE: lambda: bare(x, v),
    }


class MLP(nn.Cell):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Dense(64, 128), nn.Dense(128, 10)

    def construct(self, x):
        return self.out(ops.tanh(self.hidden(x)))


def mlp():
    """Mean square error of an MLP (64, 128, 10 units; 256 samples) with respect to its 9,610
    weights.
    """
    net, x, y = MLP(), tensor(256, 64), tensor(256, 10)
    weights = net.trainable_params()
    vectors = tuple(tensor(*weight.shape) for weight in weights)
    values = tuple(ms.Tensor(weight.asnumpy().copy()) for weight in weights)

    def loss(x, y):
        return ((net(x) - y) ** 2).mean()

    def of_weights(
        w1, b1, w2, b2
    ):  # jvp takes no Parameters, so the recipe needs the network as a function of them
        return ((ops.dense(ops.tanh(ops.dense(x, w1, b1)), w2, b2) - y) ** 2).mean()

    gradient = ms.grad(loss, None, weights)

    def slope(x, y, vectors):
        total = 0.0
        for g, v in zip(gradient(x, y), vectors):  # noqa: B905 -- compiled by MindSpore
            total = total + (g * v).sum()
        return total

    bare = ms.jit(ms.grad(slope, None, weights))
    return {
        OURS: lambda: mh.hvp(loss, (x, y), vectors, weights=weights),
        RECIPE: lambda: ms.jvp(ms.grad(of_weights, (0, 1, 2, 3)), values, vectors)[1],
        BARE: lambda: bare(x, y, vectors),
    }


def seconds(function, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        numpy_of(function())
    return (time.perf_counter() - start) / calls


def numpy_of(result) -> np.ndarray:
    """All entries: a call is over when its numbers are here."""
    parts = result if isinstance(result, tuple) else (result,)
    return np.concatenate([part.asnumpy().ravel() for part in parts])


def compare(title: str, methods: dict, rounds: int) -> None:
    first, results = {}, {}
    for name, method in methods.items():
        start = time.perf_counter()
        results[name] = numpy_of(method())
        first[name] = time.perf_counter() - start
    scale = np.abs(results[BARE]).max()
    for name, result in results.items():
        error = np.abs(result - results[BARE]).max() / scale
        if not error < LIMIT:
            raise SystemExit(f"{title}: {name} differs from {BARE} by {error:.1e}")

    turns: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            turns[name].append(seconds(method, CALLS[name]))
    fastest = float(np.median(turns[OURS]))
    print(
        f"\n{title}\n"
        f"  {'':<20}{'first call':>12}{'median call':>14}{'middle half':>28}{'time / hvp':>12}"
    )
    for name, turn in turns.items():
        low, middle, high = np.percentile(turn, (25, 50, 75)) * 1e3
        print(
            f"  {name:<20}{first[name]:>10.2f} s{middle:>11.3f} "
            f"ms{f'{low:.3f} to {high:.3f} ms':>28}"
            f"{middle / 1e3 / fastest:>12.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of each method; more for a busy machine"
    )
    rounds = parser.parse_args().rounds
    print(
        f"MindSpore {ms.__version__} on {mh.device_info().backend}, {os.cpu_count()} cores, "
        f"{rounds} rounds; the results agree to {LIMIT:.0e}"
    )
    for case in (sine, mlp):
        compare(case.__doc__.rstrip("."), case(), rounds)


if __name__ == "__main__":
    main()
