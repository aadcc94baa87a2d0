#!/usr/bin/env bash
# build_criu.sh DESTINATION: build CRIU 4.2 and its CUDA plugin from Debian's source package into that folder.
#
# Debian 12's own CRIU (3.17) cannot checkpoint on kernels with a moved vDSO ("Unexpected rt vDSO area bounds").
# The mirror is that of the machine's own package sources; apt verifies what it fetches with Debian's keyring,
# through a private configuration that leaves the system's lists alone. A second run does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

destination=${1:?"usage: build_criu.sh DESTINATION"}
series=4.2
if [[ -f $destination/cuda_plugin.so && $("$destination/criu" --version 2>/dev/null) == *"Version: $series"* ]]; then
    echo "==> CRIU $series is built"
    exit 0
fi

# tar is how CRIU keeps the content of tmpfs mounts.
scripts/apt_packages.sh build-essential dpkg-dev libbsd-dev libcap-dev libgnutls28-dev libnet1-dev libnftables-dev \
    libnl-3-dev libprotobuf-c-dev libprotobuf-dev pkg-config protobuf-c-compiler protobuf-compiler python3-protobuf \
    tar uuid-dev

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
mirror=$(.venv/bin/python -c 'from glowplug.cli.apt_sources import debian_mirror, read_sources
print(debian_mirror(read_sources()))')
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
apt=(apt-get --quiet --quiet
    --option "Dir::Etc::sourcelist=$work/sources.list" --option Dir::Etc::sourceparts=/dev/null
    --option "Dir::State::lists=$work/lists" --option "Dir::Cache=$work/cache" --option APT::Sandbox::User=root)

echo "==> Downloading the source of CRIU"
"${apt[@]}" update
# 'ADDRESS' NAME BYTES SHA256:SUM, the sum from the signed list. Only upstream's own archive is needed.
read -r _ archive _ sum < <("${apt[@]}" --print-uris source --download-only criu | grep '\.orig\.tar\.[a-z0-9]* ')
if [[ $archive != criu_"$series"* ]]; then
    echo "Debian's source package is ${archive:-not there}, not the $series that Glowplug is tested with." >&2
    exit 1
fi
(cd "$work" && "${apt[@]}" source --download-only criu) || true # Debian's own part may be gone from a mirror
echo "${sum#SHA256:}  $work/$archive" | sha256sum --check --quiet
tar --extract --file "$work/$archive" --directory "$work/source" --strip-components 1

echo "==> Building CRIU $series (a minute or two)"
if ! make --directory "$work/source" --jobs "$(nproc)" criu cuda_plugin NO_AMDGPU=1 >"$work/build.log" 2>&1; then
    tail -n 40 "$work/build.log" >&2
    exit 1
fi
mkdir -p "$destination"
install --mode 644 "$work/source/plugins/cuda/cuda_plugin.so" "$destination/cuda_plugin.so"
install --mode 755 "$work/source/criu/criu" "$destination/.criu.new"
mv "$destination/.criu.new" "$destination/criu"
"$destination/criu" --version
