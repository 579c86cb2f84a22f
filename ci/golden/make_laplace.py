"""Writes tests/golden/laplace.npz: posteriors of two small networks by laplace-torch, in float64.

For each likelihood the weights, two batches and test inputs; for each set of weights ("last_layer",
"all"), structure ("full", "kron", "diag") and prior precision (a number, or one for each Parameter)
the log marginal likelihood, its derivatives by the logarithms of prior precision and noise, the
functional variance, and the predictives. ReLU, since MindSpore's
float32 tanh is off by more than is compared here. Run: ``python ci/golden/make_laplace.py``
"""

from pathlib import Path

import numpy as np
import torch
from laplace import Laplace
from laplace.curvature import CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "laplace.npz"
torch.set_default_dtype(torch.float64)
SIGMA = 0.7


def network(outputs):
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, outputs))


def posterior(net, likelihood, weights, structure, prior, loader):
    extra = {"sigma_noise": SIGMA} if likelihood == "regression" else {}
    la = Laplace(
        net,
        likelihood,
        subset_of_weights=weights,
        hessian_structure=structure,
        prior_precision=prior,
        backend=CurvlinopsGGN,
        **extra,
    )
    la.fit(loader)
    return la


def layered(sizes, structure, weights):
    """A prior precision for each Parameter, as laplace-torch takes it; None where it takes none."""
    each = torch.linspace(0.5, 2.0, len(sizes))
    if weights == "all":
        return each
    return None if structure == "kron" else torch.repeat_interleave(each, torch.tensor(sizes))


def slopes(la, key, likelihood, prior, sizes):
    """Of the evidence, by the logarithm of each number of the prior, or of each Parameter's, and of
    the noise.
    """
    prior, noise = prior.clone().requires_grad_(), torch.tensor(SIGMA, requires_grad=True)
    regression = likelihood == "regression"
    leaves = (prior, noise) if regression else (prior,)
    evidence = la.log_marginal_likelihood(prior, noise if regression else None)
    found = [
        (leaf * slope).detach().reshape(-1)
        for leaf, slope in zip(leaves, torch.autograd.grad(evidence, leaves), strict=True)
    ]
    if len(found[0]) == sum(sizes):
        found[0] = torch.stack([part.sum() for part in found[0].split(sizes)])
    names = ("slope", "noise")[: len(found)]
    return {f"{key}/{name}": one.numpy() for name, one in zip(names, found, strict=True)}


def main():
    arrays = {}
    for likelihood, outputs in (("classification", 3), ("regression", 2)):
        torch.manual_seed(outputs)
        net = network(outputs)
        x, new = torch.randn(13, 4), 3 * torch.randn(6, 4)
        y = (
            torch.randint(0, outputs, (13,))
            if likelihood == "classification"
            else torch.randn(13, outputs)
        )
        loader = DataLoader(TensorDataset(x, y), batch_size=8)
        arrays |= {
            f"{likelihood}/weights/{name}": p.detach().numpy() for name, p in net.named_parameters()
        }
        arrays |= {
            f"{likelihood}/{name}": value.numpy()
            for name, value in (("x", x), ("y", y), ("new", new))
        }
        for weights in ("last_layer", "all"):
            sizes = [p.numel() for p in (net if weights == "all" else net[-1]).parameters()]
            for structure in ("full", "kron", "diag"):
                for kind, prior in (
                    ("number", torch.tensor(0.8)),
                    ("layers", layered(sizes, structure, weights)),
                ):
                    if prior is None:
                        continue
                    la = posterior(net, likelihood, weights, structure, prior, loader)
                    key = f"{likelihood}/{weights}/{structure}/{kind}"
                    arrays[f"{key}/evidence"] = la.log_marginal_likelihood().detach().numpy()
                    mean, variance = la._glm_predictive_distribution(new)
                    arrays |= {f"{key}/variance": variance.numpy(), f"{key}/mean": mean.numpy()}
                    if likelihood == "classification":
                        arrays |= {
                            f"{key}/{link}": la(new, link_approx=link).detach().numpy()
                            for link in ("probit", "bridge")
                        }
                    arrays |= slopes(la, key, likelihood, prior, sizes)
    np.savez_compressed(TARGET, **arrays)
    print(TARGET, len(arrays), TARGET.stat().st_size)


if __name__ == "__main__":
    main()
