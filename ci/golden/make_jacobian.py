"""Writes tests/golden/jacobian.npz: Jacobians and per-sample gradients of small networks by
torch.func, in float64.

For each network its weights, x, y, the Jacobian (N C, P) of the output by the weights in the order
of the network's Parameters, and the gradients (N, P) of the losses of single samples. Run:
``python ci/golden/make_jacobian.py``
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "jacobian.npz"
torch.set_default_dtype(torch.float64)


class Tied(nn.Module):
    """Words (N, T) to logits (N, words, T)."""

    def __init__(self):
        super().__init__()
        self.words, self.middle, self.out = nn.Embedding(6, 3), nn.Linear(3, 3), nn.Linear(3, 6)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(torch.sigmoid(self.middle(self.words(x)))).swapaxes(1, 2)


def conv():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    for name in ("running_mean", "running_var", "weight", "bias"):
        getattr(net[1], name).data = torch.rand(3) + 0.5
    return net.eval()


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.MSELoss(),
        lambda: (torch.randn(5, 4), torch.randn(5, 3)),
    ),
    "conv": (
        conv,
        nn.CrossEntropyLoss(),
        lambda: (torch.randn(5, 2, 4, 4), torch.randint(0, 3, (5,))),
    ),
    "tied": (
        Tied,
        nn.CrossEntropyLoss(),
        lambda: (torch.randint(0, 6, (4, 3)), torch.randint(0, 6, (4, 3))),
    ),
}


def main():
    arrays = {}
    for name, (make, loss, data) in NETWORKS.items():
        torch.manual_seed(len(name))
        net, (x, y) = make(), data()
        weights = dict(net.named_parameters())

        def out(w, x, net=net):
            return functional_call(net, w, (x[None],))

        def one(w, x, y, net=net, loss=loss):
            return loss(functional_call(net, w, (x[None],)), y[None])

        def lines(found, lead):
            return np.concatenate(
                [part.detach().reshape(lead, -1).numpy() for part in found.values()], axis=1
            )

        rows = vmap(jacrev(out), in_dims=(None, 0))(weights, x)
        slopes = vmap(grad(one), in_dims=(None, 0, 0))(weights, x, y)
        arrays |= {
            f"{name}/x": x.numpy(),
            f"{name}/y": y.numpy(),
            f"{name}/jacobian": lines(rows, net(x).numel()),
            f"{name}/gradients": lines(slopes, len(x)),
        }
        arrays |= {f"{name}/weights/{n}": v.detach().numpy() for n, v in net.state_dict().items()}
        arrays[f"{name}/order"] = np.array(list(weights))
    np.savez_compressed(TARGET, **arrays)
    print(TARGET, len(arrays), TARGET.stat().st_size)


if __name__ == "__main__":
    main()
