"""Code with mistakes, each of which mypy must see (test_typing.py): exactly the lines that end in
`# no`.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import mindspore_hessian as mh

net = nn.Dense(4, 3)
loss = nn.CrossEntropyLoss()
x, y = Tensor(np.ones((5, 4)), ms.float32), Tensor(np.zeros(5), ms.int32)


def f(a: Tensor) -> Tensor:
    return (a**2).sum()


mh.hvp("f", x, x)  # no
mh.hvp(f, x, x, mode="forward")  # no
mh.hvp(f, x, x, grad_position="x")  # no
mh.hvp(f, x)  # no
mh.grad_and_hvp(f, x, x, has_aux="yes")  # no
mh.hvp(f, x, x, has_aux=True).asnumpy()  # no
matrix, aux, more = mh.hessian(f, has_aux=True)(x)  # no
diagonal, aux, more = mh.hessian_diag(f, has_aux=True, in_axes=0)(x)  # no
mh.value_grad_and_laplacian(f, has_aux=True)(x).mean()  # no
mh.hessian(3)(x)  # no
mh.hessian(f, mode="rev")(x)  # no
mh.hessian(f, chunk_size=1.5)(x)  # no
mh.hessian_diag(f, in_axes="0")(x)  # no
mh.jacobian(f, mode="revrev")(x)  # no
mh.laplacian(f, mode="reversed")(x)  # no
mh.laplacian(f, along="x")(x)  # no
mh.HessianOperator(3, loss, (x, y))  # no
mh.HessianOperator(net, loss, (x, y), reduction="average")  # no
mh.HessianOperator(net, loss, (x, y), block_diagonal="layers")  # no
mh.HessianOperator(net, loss, (x, y), keep_data="yes")  # no
mh.FisherOperator(net, loss, (x, y), likelihood="poisson")  # no
mh.KFACOperator(net, loss, (x, y), fisher="sampled")  # no
mh.eigsh(np.eye(3), k="all")  # no
mh.trace(np.eye(3), distribution="uniform")  # no
mh.diagonal(np.eye(3), method="hutchpp")  # no
mh.solve(np.eye(3), np.ones(3), method="gmres")  # no
mh.spectral_density(np.eye(3), scale="logarithmic")  # no
mh.most_influential(np.eye(3), which="best")  # no
mh.Laplace(net, (x, y), "ranking")  # no
mh.Laplace(net, (x, y), structure="full").scores()  # no
top = mh.eigsh(np.eye(3)).eigenvalue  # no
mh.configure(device_id="0")  # no
