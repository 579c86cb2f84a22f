"""Writes tests/golden/influence.npz: influence scores of small networks by kronfluence, in float64.

For each network the weights, training and query data, and for each strategy ("ekfac", "kfac") the
pairwise scores, whole and by modules, and the self-scores, with the empirical Fisher information, which draws nothing.
kronfluence has weight and bias of a layer in one block, and no minus sign; it divides the factor of
a convolution's gradients by the positions too, which matters to "kfac" alone. ReLU, since
MindSpore's float32 tanh is off by more than is compared here. Run: ``python
ci/golden/make_influence.py``
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "influence.npz"
DAMPING, ROWS, QUERIES = 0.01, 60, 5
torch.set_default_dtype(torch.float64)
NETWORKS = {
    "mlp_ce": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "mlp_mse": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (4,)),
    "conv_ce": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
        (1, 5, 5),
    ),
}
FACTORS = dict.fromkeys(
    (
        "activation_covariance_dtype",
        "gradient_covariance_dtype",
        "eigendecomposition_dtype",
        "lambda_dtype",
        "per_sample_gradient_dtype",
    ),
    torch.float64,
)


class Of(Task):
    """The sum over a batch of the losses of its samples: cross-entropies, or squared errors, the
    mean over outputs.
    """

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def compute_train_loss(self, batch, model, sample=False):
        assert not sample
        x, y = batch
        if self.classes:
            return functional.cross_entropy(model(x), y, reduction="sum")
        return ((model(x) - y) ** 2).mean(1).sum()

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def scores(net, task, train, queries, strategy):
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "golden",
            prepare_model(net, task),
            task,
            cpu=True,
            output_dir=folder,
            disable_tqdm=True,
            disable_model_save=True,
        )
        analyzer.fit_all_factors(
            "factors",
            train,
            per_device_batch_size=20,
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True, **FACTORS),
        )
        given, by_modules = (
            ScoreArguments(
                damping_factor=DAMPING,
                score_dtype=torch.float64,
                precondition_dtype=torch.float64,
                per_sample_gradient_dtype=torch.float64,
                compute_per_module_scores=apart,
            )
            for apart in (False, True)
        )
        for called, arguments in (("pairs", given), ("modules", by_modules)):
            analyzer.compute_pairwise_scores(
                called,
                "factors",
                queries,
                train,
                per_device_query_batch_size=QUERIES,
                per_device_train_batch_size=20,
                score_args=arguments,
            )
        analyzer.compute_self_scores(
            "own", "factors", train, per_device_train_batch_size=20, score_args=given
        )
        return (
            analyzer.load_pairwise_scores("pairs")["all_modules"].numpy(),
            analyzer.load_self_scores("own")["all_modules"].numpy(),
            {
                name: one.numpy()
                for name, one in analyzer.load_pairwise_scores("modules").items()
                if name != "all_modules"
            },
        )


def main():
    arrays = {"damping": np.array(DAMPING)}
    for number, (name, (make, shape)) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        net, classes = make(), name.endswith("ce")
        x = torch.randn(ROWS + QUERIES, *shape)
        outputs = net(x).shape[1]
        y = torch.randint(0, outputs, (len(x),)) if classes else torch.randn(len(x), outputs)
        arrays |= {
            f"{name}/weights/{key}": value.detach().numpy().copy()
            for key, value in net.named_parameters()
        }
        arrays |= {f"{name}/x": x.numpy(), f"{name}/y": y.numpy()}
        for strategy in ("ekfac", "kfac"):
            torch.manual_seed(number)
            pairs, own, modules = scores(
                make(),
                Of(classes),
                TensorDataset(x[:ROWS], y[:ROWS]),
                TensorDataset(x[ROWS:], y[ROWS:]),
                strategy,
            )
            arrays |= {f"{name}/{strategy}/pairs": pairs, f"{name}/{strategy}/self": own}
            arrays |= {f"{name}/{strategy}/modules/{key}": one for key, one in modules.items()}
            print(name, strategy, pairs.shape, own.shape, pairs.dtype, np.abs(pairs).max())
    np.savez_compressed(TARGET, **arrays)
    print(TARGET, len(arrays), TARGET.stat().st_size)


if __name__ == "__main__":
    main()
