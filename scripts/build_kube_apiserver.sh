#!/usr/bin/env bash
# build_kube_apiserver.sh DESTINATION: build kube-apiserver and kubectl 1.20.2 from Debian's source package there.
#
# For tests of the operator against a real API server: there is no package of it. The source has all that it needs
# in it (vendor/), so nothing else is fetched; with Debian's Go it takes about twenty minutes on two cores. The mirror
# is that of the machine's own package sources; apt verifies what it fetches with Debian's keyring, through a private
# configuration that leaves the system's lists alone. A second run does nothing; one that was interrupted goes on where
# it was, in DESTINATION.build, which is removed in the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

destination=${1:?"usage: build_kube_apiserver.sh DESTINATION"}
if [[ -x $destination/kube-apiserver && -x $destination/kubectl ]]; then
    echo "==> kube-apiserver is built"
    exit 0
fi

# reflect2: the one in vendor/ is too old for Debian's Go.
scripts/apt_packages.sh etcd-server gcc golang-github-modern-go-reflect2-dev golang-go libc6-dev make rsync xz-utils

work=$destination.build
rm -rf "$work/lists" "$work/cache"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
mirror=$(.venv/bin/python -c 'from glowplug.cli.apt_sources import debian_mirror, read_sources
print(debian_mirror(read_sources()))')
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >"$work/sources.list"
apt=(apt-get --quiet --quiet
    --option "Dir::Etc::sourcelist=$work/sources.list" --option Dir::Etc::sourceparts=/dev/null
    --option "Dir::State::lists=$work/lists" --option "Dir::Cache=$work/cache" --option APT::Sandbox::User=root)

if [[ ! -f $work/unpacked ]]; then
    echo "==> Downloading the source of Kubernetes"
    "${apt[@]}" update
    # 'ADDRESS' NAME BYTES SHA256:SUM, the sum from the signed list. Only upstream's own archive is needed.
    read -r _ archive _ sum < <("${apt[@]}" --print-uris source --download-only kubernetes | grep '\.orig\.tar\.[a-z0-9]* ')
    (cd "$work" && "${apt[@]}" source --download-only kubernetes) || true # Debian's own part may be gone from a mirror
    echo "${sum#SHA256:}  $work/$archive" | sha256sum --check --quiet
    tar --extract --file "$work/$archive" --directory "$work/source" --strip-components 1
    rm -r "$work/source/vendor/github.com/modern-go/reflect2"
    cp --no-target-directory --recursive /usr/share/gocode/src/github.com/modern-go/reflect2 \
        "$work/source/vendor/github.com/modern-go/reflect2"
    touch "$work/unpacked"
fi

cat >"$work/version" <<'END'
KUBE_GIT_COMMIT='faecb196815e248d3ecfb03c680a4507229c2a56'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='v1.20.2'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
END

echo "==> Building kube-apiserver and kubectl (about twenty minutes)"
export GOFLAGS=-mod=vendor GOPROXY=off GOCACHE=$work/go-cache GOPATH=$work/go GO111MODULE=auto
export KUBE_GIT_VERSION_FILE=$work/version KUBE_VERBOSE=1 GOTOOLCHAIN=local
if ! make --directory "$work/source" WHAT="cmd/kube-apiserver cmd/kubectl" >"$work/build.log" 2>&1; then
    tail -n 60 "$work/build.log" >&2
    exit 1
fi
mkdir -p "$destination"
for program in kubectl kube-apiserver; do
    built=$(find "$work/source/_output" -type f -name "$program" -perm -u+x | head -n 1)
    install --mode 755 "$built" "$destination/.$program.new"
    mv "$destination/.$program.new" "$destination/$program"
done
chmod -R u+w "$work" && rm -rf "$work"
"$destination/kube-apiserver" --version
