"""Laplace: against laplace-torch, against formulas, and what it must not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import nn

from mindspore_hessian import Laplace, _checkpoint
from mindspore_hessian.bayes import posteriors
from mindspore_hessian.estimators.results import Estimate
from mindspore_hessian.linops import BlockDiagonal, Kronecker
from mindspore_hessian.linops import Diagonal as DiagonalOperator
from mindspore_hessian.operators.data import Data

GOLDEN = Path(__file__).parent / "golden" / "laplace.npz"
TOLERANCE = {"float32": 1e-5, "float64": 1e-8}
OUTPUTS = {"classification": 3, "regression": 2}
SIGMA = {"classification": 1.0, "regression": 0.7}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def problem(golden, likelihood, dtype="float32"):
    """The network, its two batches, and new inputs."""
    net = nn.SequentialCell(nn.Dense(4, 5), nn.ReLU(), nn.Dense(5, OUTPUTS[likelihood]))
    for parameter in net.get_parameters():
        parameter.set_dtype(getattr(ms, dtype))
        parameter.set_data(
            ms.Tensor(golden[f"{likelihood}/weights/{parameter.name}"].astype(dtype))
        )
    x, y, new = (golden[f"{likelihood}/{name}"] for name in ("x", "y", "new"))
    y = y.astype(np.int32 if likelihood == "classification" else dtype)
    return (
        net,
        [(ms.Tensor(x[a:b].astype(dtype)), ms.Tensor(y[a:b])) for a, b in ((0, 8), (8, 13))],
        ms.Tensor(new.astype(dtype)),
    )


def prior(kind, number):
    return 0.8 if kind == "number" else np.linspace(0.5, 2.0, number)


def close(found, expected, rtol):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


CASES = [
    (dtype, likelihood, weights, structure)
    for dtype in ("float32", "float64")
    for likelihood in OUTPUTS
    for weights in ("last_layer", "all")
    for structure in ("full", "kron", "diag")
    if not (
        dtype == "float64" and (weights, structure) == ("all", "kron")
    )  # 9 s each; by hand 1e-8 (regression)
    or FULL
    and likelihood == "regression"
]  # there is no float64 cross-entropy on CPU


@pytest.mark.parametrize(("dtype", "likelihood", "weights", "structure"), CASES)
def test_it_equals_laplace_torch(golden, dtype, likelihood, weights, structure):
    net, data, new = problem(golden, likelihood, dtype)
    found = Laplace(
        net,
        data,
        likelihood,
        weights=None if weights == "all" else weights,
        structure=structure,
        sigma_noise=SIGMA[likelihood],
        progress=False,
    )
    assert (found.last is None) == (weights == "all")
    compared = 0
    for kind in ("number", "layers"):
        key, rtol = f"{likelihood}/{weights}/{structure}/{kind}", TOLERANCE[dtype]
        if (
            f"{key}/evidence" not in golden
        ):  # laplace-torch takes no layers for the last one alone with "kron"
            continue
        compared += 1
        found.prior_precision = prior(kind, len(found.parameters))
        close(found.log_marginal_likelihood(), golden[f"{key}/evidence"], rtol)
        by_prior, by_noise = found.evidence_gradient()
        close(by_prior, golden[f"{key}/slope"], rtol)
        close(by_noise, golden.get(f"{key}/noise", 0.0), rtol)
        close(found.functional_variance(new), golden[f"{key}/variance"], rtol)
        close(
            found.functional_variance(new, diagonal=True),
            np.einsum("ncc->nc", golden[f"{key}/variance"]),
            rtol,
        )
        if likelihood == "classification":
            for link in ("probit", "bridge"):
                close(found.predict(new, link), golden[f"{key}/{link}"], rtol)
        else:
            mean, covariance = found.predict(new)
            close(mean, golden[f"{key}/mean"], rtol)
            close(covariance, golden[f"{key}/variance"] + 0.7**2 * np.eye(2), rtol)
    assert compared == 1 + ((weights, structure) != ("last_layer", "kron"))


# --- what laplace-torch has not, or has in another way --------------------------------------------


def posterior(golden, likelihood, structure, weights="last_layer", **options):
    net, data, new = problem(
        golden, likelihood, "float64" if weights == "last_layer" else "float32"
    )
    return (
        net,
        Laplace(
            net, data, likelihood, weights=weights, structure=structure, progress=False, **options
        ),
        new,
    )


@pytest.mark.full_run
def test_a_low_rank_posterior_of_all_eigenpairs_is_the_full_one(golden):
    net, data, new = problem(golden, "regression", "float64")
    options = {"sigma_noise": 0.7, "prior_precision": np.linspace(0.5, 2, 12), "progress": False}
    full, low = (
        Laplace(net, data, "regression", structure=structure, **options)
        for structure in ("full", "lowrank")
    )
    close(low.functional_variance(new), full.functional_variance(new), 1e-8)
    close(low.log_marginal_likelihood(), full.log_marginal_likelihood(), 1e-8)
    close(low.posterior.variances(), full.posterior.variances(), 1e-8)
    one = Laplace(net, data, "regression", structure="lowrank", rank=3, **options)
    assert one.posterior.logdet() < full.posterior.logdet()
    assert (
        one.functional_variance(new, diagonal=True) >= full.functional_variance(new, diagonal=True)
    ).all()


@pytest.mark.parametrize("structure", ["full", "kron", "diag", "lowrank"])
def test_draws_have_the_mean_and_the_covariance(golden, structure):
    net, found, new = posterior(golden, "regression", structure, sigma_noise=0.7)
    draws = found.sample(40_000, seed=1)
    assert draws.shape == (40_000, 12) and np.array_equal(draws, found.sample(40_000, seed=1))
    assert not np.array_equal(draws[:2], found.sample(2, seed=2))
    scale = np.sqrt(found.posterior.variances())
    np.testing.assert_allclose((draws.mean(0) - found.mean) / scale, 0, atol=0.03)
    np.testing.assert_allclose(draws.std(0) / scale, 1, atol=0.03)
    weights, biases = draws[:, :10].reshape(-1, 2, 5), draws[:, 10:]
    outputs = np.einsum("skd,nd->snk", weights, features(net, new)) + biases[:, None]
    expected = found.functional_variance(new)
    for number, each in enumerate(expected):
        np.testing.assert_allclose(
            np.cov(outputs[:, number].T), each, atol=0.03 * np.abs(each).max()
        )


def features(net, x):
    return net[1](net[0](x)).asnumpy().astype(np.float64)


def test_monte_carlo_is_the_mean_softmax_of_draws_of_the_weights(golden):
    net, found, new = posterior(golden, "classification", "full")
    draws = found.sample(20_000, seed=3)
    logits = (
        np.einsum("skd,nd->snk", draws[:, :15].reshape(-1, 3, 5), features(net, new))
        + draws[:, None, 15:]
    )
    expected = np.exp(logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)).mean(0)
    np.testing.assert_allclose(found.predict(new, "mc", num_samples=20_000), expected, atol=0.01)


@pytest.mark.parametrize(
    ("likelihood", "structure", "per"),
    [
        ("classification", "full", "number"),
        ("classification", "diag", "weights"),
        ("classification", "kron", "layers"),
        ("regression", "full", "layers"),
        ("regression", "kron", "number"),
        ("regression", "lowrank", "number"),
    ],
)
def test_the_best_prior_is_where_the_evidence_is_flat_and_largest(
    golden, likelihood, structure, per
):
    noisy = likelihood == "regression"
    _, found, _ = posterior(golden, likelihood, structure)
    before = found.log_marginal_likelihood()
    best = found.optimize_prior_precision(per, noise=noisy)
    assert best > before and best == found.log_marginal_likelihood()
    at = np.atleast_1d(found.prior_precision)
    assert len(at) == {"number": 1, "layers": 2, "weights": found.size}[per]
    for place in range(min(len(at), 4)):
        for factor in (0.8, 1.25):
            other = at.copy()
            other[place] *= factor
            assert found.log_marginal_likelihood(other) <= best + 1e-9
    for sigma in (0.8, 1.25) if noisy else ():
        assert found.log_marginal_likelihood(sigma_noise=sigma * found.sigma_noise) < best
    assert found.log_marginal_likelihood() == best


@pytest.mark.parametrize(
    ("likelihood", "structure", "weights"),
    [
        ("classification", "full", None),
        ("classification", "kron", None),
        ("regression", "full", "last_layer"),
        ("regression", "kron", "last_layer"),
        ("regression", "diag", "last_layer"),
        ("regression", "lowrank", "last_layer"),
    ],
)
def test_the_gradient_of_the_evidence_is_what_differences_say(
    golden, likelihood, structure, weights
):
    _, found, _ = posterior(golden, likelihood, structure, weights, rank=5)
    noisy, h = likelihood == "regression", 1e-4
    for count in (1, len(found.parameters), found.size)[: 2 if structure == "kron" else 3]:
        prior, sigma = np.linspace(0.5, 2.0, count), 0.7 if noisy else 1.0
        by_prior, by_noise = found.evidence_gradient(prior, sigma)
        assert by_prior.shape == (count,)
        slopes = [
            found.log_marginal_likelihood(prior * np.exp(h * unit), sigma)
            - found.log_marginal_likelihood(prior * np.exp(-h * unit), sigma)
            for unit in np.eye(count)
        ]
        close(by_prior, np.array(slopes) / (2 * h), 1e-7)
        if noisy:
            more, less = (found.log_marginal_likelihood(prior, sigma * np.exp(d)) for d in (h, -h))
            close(by_noise, (more - less) / (2 * h), 1e-7)
        else:
            assert by_noise == 0
    assert found.prior_precision == found.sigma_noise == 1  # what was set remains


def test_the_evidence_of_a_linear_model_is_the_gaussian_integral():
    """log N(y; 0, X X^T / d + sigma^2 I): for a network that is at the posterior's mode, where
    Laplace is exact.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 1))
    d, sigma = 1.7, 0.6
    w = np.linalg.solve(x.T @ x / sigma**2 + d * np.eye(3), x.T @ y / sigma**2)
    net = nn.SequentialCell(nn.Dense(3, 1, has_bias=False, dtype=ms.float64))
    net[0].weight.set_data(ms.Tensor(w.T))
    found = Laplace(
        net, (ms.Tensor(x), ms.Tensor(y)), "regression", prior_precision=d, sigma_noise=sigma
    )
    whole = x @ x.T / d + sigma**2 * np.eye(9)
    expected = -0.5 * (y.T @ np.linalg.solve(whole, y) + np.linalg.slogdet(2 * np.pi * whole)[1])
    close(found.log_marginal_likelihood(), expected.item(), 1e-10)
    solved = np.linalg.solve(whole, y)  # and the weights at the mode move nothing, to first order
    slopes = [
        0.5 * (solved.T @ change @ solved - np.trace(np.linalg.solve(whole, change))).item()
        for change in (-x @ x.T / d, 2 * sigma**2 * np.eye(9))
    ]
    by_prior, by_noise = found.evidence_gradient()
    close(np.append(by_prior, by_noise), np.array(slopes), 1e-10)


