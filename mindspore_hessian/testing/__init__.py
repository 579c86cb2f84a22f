"""Checks of second derivatives on the user's own functions and networks: what gradgradcheck is to
PyTorch.

What is tested is what the public `hvp` and `hessian` return. It is held against itself (modes,
symmetry, a second run) and against the function and its first gradient at neighbouring points,
which no second derivative enters.
"""

from mindspore_hessian.testing._report import Check, HessianReport, HvpReport, Report
from mindspore_hessian.testing.check import check_hessian, check_hvp

__all__ = ["Check", "HessianReport", "HvpReport", "Report", "check_hessian", "check_hvp"]
