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
# compiling keeps one core busy. A third of a compilation is malloc's, so that it may keep what is freed. pytest's closing
# line comes last.
run_tests() {
    local folder=$1
    shift
    GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.tcache_count=65000:glibc.malloc.trim_threshold=4000000000} \
        "$folder/bin/python" -m pytest --doctest-modules mindspore_hessian tests -n "${JOBS:-2}" --dist worksteal "$@"
}
