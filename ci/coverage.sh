#!/usr/bin/env bash
# Every public function that MindSpore differentiates once, differentiated twice and three times, against torch's values
# in golden.npz or differences: writes ci/coverage/results/VERSION.json and .md, and prints the totals. About 40 minutes
# on two cores; arguments go to coverage/run.py (--only REGEX, --jobs N, --keep). MINDSPORE and VENV: see environment.sh.
source "$(dirname "$0")/environment.sh"
project_venv
"$VENV/bin/python" ci/coverage/names.py
"$VENV/bin/python" ci/coverage/run.py "$@"
"$VENV/bin/python" ci/coverage/report.py
