"""How sure a network is: Gaussian posteriors of its weights."""
from mindspore_hessian.bayes.laplace import Laplace

__all__ = ["Laplace"]