# --- the last layer -------------------------------------------------------------------------------


class Headed(nn.Cell):
    """A last layer that is not the last in the order of the Cells; and one that is not used."""

    def __init__(self, end=None):
        super().__init__()
        self.head, self.body, self.unused, self.end = (
            nn.Dense(5, 3),
            nn.Dense(4, 5),
            nn.Dense(5, 3),
            end,
        )

    def construct(self, x):
        out = self.head(ms.ops.relu(self.body(x)))
        return out if self.end is None else self.end(out)


def batch(rows=7):
    rng = np.random.default_rng(1)
    return ms.Tensor(rng.normal(size=(rows, 4)), ms.float32), ms.Tensor(
        rng.integers(0, 3, rows), ms.int32
    )


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_the_last_layer_is_found_by_what_the_network_does(mode):
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        net, (x, y) = Headed(), batch()
        out = net(x).asnumpy().copy()
        found = Laplace(net, (x, y), progress=False)
        assert found.last.name == "head" and found.parameters == ("head.weight", "head.bias")
        assert np.array_equal(net(x).asnumpy(), out)
        assert ms.get_context("mode") == mode and "construct" not in net.head.__dict__
        named = Laplace(net, (x, y), weights="head.*", progress=False)
        assert named.last is not None
        close(named.predict(x), found.predict(x), 1e-12)
        p = np.exp(out) / np.exp(out).sum(1, keepdims=True)
        likely = np.log(p[np.arange(7), y.asnumpy()]).sum()
        close(found.log_likelihood(), likely, 1e-5)
    finally:
        ms.set_context(mode=before)


