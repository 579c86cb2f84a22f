"""Random estimates against exact values: within their errors, and these of the right size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm
from spectra import SPECTRA, Counting, cosine, dense

from mindspore_hessian.estimators import diagonal, frobenius_norm, logdet, spectral_density, trace

SEEDS = 100
INDEFINITE = dense(np.random.default_rng(1).standard_normal(80))
POSITIVE = dense(np.geomspace(0.05, 20.0, 80), seed=2)
DECAYING = dense(0.8 ** np.arange(120), seed=3)
LOG_POSITIVE = np.log(np.geomspace(0.05, 20.0, 80)).sum()

# estimator, matrix, exact value, budget, whether the samples are independent, so that coverage is
# nominal
ESTIMATES = {
    "hutchinson": (
        lambda a, seed: trace(a, max_products=60, seed=seed, progress=False),
        INDEFINITE,
        np.trace(INDEFINITE),
        60,
        True,
    ),
    "hutchinson, normal": (
        lambda a, seed: trace(a, max_products=60, seed=seed, distribution="normal", progress=False),
        POSITIVE,
        np.trace(POSITIVE),
        60,
        True,
    ),
    "hutchinson, sphere": (
        lambda a, seed: trace(a, max_products=60, seed=seed, distribution="sphere", progress=False),
        INDEFINITE,
        np.trace(INDEFINITE),
        60,
        True,
    ),
    "hutch++": (
        lambda a, seed: trace(a, "hutch++", max_products=90, seed=seed, progress=False),
        INDEFINITE,
        np.trace(INDEFINITE),
        90,
        True,
    ),
    "hutch++, low rank": (
        lambda a, seed: trace(a, "hutch++", max_products=60, seed=seed, progress=False),
        DECAYING,
        np.trace(DECAYING),
        60,
        True,
    ),
    "xtrace": (
        lambda a, seed: trace(a, "xtrace", max_products=40, seed=seed, progress=False),
        DECAYING,
        np.trace(DECAYING),
        40,
        False,
    ),
    "xtrace, sphere": (
        lambda a, seed: trace(
            a, "xtrace", max_products=40, seed=seed, distribution="sphere", progress=False
        ),
        POSITIVE,
        np.trace(POSITIVE),
        40,
        False,
    ),
    "xtrace, normal": (
        lambda a, seed: trace(
            a, "xtrace", max_products=40, seed=seed, distribution="normal", progress=False
        ),
        INDEFINITE,
        np.trace(INDEFINITE),
        40,
        False,
    ),
    "frobenius_norm": (
        lambda a, seed: frobenius_norm(a, max_products=60, seed=seed, progress=False),
        INDEFINITE,
        np.linalg.norm(INDEFINITE),
        60,
        True,
    ),
    "logdet": (
        lambda a, seed: logdet(a, num_steps=25, max_products=50 * 25, seed=seed, progress=False),
        POSITIVE,
        LOG_POSITIVE,
        50 * 25,
        True,
    ),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_errors_and_their_coverage(name):
    """Of 100 intervals of two standard errors about 95 hold the truth (Student's t with 30 to 60
    degrees of freedom gives 0.945 to 0.950). The band has probability 0.9998 under that: 85 to 100.
    The leave-one-out samples of XTrace are not independent, so there the standard error is held to
    a factor of two of the true one, and 95 of 100 errors to four of them."""
    estimator, matrix, exact, budget, independent = ESTIMATES[name]
    found = [estimator(matrix, seed) for seed in range(SEEDS)]
    errors = np.array([one.value for one in found]) - exact
    claimed = np.array([one.standard_error for one in found])
    assert (np.abs(errors) <= 4 * claimed).sum() >= (SEEDS if independent else 95)
    assert {one.num_products for one in found} == {budget} and {
        one.stopped_by for one in found
    } == {"budget"}
    inside = int((np.abs(errors) <= 2 * claimed).sum())
    if independent:
        assert binom.ppf(1e-4, SEEDS, 0.945) <= inside
        assert 0.75 < claimed.mean() / np.sqrt((errors**2).mean()) < 1.33
    else:
        assert 0.5 < claimed.mean() / np.sqrt((errors**2).mean()) < 2.0
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(SEEDS)  # no bias


@pytest.mark.parametrize("name", ["decaying", "algebraic"])
@pytest.mark.parametrize(("method", "times"), [("hutch++", 20), ("xtrace", 80)])
def test_the_better_trace_is_better_at_equal_products(name, method, times):
    op, exact = cosine(SPECTRA[name]), SPECTRA[name].sum()

    def rmse(method):
        return np.sqrt(
            np.mean(
                [
                    (trace(op, method, max_products=120, seed=seed, progress=False).value - exact)
                    ** 2
                    for seed in range(15)
                ]
            )
        )

    assert rmse(method) * times < rmse("hutchinson")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [2, 9, 20])
def test_leave_one_out_by_brute_force(k, seed):
    """A QR factorisation for each left-out probe, from the definitions in the paper."""
    n, matrix = 80, POSITIVE
    omega = np.stack(
        [
            2.0
            * np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))).integers(0, 2, n)
            - 1
            for i in range(k)
        ],
        axis=1,
    )
    traces, diagonals = [], []
    for i in range(k):
        q = np.linalg.qr(np.delete(matrix @ omega, i, axis=1))[0]
        z = omega[:, i]
        rest = z - q @ (q.T @ z)
        traces.append(np.trace(q.T @ matrix @ q) + rest @ matrix @ rest)
        image = matrix @ z
        diagonals.append(np.diag(q @ q.T @ matrix) + z * (image - q @ (q.T @ image)))
    found = trace(matrix, "xtrace", max_products=2 * k, seed=seed, progress=False)
    assert found.value == pytest.approx(np.mean(traces), rel=1e-10)
    assert found.standard_error == pytest.approx(np.std(traces, ddof=1) / np.sqrt(k), rel=1e-8)
    found = diagonal(matrix, "xdiag", max_products=2 * k, seed=seed, progress=False)
    np.testing.assert_allclose(found.value, np.mean(diagonals, axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        found.standard_error, np.std(diagonals, axis=0, ddof=1) / np.sqrt(k), rtol=1e-6
    )


@pytest.mark.parametrize("distribution", ["rademacher", "normal", "sphere"])
@pytest.mark.parametrize(
    "spectrum",
    [np.r_[3.0, 2.0, -1.0, np.zeros(197)], np.zeros(50), np.r_[1e8, np.zeros(99)]],
    ids=["rank 3", "zero", "rank 1"],
)
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_low_rank_is_exact(method, spectrum, distribution):
    found = trace(
        cosine(spectrum), method, max_products=48, distribution=distribution, progress=False
    )
    scale = np.abs(spectrum).max() or 1.0
    assert (
        abs(found.value - spectrum.sum()) <= 1e-11 * scale and found.standard_error <= 1e-11 * scale
    )


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_matrices_are_exact(method, n):
    matrix = dense(np.arange(1.0, n + 1))
    found = trace(matrix, method, max_products=60, progress=False)
    assert found.stopped_by == "exact" and found.standard_error == 0
    assert found.value == pytest.approx(n * (n + 1) / 2, rel=1e-12)


@pytest.mark.parametrize("distribution", ["normal", "sphere"])
@pytest.mark.parametrize("budget", [4, 22, 60])
def test_scaled_xtrace_is_exact_for_multiples_of_the_identity(budget, distribution):
    """The remainder, scaled by the length of its probe, is the eigenvalue times the dimension that
    is left.
    """
    found = trace(
        3.0 * np.eye(100), "xtrace", max_products=budget, distribution=distribution, progress=False
    )
    assert found.value == pytest.approx(300, rel=1e-12) and found.standard_error < 1e-10


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_diagonal_error_from_the_samples(batch):
    z = np.stack(
        [
            2.0
            * np.random.default_rng(np.random.SeedSequence(4, spawn_key=(i,))).integers(0, 2, 80)
            - 1
            for i in range(20)
        ],
        axis=1,
    )
    samples = z * (INDEFINITE @ z)
    found = diagonal(INDEFINITE, max_products=20, seed=4, batch=batch, progress=False)
    np.testing.assert_allclose(found.value, samples.mean(axis=1), rtol=1e-10)
    np.testing.assert_allclose(
        found.standard_error, samples.std(axis=1, ddof=1) / np.sqrt(20), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("method", "budget"), [("hutchinson", 2000), ("hutch++", 300), ("xtrace", 300)]
)
def test_tol_ends_it(method, budget):
    matrix = Counting(
        dense(np.linspace(1, 2, 300) if method == "hutchinson" else 0.9 ** np.arange(300))
    )
    found = trace(matrix, method, tol=0.05, max_products=budget, progress=False)
    assert found.stopped_by == "tol" and found.standard_error <= 0.05 * abs(found.value)
    assert found.num_products == matrix.columns < budget


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonal_errors(method):
    matrix = INDEFINITE if method == "hutchinson" else POSITIVE
    exact, inside, ratios = np.diag(matrix), [], []
    for seed in range(SEEDS):
        found = diagonal(matrix, method, max_products=60, seed=seed, progress=False)
        assert found.value.shape == found.standard_error.shape == exact.shape
        inside.append(np.abs(found.value - exact) <= 2 * found.standard_error)
        ratios.append((np.abs(found.value - exact) ** 2, found.standard_error**2))
    error, claimed = np.sqrt(np.mean(ratios, axis=(0, 2)))
    assert 0.9 < claimed / error < 1.11 if method == "hutchinson" else 0.5 < claimed / error < 2
    if (
        method == "hutchinson"
    ):  # 8000 intervals, those of one seed correlated; per entry 100 independent ones
        assert 0.93 < np.mean(inside) < 0.965
        assert (np.sum(inside, axis=0) >= binom.ppf(1e-4 / len(exact), SEEDS, 0.945)).all()


def test_xdiag_beats_hutchinson_on_a_decaying_spectrum():
    exact = np.diag(DECAYING)

    def rmse(method):
        return np.sqrt(
            np.mean(
                [
                    (
                        diagonal(DECAYING, method, max_products=80, seed=seed, progress=False).value
                        - exact
                    )
                    ** 2
                    for seed in range(20)
                ]
            )
        )

    assert 20 * rmse("xdiag") < rmse("hutchinson")


@pytest.mark.parametrize("batch", [1, 7, 80, 100])
def test_exact_diagonal(batch):
    found = diagonal(INDEFINITE, "exact", batch=batch, progress=False)
    np.testing.assert_allclose(found.value, np.diag(INDEFINITE), rtol=1e-13)
    assert (
        found.num_products == 80 and found.stopped_by == "exact" and not found.standard_error.any()
    )


@pytest.mark.parametrize("estimator", [trace, diagonal, frobenius_norm])
def test_blocks_do_not_change_the_probes(estimator):
    values = [
        estimator(INDEFINITE, max_products=30, batch=batch, seed=5, progress=False).value
        for batch in (1, 4, 30)
    ]
    np.testing.assert_allclose(values[1:], [values[0]] * 2, rtol=1e-12)


def test_logdet_of_a_big_operator_and_its_bias():
    spectrum = np.geomspace(1e-2, 10, 4000)
    found = logdet(cosine(spectrum), num_steps=40, max_products=800, progress=False)
    assert abs(found.value - np.log(spectrum).sum()) <= 4 * found.standard_error + found.bias
    few = logdet(cosine(spectrum), num_steps=4, max_products=80, progress=False)
    many = logdet(
        cosine(spectrum), num_steps=60, max_products=20 * 60, progress=False
    )  # the same probes
    assert abs(few.value - many.value) <= few.bias * 4 and many.bias < 1e-2 * few.bias
    damped = logdet(
        cosine(spectrum - 0.5), damping=0.5, num_steps=40, max_products=800, progress=False
    )
    assert damped.value == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(-1, 2, 100),
        np.r_[0.0, np.ones(50)],
        np.zeros(10),
        -np.ones(10),
        np.r_[np.zeros(30), np.linspace(1, 2, 30)],
    ],
    ids=range(5),
)
def test_logdet_refuses_what_is_not_positive(spectrum):
    with pytest.raises(
        ValueError, match="op must be positive definite for logdet, but a Ritz value is"
    ):
        logdet(cosine(spectrum), progress=False)


DENSITIES = {
    "decaying": 0.99 ** np.arange(2000),
    "uniform": np.linspace(-1, 3, 2000),
    "outliers": np.r_[20.0, 15.0, np.random.default_rng(0).standard_normal(1998)],
    "two points": np.r_[np.full(500, -1.0), np.ones(1500)],
}


@pytest.mark.parametrize("kernel", ["gaussian", "histogram"])
@pytest.mark.parametrize("name", DENSITIES)
def test_density_against_the_exact_one(name, kernel):
    """Pointwise 4 standard errors of 24 probes, and for the rules a 1000th of the peak (one node of
    the five in a cell for the histogram); 23 degrees of freedom and a thousand points allow a few
    outside."""
    spectrum = DENSITIES[name]
    span = np.ptp(spectrum)
    found = spectral_density(
        cosine(spectrum),
        num_probes=24,
        num_steps=100,
        kernel=kernel,
        sigma=span / 20,
        progress=False,
    )
    x, width = found.grid, span / 20
    if kernel == "gaussian":
        exact = norm.pdf(x[:, None], spectrum, width).mean(axis=1)
    else:
        edges = np.r_[x - width / 2, x[-1] + width / 2]
        exact = np.histogram(spectrum, edges)[0] / (len(spectrum) * width)
    assert np.trapz(found.density, x) == pytest.approx(1, abs=1e-6) or kernel == "histogram"
    assert np.sum(found.density * np.gradient(x)) == pytest.approx(1, abs=1e-6)
    slack = (1e-3 if kernel == "gaussian" else 0.2) * exact.max()
    outside = np.abs(found.density - exact) > 4 * found.standard_error + slack
    assert outside.mean() <= 0.01
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    assert found.nodes.min() >= spectrum.min() - 1e-9 and found.nodes.max() <= spectrum.max() + 1e-9
    for k in (1, 2, 3):
        scatter = np.std((found.weights * found.nodes**k).sum(axis=1)) / np.sqrt(24)
        assert abs(found.moment(k) - (spectrum**k).mean()) <= 5 * scatter + 1e-12


def test_density_details():
    spectrum = np.r_[np.full(500, -1.0), np.ones(1500)]
    op = Counting(cosine(spectrum))
    found = spectral_density(op, num_probes=10, num_steps=50, progress=False)
    assert found.num_products == op.columns == 20  # two eigenvalues: two steps for each probe
    assert found.mass_below(0) == pytest.approx(0.25, abs=0.05) and found.stopped_by == "probes"
    short = spectral_density(cosine(DENSITIES["uniform"]), 10, 20, max_products=70, progress=False)
    assert len(short.nodes) == 3 and short.num_products == 60 and short.stopped_by == "budget"
    own = spectral_density(cosine(spectrum), grid=[-2.0, -1.0, 1.0], sigma=0.5, progress=False)
    exact = norm.pdf([[-2.0], [-1.0], [1.0]], [-1.0, 1.0], 0.5) @ [0.25, 0.75]
    np.testing.assert_allclose(own.density, exact, rtol=0.1)
    assert spectral_density(np.eye(40), progress=False).nodes == pytest.approx(1)


def test_log_density():
    spectrum = np.geomspace(1e-4, 10, 1000) * np.where(np.arange(1000) % 2, 1, -1)
    found = spectral_density(
        cosine(spectrum), num_steps=200, num_probes=8, scale="log", sigma=0.5, progress=False
    )
    decades = np.log10(found.grid)
    assert np.trapz(found.density, decades) == pytest.approx(1, abs=1e-6)
    top = (
        found.grid > 0.3
    )  # where Lanczos resolves it; near zero the rules are coarse on this scale
    exact = norm.pdf(decades[:, None], np.log10(np.abs(spectrum)), 0.5).mean(axis=1)
    assert (
        np.abs(found.density - exact)[top] <= 4 * found.standard_error[top] + 0.05 * exact.max()
    ).all()
