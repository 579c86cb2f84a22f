#!/usr/bin/env bash
# The pictures of the README, in about a minute after the installation: see figures.py.
source "$(dirname "$0")/environment.sh"
project_venv
exec "$VENV/bin/python" ci/figures.py "$@"
