#!/usr/bin/env bash
# Every public function that MindSpore differentiates once, differentiated twice and three times, against torch's values
# (tests/golden/calls.npz) or differences: prints the totals, and writes ci/coverage/results/VERSION.json and .md, which
# git ignores. About 40 minutes on two cores; arguments go to coverage/run.py (--only REGEX, --jobs N, --keep).
# MINDSPORE and VENV: see environment.sh. The table is tests/rules/calls; ci/golden/make_calls.py asks torch.
source "$(dirname "$0")/environment.sh"
project_venv
"$VENV/bin/python" ci/coverage/names.py
"$VENV/bin/python" ci/coverage/run.py "$@"
"$VENV/bin/python" ci/coverage/report.py
