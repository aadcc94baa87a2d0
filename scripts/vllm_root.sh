#!/usr/bin/env bash
# Make a root filesystem that a container with real vLLM can run from: Debian, its Python, the engine and the
# model that setup_vllm.sh installs. For the benchmarks of images and their end-to-end test.
#
#   scripts/vllm_root.sh [FOLDER]     (default: GLOWPLUG_CACHE/roots/vllm-VERSION; its path is the last line)
#
# The engine lies at its own path, the model in /models/smollm2. Built beside, tried, stamped (FOLDER.complete)
# and renamed into place, so what is there is complete: an interrupted run starts over, and a finished one takes
# a moment. Needs root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VLLM_VERSION=$(sed -n 's/^VLLM_VERSION=//p' "$here/setup_vllm.sh")
cache=${GLOWPLUG_CACHE:-/var/cache/glowplug}
engine=$cache/engines/vllm-$VLLM_VERSION
model=$cache/models/smollm2-135m-instruct
root=$(realpath --canonicalize-missing "${1:-$cache/roots/vllm-$VLLM_VERSION}")
build=$root.building
glowplug_python=$here/../.venv/bin/python

# The engine is run by the root's own Python, which is only right for one that was made with Debian's.
check_engine() {
    if ! grep --quiet --line-regexp 'home = /usr/bin' "$engine/pyvenv.cfg"; then
        echo "The engine in $engine was not made with Debian's Python, which is what the root has." >&2
        echo "Run scripts/setup_vllm.sh with GLOWPLUG_PYTHON=/usr/bin/python3 and another GLOWPLUG_CACHE." >&2
        exit 1
    fi
}

# How this machine reaches its Debian mirrors: as for the images that Glowplug builds.
write_sources() {
    "$glowplug_python" - "$build.sources.list" "$build.apt.conf" <<'PYTHON'
import sys
from pathlib import Path

from glowplug.image.apt import debian_sources, reaching_options

for path, lines in zip(sys.argv[1:], (debian_sources(), reaching_options()), strict=True):
    Path(path).write_text("".join(f"{line}\n" for line in lines))
PYTHON
}

make_base() {
    local sources=()
    write_sources
    [[ ! -s $build.sources.list ]] || sources=("$build.sources.list")
    mmdebstrap --mode=root --variant=minbase --include=ca-certificates,libnuma1,python3,python3-venv \
        --aptopt="$build.apt.conf" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"' \
        bookworm "$build" "${sources[@]}"
    rm -f "$build.sources.list" "$build.apt.conf"
}

# Times are kept, and with them the .pyc files are valid: they name their source's time.
add_engine_and_model() {
    mkdir -p "$build$(dirname "$engine")" "$build/models"
    cp --archive --reflink=auto "$engine" "$build$engine"
    cp --archive --reflink=auto "$model" "$build/models/smollm2"
    rm -f "$build$engine/.glowplug-complete" "$build/models/smollm2/.glowplug-complete"
}

# In the root itself, which it may write to this once: what was not compiled yet is compiled now.
try_out() {
    local program='import torch, transformers, vllm; from vllm.entrypoints.openai import api_server; print(vllm.__version__)'
    unshare --mount --net --pid --fork bash -euc '
        mount --rbind /dev "$1/dev"
        mount --types tmpfs tmpfs "$1/tmp"
        mount --types proc proc "$1/proc"
        exec chroot "$1" env -i PATH=/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 HF_HUB_OFFLINE=1 \
            TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_HOST_IP=127.0.0.1 \
            VLLM_LOGGING_LEVEL=ERROR "$2/bin/python" -c "$3"' \
        try "$build" "$engine" "$program"
}

((EUID == 0)) || { echo "Making a root filesystem needs root." >&2; exit 1; }
"$here/apt_packages.sh" mmdebstrap util-linux
"$here/setup_vllm.sh" >&2
check_engine
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock --nonblock 9 || { echo "==> Waiting for another run that makes $root" >&2; flock 9; }

stamp=$(cat "${BASH_SOURCE[0]}" "$engine/.glowplug-complete" "$model/.glowplug-complete" | sha256sum | cut -d' ' -f1)
if [[ -d $root && -f $root.complete && $(<"$root.complete") == "$stamp" ]]; then
    echo "==> The root filesystem with vLLM $VLLM_VERSION is there" >&2
else
    echo "==> Making a root filesystem with vLLM $VLLM_VERSION in $root (a few minutes)" >&2
    rm -rf --one-file-system "$build" "$root.old"
    make_base >&2
    add_engine_and_model
    echo "==> Trying it out: vLLM $(try_out)" >&2
    sync --file-system "$build"
    rm -f "$root.complete"
    [[ ! -e $root ]] || mv "$root" "$root.old"
    mv "$build" "$root"
    echo "$stamp" >"$root.complete"
    rm -rf --one-file-system "$root.old"
fi
echo "$root"
