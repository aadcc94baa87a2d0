# Sourced by the scripts that install engines and models into GLOWPLUG_CACHE (default /var/cache/glowplug),
# outside the clone and shared by all clones. Each is built under a temporary name, stamped and renamed into
# place, so what is there is complete: an interrupted run starts over, and a finished one takes a moment.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GLOWPLUG_CACHE:-/var/cache/glowplug}

# What the result depends on: another content of these files is another build.
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }
is_complete() { [[ -f $1/.glowplug-complete && $(<"$1/.glowplug-complete") == "$2" ]]; }

# publish BUILT FINAL DIGEST: stamp a finished folder and move it into place, out of the way of an older one.
publish() {
    echo "$3" >"$1/.glowplug-complete"
    sync --file-system "$1"
    if [[ -e $2 ]]; then
        mv "$2" "$2.old"
    fi
    mv "$1" "$2"
    rm -rf "$2.old"
}

# say_final_path BUILT FINAL: a virtual environment knows its own path in its scripts' first lines.
say_final_path() {
    grep --recursive --files-with-matches --binary-files=without-match --fixed-strings "$1" \
        "$1/bin" "$1/pyvenv.cfg" | xargs --no-run-if-empty sed --in-place "s|$1|$2|g"
}

# One installation at a time; the lock goes with this process, however it ends.
lock_cache() {
    mkdir -p "$cache/engines" "$cache/models"
    exec 9>"$cache/.setup.lock"
    flock --nonblock 9 || { echo "==> Waiting for another installation in $cache"; flock 9; }
}
