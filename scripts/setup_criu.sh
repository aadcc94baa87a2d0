#!/usr/bin/env bash
# The second runtime: Debian's runc, and CRIU 4.2, built once into GLOWPLUG_CACHE and put beside runsc, where the
# agent and `glowplug doctor` look for it. A second run does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

built=${GLOWPLUG_CACHE:-/var/cache/glowplug}/criu-4.2
tools=/usr/local/lib/glowplug/bin

# tar is how CRIU keeps the content of a tmpfs.
scripts/apt_packages.sh runc tar libcap2 libgnutls30 libnet1 libnftables1 libnl-3-200 libprotobuf-c1 libuuid1
scripts/build_criu.sh "$built"
if ! cmp --silent "$built/criu" "$tools/criu"; then
    install -D --mode 755 "$built/criu" "$tools/.criu.new"
    mv "$tools/.criu.new" "$tools/criu"
fi
"$tools/criu" --version
