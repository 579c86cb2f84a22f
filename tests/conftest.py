"""What every test gets: seeded numpy, a check for debris, and a skip where its device is missing;
and which cases of the tests are left to the full run."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from _pytest.doctest import DoctestModule
from full import FULL

# MindSpore is imported where a test runs: the process that hands the tests out needs none, which takes seconds
FRESH = "MINDSPORE_HESSIAN_FRESH"  # set in the process of a test that has one of its own
BACKEND_OF_MARKER = {"needs_gpu": "GPU", "needs_ascend": "Ascend"}


# In these files the default run takes of each test the first case and every so many after it;
# ci/full.sh takes all.
EVERY = {
    "rules/test_attributes.py": 4,
    "rules/test_batching.py": 10,
    "rules/test_calls.py": 24,
    "rules/test_derivatives.py": 12,
    "rules/test_forward_rules.py": 12,
    "rules/test_logsumexp.py": 6,
    "rules/test_negative_padding.py": 4,
    "rules/test_norm.py": 6,
    "rules/test_repeated_indices.py": 2,
    "rules/test_special_points.py": 12,
    "rules/test_unequal_shapes.py": 5,
    "test_audit.py": 5,
    "test_bad_inputs.py": 4,
    "test_callables.py": 4,
    "test_captured_tensors.py": 5,
    "test_captures.py": 4,
    "test_estimators_golden.py": 6,
    "test_forward.py": 9,
    "test_in_graph.py": 4,
    "test_in_graph_options.py": 10,
    "test_influence.py": 5,
    "test_inplace.py": 12,
    "test_interrupt.py": 5,
    "test_jacobian.py": 6,
    "test_jet.py": 20,
    "test_kfac.py": 24,
    "test_kfac_layers.py": 4,
    "test_laplace.py": 12,
    "test_layers_batched.py": 3,
    "test_loops.py": 4,
    "test_matrices.py": 6,
    "test_mean_losses.py": 9,
    "test_operator_cases.py": 6,
    "test_operators.py": 2,
    "test_operators_golden.py": 12,
    "test_optim_kfac.py": 8,
    "test_optim_least_squares.py": 3,
    "test_optim_minimize.py": 8,
    "test_optim_newton.py": 3,
    "test_optim_training.py": 6,
    "test_pickle.py": 5,
    "test_products.py": 4,
    "test_programs.py": 4,
    "test_real_numbers.py": 5,
    "test_recorded.py": 8,
    "test_refusals.py": 3,
    "test_saliency.py": 4,
    "test_noise.py": 2,
    "test_scenario_hessians.py": 10,
    "test_scenario_products.py": 12,
    "test_scenarios.py": 4,
    "test_sparse.py": 6,
    "test_testing.py": 8,
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if FULL:
        return
    seen, kept, left = Counter(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        every = EVERY.get(test.partition("::")[0].removeprefix("tests/"), 1)
        (left if seen[test] % every or item.get_closest_marker("full_run") else kept).append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked `fresh_process` runs in a process of its own: in one that has compiled some
    hundred graphs, MindSpore fails inside itself at its graph ("Illegal AnfNode for evaluating").
    """
    if not pyfuncitem.get_closest_marker("fresh_process") or os.environ.get(FRESH):
        return None
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:xdist",
            str(pyfuncitem.path),
            "-k",
            pyfuncitem.name,
        ],
        env={**os.environ, FRESH: "1"},
        cwd=pyfuncitem.config.rootpath,
        capture_output=True,
        text=True,
        timeout=240,  # before faulthandler ends the worker
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def pytest_runtest_setup(item):
    from mindspore_hessian.device import why_unusable

    for marker, backend in BACKEND_OF_MARKER.items():
        if item.get_closest_marker(marker) and (reason := why_unusable(backend)):
            pytest.skip(f"{backend}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Examples in docstrings are looked for in the package alone, not in the tests."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@functools.cache
def dataset_seed():
    """What MindSpore has at the start."""
    from mindspore import dataset

    return dataset.config.get_seed()


@pytest.fixture(autouse=True)
def seeded():
    """Random numbers are those of no other test. With the seed that MindSpore has at the start, a
    pipeline shuffles anew in each pass; ``mindspore.set_seed`` in a test ends that."""
    from mindspore import dataset

    dataset.config.set_seed(dataset_seed())  # (which numpy gets, too)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def nothing_recorded():
    """After an exception in ``ms.grad`` MindSpore goes on recording: no other test sees that."""
    from mindspore_hessian import _compat

    yield
    if _compat.is_recording():
        _compat._pynative_executor.clear_res()


@pytest.fixture(autouse=True)
def no_debris(tmp_path, monkeypatch):
    """MindSpore writes rank_0/om/analyze_fail.ir where the user happens to stand; this library must
    not let it.

    Each test stands in a folder of its own, so that tests which run at the same time do not see
    each other's.
    """
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("rank_0").exists(), f"the test left {Path('rank_0').resolve()}"
