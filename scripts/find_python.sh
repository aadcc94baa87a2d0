#!/usr/bin/env bash
# Print the Python to make virtual environments with: 3.11 or newer, with venv and pip in it.
#
# The distribution's own comes first: sandboxes see the node's /usr, so an environment made with it works
# inside them without binding anything else. GLOWPLUG_PYTHON overrides the choice.
set -euo pipefail

check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
for python in ${GLOWPLUG_PYTHON:+"$GLOWPLUG_PYTHON"} /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
    if "$python" -c "$check" 2>/dev/null; then
        command -v "$python"
        exit 0
    fi
done
echo "No Python 3.11 or newer with venv found. Install python3 and python3-venv, or set GLOWPLUG_PYTHON." >&2
exit 1
