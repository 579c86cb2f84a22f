"""What every test gets: seeded numpy, a check for debris, and a skip where its device is missing."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _pytest.doctest import DoctestModule

from mindspore_hessian.device import why_unusable

BACKEND_OF_MARKER = {"needs_gpu": "GPU", "needs_ascend": "Ascend"}


def pytest_runtest_setup(item):
    for marker, backend in BACKEND_OF_MARKER.items():
        if item.get_closest_marker(marker) and (reason := why_unusable(backend)):
            pytest.skip(f"{backend}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Examples in docstrings are looked for in the package alone, not in the tests."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


@pytest.fixture(autouse=True)
def no_debris(tmp_path, monkeypatch):
    """MindSpore writes rank_0/om/analyze_fail.ir where the user happens to stand; this library must not let it.

    Each test stands in a folder of its own, so that tests which run at the same time do not see each other's.
    """
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("rank_0").exists(), f"the test left {Path('rank_0').resolve()}"
