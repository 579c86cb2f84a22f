#!/usr/bin/env bash
# Build the documentation site into site/: warnings and broken links are errors. It loads nothing from the network when read.
source "$(dirname "$0")/environment.sh"
project_venv
"$VENV/bin/python" -m pip install -qq --disable-pip-version-check --editable ".[docs]"
rm -rf docs/notebooks
mkdir docs/notebooks
trap 'rm -rf docs/notebooks' EXIT
cp examples/*.ipynb docs/notebooks/
NO_MKDOCS_2_WARNING=1 "$VENV/bin/python" -m mkdocs build --quiet
echo "site/index.html"
