#!/usr/bin/env bash
# The benchmarks of this folder, one after another: speed of an HVP, then memory over many calls.
source "$(dirname "$0")/../environment.sh"
project_venv
"$VENV/bin/python" ci/bench/hvp.py
"$VENV/bin/python" ci/bench/memory.py "$@"