def test_a_network_that_does_not_end_with_a_layer_is_refused():
    x, y = batch()
    with pytest.raises(ValueError, match="does not end with a Dense"):
        Laplace(Headed(nn.ReLU()), (x, y))
    net = Headed(Clip())  # which does nothing to the first batch
    with pytest.raises(ValueError, match="not for batch 1"):
        Laplace(net, [(x, y), (1e6 * x, y)])


class Clip(nn.Cell):
    def construct(self, x):
        return ms.ops.clamp(x, -1e3, 1e3)


def test_by_features_is_as_by_jacobians():
    """The last layer's weights, with and without the short way."""
    net, data = Headed(), batch()
    for structure in ("full", "diag"):
        short = Laplace(net, data, structure=structure, progress=False)
        long = Laplace(
            net, data, weights=["head.weight", "head.bias"], structure=structure, progress=False
        )
        long.last, long._curvature = None, None
        long.misfit, long.num_data = 0.0, 0
        long._add(Data(data, net, True), data)
        close(short.log_marginal_likelihood(), long.log_marginal_likelihood(), 1e-5)
        close(short.predict(data[0], "bridge"), long.predict(data[0], "bridge"), 1e-5)


def test_a_last_layer_without_its_bias_has_a_posterior_of_weights_alone():
    net, (x, y) = Headed(), batch()
    net.head.bias.requires_grad = False
    for structure in ("full", "kron", "diag"):
        found = Laplace(net, (x, y), structure=structure, progress=False)
        assert found.size == 15 and found.last is not None
        assert np.isfinite(found.predict(x)).all() and found.sample(2).shape == (2, 15)


