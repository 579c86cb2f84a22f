"""Programs as people write them (programs.py) through every operator, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
from full import FULL
from program_data import direction
from programs import GOLDEN, PROGRAMS, load
from scenarios import relative_error

import mindspore_hessian as mh

KINDS = {"hessian": mh.HessianOperator, "ggn": mh.GGNOperator, "ef": mh.EmpiricalFisherOperator}


@pytest.mark.parametrize("program", PROGRAMS)
def test_products_are_golden(program):
    network, loss_fn, batches = load(program)
    with np.load(GOLDEN) as golden:
        turn = list(KINDS)[
            list(PROGRAMS).index(program) % 3
        ]  # each program one kind in the default run
        for kind in KINDS if FULL else {"hessian", turn}:
            operator = KINDS[kind]
            op = operator(network, loss_fn, batches, progress=False, check_deterministic=False)
            found = op @ direction(program, op.shape[0])
            assert relative_error(found, golden[f"{program}/{kind}"]) < 1e-3, kind
