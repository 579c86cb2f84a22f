"""What test_distributed.py runs in each process of an msrun job: ``distributed_job.py
agree|influence|train|stops|raise|die``.
"""

from __future__ import annotations

import os
import sys

import mindspore as ms
import numpy as np
from full import FULL
from mindspore import Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import optim

RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 1))
H = 2 / 8 * X.T @ X


def squared(out, y):
    return ((out - y) ** 2).mean()


def summed(out, y):
    return ((out - y) ** 2).sum()


def batches(rank, dtype):
    """Unequal shards: 3 + 2 samples, and 3."""
    cuts = [(0, 3), (3, 5)] if rank == 0 else [(5, 8)]
    return [(Tensor(X[a:b].astype(dtype)), Tensor(Y[a:b].astype(dtype))) for a, b in cuts]


def network(dtype):
    return nn.Dense(3, 1, weight_init="ones", has_bias=False, dtype=getattr(ms, dtype))


def agree(rank):
    vector = np.array([1.0, -2.0, 0.5])
    for dtype, tolerance in (*[("float32", 1e-6)] * FULL, ("float64", 1e-14)):
        net = network(dtype)
        op = mh.HessianOperator(net, squared, batches(rank, dtype), distributed=True)
        assert (op.num_data, op.reduction) == (8, "mean"), op
        close(op @ vector, H @ vector, tolerance)
        rest = X.sum(1, keepdims=True) - Y
        (slope,), value = op.gradient_and_loss()
        close(value, np.mean(rest**2), tolerance)
        close(slope.asnumpy(), 2 / 8 * rest.T @ X, tolerance)
    close(op.to_dense(), H, tolerance)
    close(mh.eigsh(op, 2).eigenvalues, np.linalg.eigvalsh(H)[:0:-1], 1e-12)
    estimate = mh.trace(op + mh.Identity, max_products=16, seed=5, progress=True)
    print("TRACE", repr(float(estimate.value)))  # the same on each rank: compared by the test
    plain = {"distributed": True, "check_deterministic": False}
    close(
        mh.GGNOperator(net, summed, batches(rank, "float64"), **plain) @ vector,
        8 * H @ vector,
        1e-14,
    )
    fisher = mh.FisherOperator(
        net, squared, batches(rank, "float64"), likelihood="gaussian", **plain
    )
    close(fisher @ vector, H @ vector, 1e-14)


def influences(rank):
    """Each process has the scores of all training samples, in the order of the ranks."""
    g = 2 * (X.sum(1, keepdims=True) - Y) * X
    damped = np.linalg.inv(H + 0.1 * np.eye(3))
    tests = Tensor(X[:4]), Tensor(Y[:4])
    options = {"damping": 0.1, "distributed": True, "progress": False}
    given = network("float64"), squared, batches(rank, "float64")
    for how in (
        {"method": "dense"},
        {"method": "iterative", "tol": 1e-12},
        {"method": "iterative", "tol": 1e-12, "query_rank": 1},
        {"curvature": "ekfac", "likelihood": "gaussian"},
    ):
        close(mh.influence(*given, tests, **options, **how), -g[:4] @ damped @ g.T, 1e-10)
        if how.get("method") != "iterative":
            own = mh.self_influence(*given, **options, **how)
            close(own, -np.einsum("np,pq,nq->n", g, damped, g), 1e-10)
    layers = mh.influence(*given, tests, per_layer=True, **options)
    assert [one.shape for one in layers.values()] == [(4, 8)]
    for call, says in (
        (
            lambda: mh.influence(*given, batches(rank, "float64"), **options),
            "test must be the same",
        ),
        (
            lambda: mh.self_influence(*given, method="iterative", **options),
            "distributed=True is not",
        ),
    ):
        try:
            call()
        except (ValueError, mh.DistributedError) as err:
            assert says in str(err), err
        else:
            raise AssertionError(says)


def cross_entropy(out, y):
    """In float64 too, which MindSpore's own does not take on CPU."""
    chosen = ops.gather_elements(out, 1, y.reshape(-1, 1).astype(ms.int64))
    return (ops.log(ops.exp(out).sum(1)) - chosen.reshape(-1)).mean()


