#!/usr/bin/env bash
# Build the wheel and the source distribution into dist/ and check them: metadata, description, what is inside.
source "$(dirname "$0")/environment.sh"
project_venv
"$VENV/bin/python" -m pip install -qq --disable-pip-version-check "build>=1.2" "twine>=6"
rm -rf dist
"$VENV/bin/python" -m build --outdir dist .
"$VENV/bin/python" -m twine check --strict dist/*
for part in tests/golden/calls.npz ci/test.sh docs/contributing.md LICENSE; do
    tar tzf dist/*.tar.gz | grep "/$part$" >/dev/null || { echo "the source distribution lacks $part" >&2; exit 1; }
done
