#!/usr/bin/env bash
# Everything that must pass: style, types, tests and the examples in the docstrings. VENV, PYTHON and MINDSPORE choose
# the environment (see environment.sh); arguments go to pytest.
source "$(dirname "$0")/environment.sh"
project_venv

failed=0
"$VENV/bin/ruff" check . || failed=1
"$VENV/bin/ruff" format --check --quiet . || failed=1
"$VENV/bin/mypy" || failed=1
run_tests "$VENV" "$@" || failed=1
exit $failed
