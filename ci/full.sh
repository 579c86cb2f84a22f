#!/usr/bin/env bash
# All that ci/test.sh makes of each kind of check only a sample of: every scenario, operator, program and notebook, every
# line of the table of rules in both dtypes; then the whole table (ci/coverage.sh). Hours on two cores; arguments go to
# pytest, and with any the table is left out.
cd "$(dirname "$0")/.." || exit 1
export MINDSPORE_HESSIAN_FULL=1
bash ci/test.sh "$@" || exit 1
(($#)) || exec bash ci/coverage.sh