def test_a_network_that_was_trained_further_is_refused():
    net, (x, y) = Headed(), batch()
    found = Laplace(net, (x, y), progress=False)
    found.predict(x)
    net.body.bias.set_data(net.body.bias + 0.1)
    with pytest.raises(ValueError, match="weights are others"):
        found.predict(x)


def test_large_heads_take_little_memory():
    """3,100 classes and 128 features: the Jacobian of a batch would be 0.4 million numbers a sample
    and class.
    """
    code = """
import resource, sys, numpy as np, mindspore as ms
from mindspore import nn
from mindspore_hessian import Laplace, _checkpoint
from mindspore_hessian.bayes import posteriors
from mindspore_hessian.estimators.results import Estimate
from mindspore_hessian.linops import BlockDiagonal, Kronecker
from mindspore_hessian.linops import Diagonal as DiagonalOperator
from mindspore_hessian.operators.data import Data
net = nn.SequentialCell(nn.Dense(8, 128), nn.ReLU(), nn.Dense(128, 3100))
rng = np.random.default_rng(0)
x, y = ms.Tensor(rng.normal(size=(64, 8)), ms.float32), ms.Tensor(rng.integers(0, 3100, 64), ms.int32)
net(x)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
found = Laplace(net, (x, y), structure=sys.argv[1], progress=False)
assert found.predict(x).shape == (64, 3100)
print(peak() - before)
"""
    for structure in (
        ("diag", "kron") if FULL else ("diag",)
    ):  # the eigenvectors of a 3,100 x 3,100 matrix take 10 s
        ran = subprocess.run(
            [sys.executable, "-c", code, structure], capture_output=True, text=True, check=True
        )
        assert float(ran.stdout.split()[-1]) < 200


# --- kept, and continued --------------------------------------------------------------------------


def everything(found, new):
    """All that a posterior says."""
    predicted = found.predict(new)
    return [
        *(predicted if isinstance(predicted, tuple) else (predicted, found.predict(new, "bridge"))),
        found.functional_variance(new),
        found.functional_variance(new, diagonal=True),
        found.sample(3),
        found.log_marginal_likelihood(),
        found.mean,
        found.prior_precision,
        found.sigma_noise,
        found.num_data,
    ]


