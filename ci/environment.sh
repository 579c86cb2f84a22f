# Sourced by the scripts of this folder: find a Python that runs, make a virtual environment of this project.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD  # an environment made by somebody else may not have this project

# find_python 3.11 3.12: the first of these versions that is here and can make a virtual environment. Each candidate has
# to run: pyenv puts names on PATH that only print an error.
find_python() {
    local version candidate
    for version in "$@"; do
        for candidate in $(type -ap "python$version") python3 python \
                $(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python" | sort -rV); do
            if "$candidate" -c "import ensurepip, venv, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" \
                    2>/dev/null; then
                echo "$candidate"
                return
            fi
        done
    done
    echo "No working Python of version $* with the modules venv and ensurepip is on PATH or in pyenv." >&2
    return 1
}

# make_venv FOLDER "PYTHON VERSIONS" REQUIREMENT...: an environment with these installed. One that is there already is
# used again if it was made of the same pyproject.toml and requirements; else they are installed into it, and nothing is
# removed. One without a stamp was made by somebody else: it is used as it is.
make_venv() {
    local folder=$1 versions=$2 python stamp
    shift 2
    stamp="$versions $* $(cksum <pyproject.toml)"
    if [[ -e $folder/bin/python ]] && { [[ ! -e $folder/stamp ]] || [[ $(<"$folder/stamp") == "$stamp" ]]; }; then
        return
    fi
    python=$(find_python $versions) || return 1
    echo "installing into $folder with $("$python" --version) ..."
    mkdir -p "$folder"
    echo unfinished >"$folder/stamp"
    # joined by &&, because `set -e` does not reach into the condition from which matrix.sh calls this
    "$python" -m venv "$folder" &&
        "$folder/bin/python" -m pip install -qq --disable-pip-version-check --editable "$@" &&
        echo "$stamp" >"$folder/stamp"
}

# project_venv: the environment that test.sh, demo.sh and bench/run.sh share. VENV names another folder than .venv: one
# that is there already is used as it is. PYTHON is a version such as 3.12, MINDSPORE one such as 2.9.0.
project_venv() {
    if [[ -n ${VENV:-} && -x $VENV/bin/python ]]; then
        return
    fi
    VENV=${VENV:-.venv}
    make_venv "$VENV" "${PYTHON:-3.11 3.12 3.10}" ".[dev]" ${MINDSPORE:+"mindspore==$MINDSPORE"}
}

# run_tests FOLDER ARGUMENT...: the tests and the examples in the docstrings, in two processes (or JOBS), because
# compiling keeps one core busy. These are started anew after each dozen of files: in a process that has compiled some
# hundred graphs MindSpore takes two to three times as long for the next, and sometimes fails at it. A third of a
# compilation is malloc's, so that it may keep what is freed, and gets large pages. A closing line like pytest's comes
# last.
run_tests() {
    local folder=$1 status=0 part from log begin=$SECONDS
    local files=(mindspore_hessian tests/rules tests/test_*.py)
    local malloc=glibc.malloc.tcache_count=65000:glibc.malloc.trim_threshold=4000000000:glibc.malloc.hugetlb=1
    shift
    log=$(mktemp)
    for ((from = 0; from < ${#files[@]}; from += 12)); do
        part=0
        GLIBC_TUNABLES=${GLIBC_TUNABLES:-$malloc} \
            "$folder/bin/python" -m pytest --doctest-modules "${files[@]:from:12}" \
            -n "${JOBS:-2}" --dist worksteal "$@" 2>&1 | tee -a "$log" || part=$?
        [[ $part == 0 || $part == 5 ]] || status=$part  # 5: none of the tests that were asked for is in this part
    done
    awk -v seconds=$((SECONDS - begin)) '
        / in [0-9.]+s/ { for (i = 2; i <= NF; i++) if ($i ~ /^(failed|passed|skipped|errors?),?$/) {
            sub(/,$/, "", $i); sum[$i] += $(i - 1) } }
        END { for (word in sum) printf "%s%d %s", (n++ ? ", " : ""), sum[word], word; print " in " seconds "s" }' "$log"
    rm -f "$log"
    return "$status"
}
