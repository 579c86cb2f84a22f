#!/usr/bin/env bash
# The tests on every supported MindSpore and Python. Prints a markdown table; a full run also writes ci/matrix.md.
#   ci/matrix.sh                          every combination
#   ci/matrix.sh 2.8.0-py3.11 ...         only these; ci/matrix.md stays as it is
#   MATRIX_FAST=1 ci/matrix.sh            the tests of products, graphs, refusals and devices alone:
#                                         two minutes each; a full run writes ci/matrix_fast.md
# MATRIX_VENVS: folder with an environment for each combination, named as above. One that this script did not make is
# used as it is, with what it has of `.[test]`; one that is missing is made.
source "$(dirname "$0")/environment.sh"

all=(2.7.2-py3.11 2.8.0-py3.11 2.9.0-py3.11 2.10.0-py3.11 2.10.0-py3.10 2.10.0-py3.12)
venvs=${MATRIX_VENVS:-.venv-matrix}
result=ci/matrix.md
arguments=()
if [[ -n ${MATRIX_FAST:-} ]]; then
    result=ci/matrix_fast.md
    modules="products in_graph refusals device networks operators.py operator_checks distributed audit estimators"
    arguments=(-k "rules or test_${modules// / or test_}")
fi

count() {  # count WORD CLOSING_LINE: how many of that kind pytest's closing line says
    local number=0
    [[ $2 =~ ([0-9]+)" $1" ]] && number=${BASH_REMATCH[1]}
    echo "$number"
}

row() {  # run one combination, print its line of the table; what the tests print goes to stderr
    local name=$1 mindspore=${1%-py*} python=${1#*-py} venv=$venvs/$1 log=$venvs/$1.log begin status=0 closing
    if ! make_venv "$venv" "$python" ".[test]" "mindspore==$mindspore" >&2; then
        echo "| $mindspore | $python | not installed | | | |"
        return
    fi
    begin=$SECONDS
    run_tests "$venv" ${arguments[@]+"${arguments[@]}"} >"$log" 2>&1 || status=$?
    closing=$(grep -E ' in [0-9.]+s' "$log" | tail -1) || true
    echo "$name: ${closing:-no closing line, exit status $status} ($log)" >&2
    if [[ -z $closing || $status -gt 1 ]]; then
        echo "| $mindspore | $python | exit status $status | | | $((SECONDS - begin)) |"
        return
    fi
    echo "| $mindspore | $python | $(count passed "$closing") |" \
        "$(($(count failed "$closing") + $(count error "$closing"))) | $(count skipped "$closing") |" \
        "$((SECONDS - begin)) |"
}

names=("$@")
(($#)) || names=("${all[@]}")
mkdir -p "$venvs"
table=$'| MindSpore | Python | passed | failed | skipped | seconds |\n|---|---|---|---|---|---|'
for name in "${names[@]}"; do
    table+=$'\n'$(row "$name")
done
echo "$table"
if (($# == 0)); then
    echo "$table" >"$result"
fi
! grep -qE 'installed|exit status|^\|[^|]+\|[^|]+\|[^|]+\| [1-9]' <<<"$table"
