"""Calibration: whether a classifier that is 80% sure is right in 80% of the cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspore_hessian.arguments import as_array, as_reals, check_integer
from mindspore_hessian.estimators.results import Result

_SUM = 1e-3  # that probabilities may be off from 1 in sum: those of half precision are


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Result):
    """What `calibration` found; `plot.uncertainty` draws it.

    Attributes:
        expected_calibration_error: the mean over the samples of |accuracy - confidence| of their
            bins.
        negative_log_likelihood: the mean of -log p(label); infinite where a label has the
            probability 0.
        accuracy: the share of samples whose most likely class is the label.
        brier_score: the mean of the sum over the classes of (p - 1 for the label, p - 0 for
            others)^2, from 0 to 2.
        num_samples: how many.
        edges: (bins + 1,), of the bins of confidence.
        counts: (bins,), the samples of each bin.
        confidences, accuracies: (bins,), the means of each bin; NaN where it is empty.
    """

    expected_calibration_error: float
    negative_log_likelihood: float
    accuracy: float
    brier_score: float
    num_samples: int
    edges: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.1%}, expected calibration error "
            f"{self.expected_calibration_error:.4f}, negative log-likelihood "
            f"{self.negative_log_likelihood:.4f}, Brier score {self.brier_score:.4f} "
            f"({self.num_samples} samples, {len(self.counts)} bins)"
        )


def calibration(probabilities: Any, labels: Any, bins: int = 15) -> Calibration:
    r"""How far probabilities of classes can be relied on: error of calibration, likelihood,
    accuracy, Brier score.

    The confidence of a sample is its largest probability; with M bins, bin m holds those in
    :math:`((m-1)/M, m/M]`. The expected calibration error is
    :math:`\sum_m \frac{n_m}{N} |\mathrm{acc}_m - \mathrm{conf}_m|`. It depends on the bins, and is
    not 0 for a finite sample of a calibrated classifier; the negative log-likelihood and the Brier
    score have no bins, and are least for the true probabilities. Costs a few passes over the array,
    in float64.

    Args:
        probabilities: (samples, classes), each row with the sum 1: of `Laplace.predict`, or a
            network's softmax.
        labels: (samples,), integers from 0.
        bins: M.

    Returns:
        Calibration.

    Raises:
        TypeError, ValueError: rows that are no probabilities (logits, for one); labels that are no
            classes; an argument of a wrong shape.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        C. Guo et al., On calibration of modern neural networks, ICML 2017; G. Brier, Verification
        of forecasts expressed in terms of probability, Monthly Weather Review 78(1), 1950.

    Examples:
        >>> from mindspore_hessian import calibration
        >>> print(calibration([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1, 1], bins=2))
        accuracy 75.0%, expected calibration error 0.0000, negative log-likelihood 0.4004, Brier score 0.2500 (4 samples, 2 bins)
    """  # noqa: E501
    check_integer("bins", bins, 1)
    p = _probabilities(probabilities)
    own = _labels(labels, p.shape)
    confidence, right = p.max(1), p.argmax(1) == own
    of_label = np.take_along_axis(p, own[:, None], 1)[:, 0]
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        confidences, accuracies = (
            np.bincount(place, one, bins) / counts for one in (confidence, right)
        )
        likelihood = -float(np.log(of_label).mean())
    off = np.abs(accuracies - confidences)[counts > 0]
    return Calibration(
        float(counts[counts > 0] @ off) / len(p),
        likelihood,
        float(right.mean()),
        float((p**2).sum(1).mean() + (1 - 2 * of_label).mean()),
        len(p),
        edges,
        counts,
        confidences,
        accuracies,
    )


def _probabilities(value: Any) -> np.ndarray:
    p = as_reals("probabilities", value)
    if p.ndim != 2 or not p.size:
        raise ValueError(
            f"probabilities must have shape (samples, classes), but have shape {p.shape}"
        )
    off = np.abs(p.sum(1) - 1)
    if not (np.isfinite(p).all() and p.min() >= 0 and off.max() <= _SUM):
        worst = np.flatnonzero(~np.isfinite(p).all(1) | (p.min(1) < 0) | (off > _SUM))[0]
        raise ValueError(
            f"probabilities must be at least 0 and have the sum 1 in each row, but row {worst} is "
            f"from {p[worst].min():.4g} to {p[worst].max():.4g}, with the sum "
            f"{p[worst].sum():.4g}. Are they logits? Take their softmax"
        )
    return p


def _labels(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    labels = as_array(value)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, but are of dtype {labels.dtype}")
    if labels.shape != shape[:1]:
        raise ValueError(
            f"labels must have shape ({shape[0]},), one for each row of probabilities, but have "
            f"shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"labels must be from 0 to {shape[1] - 1}, the columns of probabilities, but go from "
            f"{labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64)
