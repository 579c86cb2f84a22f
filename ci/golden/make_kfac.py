"""Writes tests/golden/kfac.npz: Kronecker factors of small networks by curvlinops, in float64.

For each network the weights, the batches, and for each kind of Fisher ("type-2", "empirical") and
approximation ("expand", "reduce") the factors of each layer. Run: ``python ci/golden/make_kfac.py``
"""

from pathlib import Path

import numpy as np
import torch
from curvlinops import KFACLinearOperator
from torch import nn

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "kfac.npz"
torch.set_default_dtype(torch.float64)
NETWORKS = {
    "mlp_ce": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.CrossEntropyLoss(),
        (4,),
    ),
    "mlp_mse": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.MSELoss(),
        (4,),
    ),
    "mlp_bce": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        nn.BCEWithLogitsLoss(),
        (4,),
    ),
    "conv_ce": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=1),
            nn.Tanh(),
            nn.Conv2d(3, 2, 2, dilation=2),
            nn.Flatten(),
            nn.Linear(2 * 2 * 1, 3),
        ),
        nn.CrossEntropyLoss(),
        (2, 7, 5),
    ),
}


def main():
    arrays = {}
    for name, (make, loss, shape) in NETWORKS.items():
        torch.manual_seed(len(name))
        net, data = make(), []
        for n in (5, 3):
            y = (
                torch.randint(0, 3, (n,))
                if name.endswith("ce") and not name.endswith("bce")
                else torch.rand(n, 3).round()
                if name.endswith("bce")
                else torch.randn(n, 3)
            )
            data.append((torch.randn(n, *shape), y))
        arrays |= {f"{name}/weights/{k}": v.detach().numpy() for k, v in net.named_parameters()}
        for number, (x, y) in enumerate(data):
            arrays |= {f"{name}/x{number}": x.numpy(), f"{name}/y{number}": y.numpy()}
        for fisher in ("type-2", "empirical"):
            for approx in ("expand", "reduce"):
                op = KFACLinearOperator(
                    net,
                    loss,
                    list(net.parameters()),
                    data,
                    fisher_type=fisher,
                    kfac_approx=approx,
                    check_deterministic=False,
                )
                op.compute_kronecker_factors()
                for key, (a, g) in {
                    k: (op._input_covariances[k], op._gradient_covariances[k])
                    for k in op._input_covariances
                }.items():
                    arrays |= {
                        f"{name}/{fisher}/{approx}/{key}/A": a.detach().numpy(),
                        f"{name}/{fisher}/{approx}/{key}/G": g.detach().numpy(),
                    }
    np.savez_compressed(TARGET, **arrays)
    print(TARGET, len(arrays), TARGET.stat().st_size)


if __name__ == "__main__":
    main()