KEPT = [
    (weights, structure)
    for structure in ("lowrank", "full", "kron", "diag")
    for weights in ("all", "last_layer")
]


@pytest.mark.parametrize(("weights", "structure"), KEPT)
def test_one_that_is_saved_and_loaded_is_the_same_and_goes_on(golden, weights, structure, tmp_path):
    """Bit for bit; and with the second batch added it is that of both."""
    net, (first, second), new = problem(
        golden, "regression", "float64" if weights == "last_layer" else "float32"
    )
    number = 2 if weights == "last_layer" else 4
    options = {
        "weights": None if weights == "all" else weights,
        "structure": structure,
        "sigma_noise": 0.7,
        "prior_precision": np.linspace(0.5, 2, number),
        "progress": False,
    }
    found, path = Laplace(net, first, "regression", **options), tmp_path / "posterior.npz"
    found.save(path)
    loaded = Laplace.load(path, net, progress=False)
    assert repr(loaded) == repr(found) and loaded.parameters == found.parameters
    for one, other in zip(everything(found, new), everything(loaded, new), strict=True):
        assert np.array_equal(one, other)
    both = Laplace(net, [first, second], "regression", **options)
    for going_on in (found, loaded):
        assert going_on.fit(second) is going_on
        for one, other in zip(
            everything(going_on, new)[:4] + [going_on.log_marginal_likelihood()],
            everything(both, new)[:4] + [both.log_marginal_likelihood()],
            strict=True,
        ):
            close(one, other, 1e-9 if weights == "last_layer" else 1e-5)
        assert going_on.num_data == 13
    loaded.save(path)
    for one, other in zip(
        everything(loaded, new), everything(Laplace.load(path, net), new), strict=True
    ):
        assert np.array_equal(one, other)


def test_blocks_of_all_kinds_are_kept_and_added(tmp_path):
    """The factor of the inputs is a mean, the other a sum, in either order; groups; diagonals."""
    rng = np.random.default_rng(0)
    a, g, d = (np.stack([m @ m.T for m in rng.normal(size=(4, k, k))]) for k in (2, 3, 1))
    places = np.split(rng.permutation(26), [6, 12, 18, 21])

    def blocks(n, of):
        return posteriors.Blocks(
            [
                Kronecker(g[of], a[of] / n),
                Kronecker(a[of] / n, g[of]),
                BlockDiagonal([Kronecker(d[of], g[of]), Kronecker(d[of] + 1, g[of])]),
                DiagonalOperator(np.diag(g[of])),
                Kronecker(np.diag([1.0, 2, 3, 4, 5]) * d[of][0]),
            ],
            places,
            [1, 0, 1, 1, 1],
            n,
        )

    one, other = blocks(3, 0), blocks(5, 1)
    both, dense = one.plus(other), [np.asarray(b.to_dense()) for b in one.plus(other).blocks]
    close(dense[0], np.kron(g[0] + g[1], (a[0] + a[1]) / 8), 1e-12)
    close(dense[1], np.kron((a[0] + a[1]) / 8, g[0] + g[1]), 1e-12)
    close(dense[2][:3, :3], (d[0] + d[1]) * (3 * g[0] + 5 * g[1]) / 8, 1e-12)
    close(np.diag(dense[3]), np.diag(g[0] + g[1]), 1e-12)
    close(np.diag(dense[4]), np.arange(1, 6) * (d[0] + d[1])[0, 0], 1e-12)
    _checkpoint.write(str(tmp_path / "blocks"), **both.stored())
    again = posteriors.Blocks.restored(_checkpoint.read(str(tmp_path / "blocks")))
    assert again.count == 8 and again.means == [1, 0, 1, 1, 1]
    roots = (one.at(1.0, np.ones(26)).root.blocks for one in (both, again))
    for first, second in zip(*roots, strict=True):
        assert np.array_equal(first.to_dense(), second.to_dense())


