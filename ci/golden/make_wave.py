"""Write tests/golden/wave.npz: Laplacians of log|psi| of ten electrons (ci/bench/laplacian.py), by JAX
in float64.

Usage: python ci/golden/make_wave.py, with a Python that has jax.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "ci" / "bench"))
import laplacian  # noqa: E402

WALKERS = 3

if __name__ == "__main__":
    data = laplacian.data(laplacian.PSI)
    data["x"] = data["x"][:WALKERS]
    call = laplacian.WORKERS["float64"]({"case": laplacian.PSI, "job": "value"}, data)
    np.savez_compressed(ROOT / "tests" / "golden" / "wave.npz", laplacian=call()[0], **data)
