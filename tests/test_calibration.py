"""Calibration: against numbers by hand, and by definition."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

from mindspore_hessian import Calibration, calibration

# Confidences 0.5, 0.6, 0.7, 0.9, 1.0; right, wrong, right, wrong, right.
P = np.array(
    [[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.05, 0.05, 0.9], [1.0, 0.0, 0.0]]
)
LABELS = np.array([0, 2, 2, 0, 0])


def test_it_is_what_it_is_by_hand():
    """Bins (0, .5], (.5, 1]: one sample that is right with 0.5, and four of confidence 0.8 in the
    mean, half right.
    """
    found = calibration(P, LABELS, bins=2)
    assert found.expected_calibration_error == pytest.approx((0.5 + 4 * 0.3) / 5)
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.negative_log_likelihood == pytest.approx(
        -np.log([0.5, 0.2, 0.7, 0.05, 1.0]).mean()
    )
    assert found.brier_score == pytest.approx(
        (0.375 + (0.04 + 0.36 + 0.64) + (0.01 + 0.04 + 0.09) + (0.95**2 + 0.0025 + 0.81) + 0) / 5
    )
    assert found.counts.tolist() == [1, 4] and found.edges.tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(found.confidences, [0.5, 0.8])
    np.testing.assert_allclose(found.accuracies, [1.0, 0.5])


def test_a_sample_on_an_edge_is_in_the_bin_below():
    found = calibration(P, LABELS, bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 1, 1]
    assert np.isnan(found.accuracies[0]) and found.expected_calibration_error == pytest.approx(
        (0.5 + 0.6 + 0.3 + 0.9 + 0.0) / 5
    )


def test_it_is_the_definition_for_random_rows():
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.normal(size=(500, 4)), rng.integers(0, 4, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = 0.0
    for m in range(1, 16):
        inside = (p.max(1) > (m - 1) / 15) & (p.max(1) <= m / 15)
        if inside.any():
            expected += inside.mean() * abs(
                (p.argmax(1) == labels)[inside].mean() - p.max(1)[inside].mean()
            )
    found = calibration(ms.Tensor(p), ms.Tensor(labels))
    assert found.expected_calibration_error == pytest.approx(expected, abs=1e-12)
    assert found.brier_score == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_labels_drawn_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 40_000)
    labels = (p.cumsum(1) < rng.random((40_000, 1))).sum(1)
    assert calibration(p, labels).expected_calibration_error < 0.01
    assert (
        calibration(p**2 / (p**2).sum(1, keepdims=True), labels).expected_calibration_error > 0.05
    )


def test_a_label_of_probability_0_has_an_infinite_loss():
    assert calibration([[1.0, 0.0]], [1]).negative_log_likelihood == np.inf


def test_it_is_printed_short_and_kept(tmp_path):
    found = calibration(P, LABELS, bins=2)
    assert str(found) == (
        "accuracy 60.0%, expected calibration error 0.3400, negative log-likelihood 1.1310, "
        "Brier score 0.6540 (5 samples, 2 bins)"
    )
    assert len(repr(calibration(P, LABELS))) < 260
    found.save(tmp_path / "found.npz")
    again = Calibration.load(tmp_path / "found.npz")
    assert repr(again) == repr(found) and isinstance(again.accuracy, float)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"probabilities": 2 * P},
            ValueError,
            "row 0 is from 0.5 to 1, with the sum 2. Are they logits",
        ),
        ({"probabilities": P[0]}, ValueError, "probabilities must have shape"),
        ({"probabilities": np.full((5, 3), np.nan)}, ValueError, "row 0"),
        ({"labels": LABELS + 1}, ValueError, "labels must be from 0 to 2"),
        ({"labels": LABELS[:3]}, ValueError, r"labels must have shape \(5,\)"),
        ({"labels": LABELS + 0.0}, TypeError, "labels must be integers"),
        ({"bins": 0}, ValueError, "bins must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(changed, error, message):
    with pytest.raises(error, match=message):
        calibration(**{"probabilities": P, "labels": LABELS, **changed})
