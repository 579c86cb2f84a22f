"""Code as users write it, which mypy must accept (test_typing.py)."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import bayes, optim
from mindspore_hessian.estimators import EigshResult, Estimate

net = nn.SequentialCell(nn.Dense(4, 8), nn.Tanh(), nn.Dense(8, 3))
loss = nn.CrossEntropyLoss()
x, y = Tensor(np.ones((5, 4)), ms.float32), Tensor(np.zeros(5), ms.int32)


def f(a: Tensor, b: Tensor) -> Tensor:
    return ops.sum(a**2 * b)


def with_aux(a: Tensor) -> tuple[Tensor, Tensor]:
    return ops.sum(a**2), a + 1


product = mh.hvp(f, (x, x), (x, x), (0, 1), mode="fwdrev")
product, aux = mh.hvp(with_aux, x, x, has_aux=True)
by_weights = mh.hvp(
    lambda a: loss(net(a), y), x, net.trainable_params(), weights=net.trainable_params()
)
matrix = mh.hessian(f, (0, -1), mode="revrev", chunk_size=4)(x, x)
matrix, aux = mh.hessian(with_aux, has_aux=True)(x)
points = mh.laplacian(f, in_axes=(0, None), along=(0, 1), mode="forward")(x, x)
points = mh.laplacian(f, in_axes=0, batched=True)(x)
slope = mh.jacobian(net, mode="rev", weights=net.get_parameters())(x)

op = mh.HessianOperator(
    net, loss, [(x, y)], weights="*.weight", reduction="mean", block_diagonal="layer", output=0
)
ggn = 0.5 * mh.GGNOperator(net, loss, (x, y)) + op
fisher = mh.FisherOperator(net, loss, (x, y), likelihood="categorical", mc_samples=2)
kfac = mh.KFACOperator(net, loss, (x, y), fisher="mc", approx="reduce", damping=None)
found: EigshResult = mh.eigsh(op, k=2, which="LM")
estimate: Estimate = mh.trace(ggn, method="xtrace", tol=0.1)
numbers: np.ndarray = found.eigenvalues
scores: np.ndarray = mh.influence(net, loss, (x, y), (x, y), method="dense", curvature=op)
best = mh.most_influential(scores, 3, which="harmful")
posterior: bayes.Laplace = mh.Laplace(net, (x, y), "classification", structure="kron")
mh.configure("CPU", max_cpu_isa="ALL")
minimum = optim.minimize(lambda a: ops.sum(a**4), x, method="trust-krylov")
