#!/usr/bin/env bash
# For a machine with a GPU or an Ascend device: the tests marked for it, the demo and a short benchmark there, as one JSON
# and one page in device-report/ (REPORT names another folder). WHEELS names a folder of wheels to install from, for a
# machine without a network. On a CPU it says why there is nothing to do.
source "$(dirname "$0")/environment.sh"
if [[ -n ${WHEELS:-} ]]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$(realpath "$WHEELS")
fi
project_venv
exec "$VENV/bin/python" ci/device.py "${REPORT:-device-report}"