@pytest.mark.skipif(not FULL, reason="compiles for half a minute; by made-up blocks above")
def test_a_classification_and_blocks_of_other_kinds_are_kept(tmp_path):
    """Groups of a convolution, and an embedding, whose factors are in another order."""

    class Mixed(nn.Cell):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.norm = (
                nn.Embedding(6, 4),
                nn.Conv1d(4, 4, 1, group=2, has_bias=True),
                nn.LayerNorm((4,)),
            )
            self.head = nn.Dense(4, 3)

        def construct(self, x):
            return self.head(self.norm(self.mix(self.table(x).swapaxes(1, 2)).mean(2)))

    rng, net = np.random.default_rng(0), Mixed()
    x, y = (
        ms.Tensor(rng.integers(0, 6, (9, 2)), ms.int32),
        ms.Tensor(rng.integers(0, 3, 9), ms.int32),
    )
    found = Laplace(net, (x[:5], y[:5]), weights=None, structure="kron", progress=False)
    found.save(tmp_path / "kept.npz")
    loaded = Laplace.load(tmp_path / "kept.npz", net)
    for one, other in zip(everything(found, x), everything(loaded, x), strict=True):
        assert np.array_equal(one, other)
    both = Laplace(
        net, [(x[:5], y[:5]), (x[5:], y[5:])], weights=None, structure="kron", progress=False
    )
    close(loaded.fit((x[5:], y[5:])).functional_variance(x), both.functional_variance(x), 1e-4)
    close(loaded.log_marginal_likelihood(), both.log_marginal_likelihood(), 1e-5)


def test_files_of_something_else_are_refused(tmp_path):
    net, (x, y) = Headed(), batch()
    found, path = Laplace(net, (x, y), structure="diag", progress=False), tmp_path / "posterior.npz"
    found.save(path)
    before = [p.asnumpy().copy() for p in net.get_parameters()]
    with pytest.raises(ValueError, match="is not there"):
        Laplace.load(tmp_path / "none.npz", net)
    with pytest.raises(TypeError, match="path must be a file name"):
        Laplace.load(3, net)
    with pytest.raises(TypeError, match="network must be a Cell"):
        Laplace.load(path, Headed)
    with pytest.raises(ValueError, match="cannot be written"):
        found.save(tmp_path / "no folder" / "posterior.npz")
    other = tmp_path / "other.npz"
    np.savez(other, a=np.ones(2))
    with pytest.raises(ValueError, match="no checkpoint of ours"):
        Laplace.load(other, net)
    other.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="no checkpoint of ours, or is damaged"):
        Laplace.load(other, net)
    Estimate(1.0, 0.1, 1, 0.0, 0, "tol").save(other)
    with pytest.raises(ValueError, match="holds no Laplace"):
        Laplace.load(other, net)
    with pytest.raises(ValueError, match="another network: that has 3 layers, and network 4"):
        Laplace.load(path, Headed(nn.ReLU()))
    with pytest.raises(ValueError, match=r"the numbers of head\.weight.* differ"):
        Laplace.load(path, Headed())
    changed = Headed()
    changed.unused = nn.Dense(5, 4)
    with pytest.raises(ValueError, match=r"its Parameter 'unused\.weight' \(Float32, \[3, 5\]\)"):
        Laplace.load(path, changed)
    assert all(
        np.array_equal(p.asnumpy(), old)
        for p, old in zip(net.get_parameters(), before, strict=True)
    )


def test_a_network_of_the_same_weights_that_ends_otherwise_is_refused(tmp_path):
    net, (x, y) = Headed(), batch()
    Laplace(net, (x, y), structure="diag", progress=False).save(tmp_path / "kept.npz")
    net.construct = lambda x: ms.ops.relu(net.head(ms.ops.relu(net.body(x)))) - 1
    other = Laplace.load(tmp_path / "kept.npz", net)
    for _ in range(2):
        with pytest.raises(ValueError, match="the last for the network that was saved, but not"):
            other.predict(x)


def test_more_data_that_do_not_fit_change_nothing():
    net, (x, y) = Headed(), batch()
    found = Laplace(net, (x, y), progress=False)
    before = found.predict(x)
    with pytest.raises(ValueError, match="labels of batch 1 must be from 0 to 2"):
        found.fit([(x, y), (x, y + 2)])
    assert found.num_data == 7 and np.array_equal(found.predict(x), before)
    net.body.bias.set_data(net.body.bias + 0.1)
    with pytest.raises(ValueError, match="weights are others"):
        found.fit((x, y))
