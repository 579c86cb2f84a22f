#!/usr/bin/env bash
# mindspore_hessian beside torch.func, jax.jit and plain MindSpore; --help has the options.
# VENV and BENCH_VENV name environments to use instead of .venv (MindSpore) and .venv-bench (torch and jax for the CPU,
# matplotlib, and for spectrum.py curvlinops and PyHessian, which wants torchvision). Those are used as they are and
# never changed.
source "$(dirname "$0")/../environment.sh"
for given in "${VENV:-}" "${BENCH_VENV:-}"; do
    if [[ -n $given && ! -x $given/bin/python ]]; then
        echo "$given has no bin/python; leave VENV or BENCH_VENV out to have an environment made." >&2
        exit 1
    fi
done
[[ -n ${VENV:-} ]] || project_venv
if [[ -z ${BENCH_VENV:-} ]]; then
    BENCH_VENV=.venv-bench
    needs=(torch jax numpy matplotlib scipy asdex pyhessian curvlinops-for-pytorch torchvision)
    if [[ ! -e $BENCH_VENV/stamp || $(<"$BENCH_VENV/stamp") != "${needs[*]}" ]]; then
        if [[ -e $BENCH_VENV && ! -e $BENCH_VENV/stamp ]]; then
            echo "$BENCH_VENV was made by somebody else; name it by BENCH_VENV to use it as it is." >&2
            exit 1
        fi
        python=$(find_python 3.11 3.12 3.13)
        echo "installing ${needs[*]} into $BENCH_VENV with $("$python" --version) ..."
        mkdir -p "$BENCH_VENV"
        echo unfinished >"$BENCH_VENV/stamp"
        "$python" -m venv "$BENCH_VENV"
        # of two files with the same version pip takes the one with "+cpu" after it, a tenth of the size
        "$BENCH_VENV/bin/python" -m pip install -qq --disable-pip-version-check \
            --extra-index-url https://download.pytorch.org/whl/cpu "${needs[@]}"
        echo "${needs[*]}" >"$BENCH_VENV/stamp"
    fi
fi
"$BENCH_VENV/bin/python" ci/bench/side_by_side.py --mindspore-python "$VENV/bin/python" \
    --torch-python "$BENCH_VENV/bin/python" "$@"
