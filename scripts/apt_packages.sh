#!/usr/bin/env bash
# Install the named Debian packages that are missing, and do nothing (not even ask apt) when none is.
set -euo pipefail

missing=()
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi
if ((EUID != 0)); then
    echo "These system packages are missing: ${missing[*]}" >&2
    echo "Run this again as root, or: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi

echo "==> Installing system packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt_get=(apt-get --quiet --quiet --option DPkg::Lock::Timeout=300)
"${apt_get[@]}" update
"${apt_get[@]}" install --yes --no-install-recommends "${missing[@]}"
