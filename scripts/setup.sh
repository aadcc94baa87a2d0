#!/usr/bin/env bash
# Everything Glowplug itself needs on a Debian machine: system packages, .venv in this clone, runsc.
# A second run skips what is there. (The demo's engine and model: setup_vllm.sh.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# wrk is for the router's benchmark, the rest for running.
scripts/apt_packages.sh ca-certificates g++ iproute2 mount python3 python3-venv wrk

python=$(scripts/find_python.sh)
stamp=.venv/.glowplug-setup
wanted=$({ cat pyproject.toml hatch_build.py native/*.* native/blake3/* constraints.txt; "$python" --version; } | sha256sum | cut -d' ' -f1)
if [[ -f $stamp && $(<"$stamp") == "$wanted" && -x .venv/bin/glowplug ]]; then
    echo "==> .venv is up to date"
else
    echo "==> Installing Glowplug in .venv"
    rm -f "$stamp"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
        --editable '.[gpu,kubernetes,plot,otel,pool,postgres,dev]' --constraint constraints.txt
    echo "$wanted" >"$stamp"
fi

echo "==> Checking the system"
.venv/bin/glowplug doctor --fix
