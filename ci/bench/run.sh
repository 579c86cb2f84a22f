#!/usr/bin/env bash
# Every benchmark: side by side with PyTorch, JAX and the tutorial's recipes (arguments go there: --quick, --large,
# --resnet, --only REGEX, see side_by_side.sh), then speed against the recipe in one process, then memory
# over many calls, one convolution, first calls, several vectors at once, sparse Hessians, and a spectrum beside PyHessian and
# curvlinops.
set -e
bash "$(dirname "$0")/side_by_side.sh" "$@"
source "$(dirname "$0")/../environment.sh"
project_venv
"$VENV/bin/python" ci/bench/hvp.py
"$VENV/bin/python" ci/bench/memory.py
"$VENV/bin/python" ci/bench/convolution.py
"$VENV/bin/python" ci/bench/compile.py
"$VENV/bin/python" ci/bench/at_once.py
"$VENV/bin/python" ci/bench/sparse.py --torch-python "${BENCH_VENV:-.venv-bench}/bin/python"
"$VENV/bin/python" ci/bench/spectrum.py --torch-python "${BENCH_VENV:-.venv-bench}/bin/python"
