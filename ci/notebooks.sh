#!/usr/bin/env bash
# Run the notebooks of examples/ (or those named, without .ipynb) and store their outputs in them.
source "$(dirname "$0")/environment.sh"
project_venv
"$VENV/bin/python" ci/notebooks.py "$@"
