#!/usr/bin/env bash
# Azurite, the emulator of Azure's blobs, for the nightly tests of regions; in GLOWPLUG_CACHE/azurite.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/engine_cache.sh"

AZURITE=azurite@3.37.0

final=$cache/azurite build=$cache/.building-azurite
wanted=$(digest <(echo "$AZURITE"))
lock_cache
if is_complete "$final" "$wanted"; then
    echo "==> Azurite is there: $final"
    exit 0
fi
command -v npm >/dev/null || "$here/apt_packages.sh" nodejs npm
echo "==> Installing $AZURITE in $final"
rm -rf "$build" "$final.old"
mkdir -p "$build"
npm install --silent --no-audit --no-fund --prefix "$build" "$AZURITE"
publish "$build" "$final" "$wanted"
