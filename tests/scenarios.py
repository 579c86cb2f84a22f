"""One table of functions with closed-form gradient and Hessian, run by every transform, mode, dtype
and cache state.
"""

from __future__ import annotations

import scenarios_algebra as algebra
import scenarios_elementwise as elementwise
import scenarios_models as models
import scenarios_vector as vector
from scenarios_base import Scenario, cast, relative_error

__all__ = ["BY_NAME", "SCENARIOS", "Scenario", "cast", "relative_error", "select"]

SCENARIOS: list[Scenario] = [
    *elementwise.SCENARIOS,
    *algebra.SCENARIOS,
    *models.SCENARIOS,
    *vector.SCENARIOS,
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def select(*required: str, without: tuple[str, ...] = ()) -> list[Scenario]:
    """The scenarios that carry every required tag and none of those in ``without``."""
    return [s for s in SCENARIOS if s.tags >= set(required) and not s.tags & set(without)]
