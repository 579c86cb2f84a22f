"""How sure a network is: Gaussian posteriors of its weights, and whether that can be relied on."""

from mindspore_hessian.bayes.calibration import Calibration, calibration
from mindspore_hessian.bayes.laplace import Laplace

__all__ = ["Calibration", "Laplace", "calibration"]
