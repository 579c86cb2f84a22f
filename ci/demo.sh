#!/usr/bin/env bash
# The library's main job on real data, in about a minute after the installation: see demo.py.
source "$(dirname "$0")/environment.sh"
project_venv
exec "$VENV/bin/python" ci/demo.py "$@"
