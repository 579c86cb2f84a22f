"""Second derivatives put to use: minimisers and optimizers."""
from mindspore_hessian.optim.least_squares import FitResult, LevenbergMarquardt, Step
from mindspore_hessian.optim.minimize import minimize
from mindspore_hessian.optim.scipy_problem import ScipyProblem

__all__ = ["FitResult", "LevenbergMarquardt", "ScipyProblem", "Step", "minimize"]