OPTIMIZERS = {
    "AdaHessian": lambda net: optim.AdaHessian(net.trainable_params(), 0.1),
    "Sophia": lambda net: optim.Sophia(net.trainable_params(), 0.02, update_interval=2),
    "drawn labels": lambda net: optim.Sophia(
        net.trainable_params(), 0.02, update_interval=2, estimator="gnb"
    ),
    "KFAC": lambda net: optim.KFAC(net, 0.05, likelihood="categorical", norm_constraint=None),
    "KFAC, exact": lambda net: optim.KFAC(
        net, 0.05, likelihood="categorical", fisher="exact", inverse_update_period=2
    ),
}


TOLERANCES = {"float32": 1e-4, "float64": 1e-10}
CASES = [(name, "float64") for name in (OPTIMIZERS if FULL else ("KFAC",))]
CASES += [("AdaHessian", "float32"), ("KFAC", "float32")] if FULL else []


def trained(name, dtype, steps, **options):
    """The weights after some steps, of batches that `steps` gives."""
    start = np.random.default_rng(1)
    sizes, kind = ((5, 3), (3, 5)), getattr(ms, dtype)
    net = nn.SequentialCell(
        *(
            cell
            for rows, columns in sizes
            for cell in (
                nn.Dense(
                    columns,
                    rows,
                    weight_init=Tensor(start.standard_normal((rows, columns)), kind),
                    bias_init=Tensor(start.standard_normal(rows), kind),
                    dtype=kind,
                ),
                nn.Tanh(),
            )
        )
    )
    step = optim.TrainStep(net, cross_entropy, OPTIMIZERS[name](net), 3, clip_norm=0.5, **options)
    for rows in steps:
        step(Tensor(X[rows], kind), Tensor(np.arange(8)[rows] % 3, ms.int32))
    assert int(step.optimizer.skipped) == 0
    return np.concatenate([p.asnumpy().astype(float).ravel() for p in net.trainable_params()])


def train(rank):
    """Each process has half of each batch, or two quarters."""
    whole, half = [slice(None)] * 6, [slice(4 * rank, 4 * rank + 4)] * 6
    quarters = [slice(start + 2 * rank, start + 2 * rank + 2) for start in (0, 4)] * 6
    for name, dtype in CASES:
        alone = trained(name, dtype, whole)
        close(trained(name, dtype, half, distributed=True), alone, TOLERANCES[dtype])
        print("EQUAL", name, dtype, flush=True)
        if name == "KFAC" and dtype == "float64":
            shared = trained(name, dtype, quarters, distributed=True, accumulate=2)
            close(shared, alone, TOLERANCES[dtype])
    net = network("float64")
    ms.ops.assign(net.weight, net.weight + rank)
    step = optim.TrainStep(net, squared, optim.AdaHessian(net.trainable_params()), distributed=True)
    try:
        step(*batches(rank, "float64")[0])
    except ValueError as err:
        print("REFUSED", err, flush=True)
    assert int(step.optimizer.global_step[0]) == 0


def stops(rank):
    """Rank 1 fails at the second step."""
    net = network("float32")
    step = optim.TrainStep(net, squared, optim.AdaHessian(net.trainable_params()), distributed=True)
    data = batches(rank, "float32")[0]
    step(*data)
    step(*data if rank == 0 else (data[0], "no Tensor"))
    print("NOT REACHED")


def close(got, want, tolerance):
    error = np.abs(np.asarray(got) - want).max() / np.abs(want).max()
    assert error <= tolerance, f"off by {error:.2g}, more than {tolerance:.2g}"


def fail(how):
    """Rank 1 gets through one product, and fails in the next."""

    def run(rank):
        calls = []

        def loss(out, y):
            return squared(out, y)

        op = mh.HessianOperator(
            network("float32"),
            loss,
            batches(rank, "float32"),
            distributed=True,
            check_deterministic=False,
            reduction="mean",
        )
        op @ np.ones(3)
        calls.append(1)
        if rank == 1:
            op.risk.run = how
        op @ np.ones(3)
        print("NOT REACHED")

    return run


def raises(*_):
    raise FloatingPointError("rank 1 has a problem of its own")


def dies(*_):
    os._exit(17)


JOBS = {
    "agree": agree,
    "influence": influences,
    "train": train,
    "stops": stops,
    "raise": fail(raises),
    "die": fail(dies),
}

if __name__ == "__main__":
    try:
        with mh.distributed.session(timeout=10) as (own_rank, size):
            assert size == 2
            JOBS[sys.argv[1]](own_rank)
            print("DONE")
    except Exception as err:
        print(f"ERROR {type(err).__name__}: {err}", flush=True)
        raise
