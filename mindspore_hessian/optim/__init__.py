"""Second derivatives put to use: minimisers and optimizers."""

from mindspore_hessian.optim.adahessian import AdaHessian
from mindspore_hessian.optim.kfac import KFAC
from mindspore_hessian.optim.least_squares import FitResult, LevenbergMarquardt, Step
from mindspore_hessian.optim.minimize import minimize
from mindspore_hessian.optim.newton import NewtonCG, NewtonStep
from mindspore_hessian.optim.scipy_problem import ScipyProblem
from mindspore_hessian.optim.sophia import Sophia
from mindspore_hessian.optim.train_step import TrainStep

__all__ = [
    "AdaHessian",
    "FitResult",
    "KFAC",
    "LevenbergMarquardt",
    "NewtonCG",
    "NewtonStep",
    "ScipyProblem",
    "Sophia",
    "Step",
    "TrainStep",
    "minimize",
]
