#!/usr/bin/env bash
# Every scenario through every mode in both dtypes (about half an hour on two cores); arguments go to pytest.
cd "$(dirname "$0")/.." || exit 1
export MINDSPORE_HESSIAN_FULL=1
exec bash ci/test.sh -k scenario_ "$@"
