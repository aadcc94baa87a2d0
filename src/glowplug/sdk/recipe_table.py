"""The recipes that come with Glowplug, and those that other packages add.

Every value that is not obvious carries its reason; each recipe is run by ``tests/e2e/test_engines.py`` or, if
it takes minutes, by ``make nightly``. A package adds its own with an entry point of the group
``glowplug.recipes`` that names a :class:`~glowplug.sdk.recipe.Recipe`; it comes before ours, and replaces
ours of the same name.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from glowplug.sdk.recipe import Recipe, Variant
from glowplug.sdk.snapshot import Hook, Request
from glowplug.types.errors import InvalidInput

ENTRY_POINTS = "glowplug.recipes"
_GIB = 1 << 30
_PROMPT = {"prompt": "The capital of France is", "temperature": 0}
# The model's name is left out: vLLM and SGLang then take the one they serve.
_COMPLETION = Request("POST", "/v1/completions", json={**_PROMPT, "max_tokens": 16})
_ONE_TOKEN = {**_PROMPT, "max_tokens": 1}
_EMBEDDING = Request("POST", "/v1/embeddings", json={"input": "The capital of France is Paris."})
_OPENAI_IDS = ("id", "created", "system_fingerprint")

VLLM = Recipe(
    name="vllm",
    engine="vLLM",
    commands=("vllm serve", "python -m vllm.entrypoints.*"),
    ready="/health",
    warmup=(_COMPLETION,),
    canary=(Request("POST", "/v1/completions", json=_ONE_TOKEN),),
    env={
        # Its processes meet at sockets in these folders, which must be part of a snapshot.
        "TMPDIR": "/tmp",
        "VLLM_RPC_BASE_PATH": "/tmp",
        # Without it vLLM learns its address from a socket to 8.8.8.8. All its processes are in one container.
        "VLLM_HOST_IP": "127.0.0.1",
        # A report in progress is a connection that no copy could go on with.
        "VLLM_NO_USAGE_STATS": "1",
    },
    model_flags=("--model", "--tokenizer"),
    takes_model=True,
    cpus=2,  # API server, engine and worker start one after the other, but each imports torch in threads
    memory_bytes=6 * _GIB,  # 1.3 GB of processes on a CPU, a KV cache, and room to compile
    startup_timeout_s=1800,  # torch.compile takes 191 s under gVisor on 2 cores for 135M parameters
    variants=(
        *(
            Variant(flag, values, warmup=(_EMBEDDING,), canary=(_EMBEDDING,))
            for flag, values in (
                ("--runner", ("pooling",)),
                ("--convert", ("embed",)),
                ("--task", ("embed", "embedding")),
            )
        ),
        # Where vLLM finds glowplug.weights.vllm_loader: in what every container of ours is shown.
        Variant("--load-format", ("glowplug",), env={"PYTHONPATH": "/.glowplug/lib/glowplug/weights/plugin"}),
        # The endpoints exist in its development mode only. Level 1 keeps the weights in host memory.
        Variant(
            "--enable-sleep-mode",
            env={"VLLM_SERVER_DEV_MODE": "1"},
            before_snapshot=Hook(http="POST /sleep?level=1"),
            after_restore=Hook(http="POST /wake_up"),
        ),
    ),
)

SGLANG = Recipe(
    name="sglang",
    engine="SGLang",
    commands=("python -m sglang.launch_server", "sglang serve"),
    port=30000,
    listens_everywhere=False,
    ready="/health",
    warmup=(_COMPLETION,),
    canary=(Request("POST", "/v1/completions", json=_ONE_TOKEN, ignore=(*_OPENAI_IDS, "weight_versions")),),
    env={"TMPDIR": "/tmp"},
    model_flags=("--model-path", "--model", "--tokenizer-path"),
    cpus=2,
    memory_bytes=6 * _GIB,
    startup_timeout_s=1800,
    variants=(
        Variant("--is-embedding", warmup=(_EMBEDDING,), canary=(_EMBEDDING,)),
        Variant(
            "--enable-memory-saver",
            before_snapshot=Hook(http=Request("POST", "/release_memory_occupation", json={})),
            after_restore=Hook(http=Request("POST", "/resume_memory_occupation", json={})),
        ),
    ),
)

LLAMA_CPP = Recipe(
    name="llama.cpp",
    engine="llama.cpp",
    commands=("llama-server",),
    port=8080,
    ready="/health",  # 503 while it loads
    warmup=(_COMPLETION,),
    canary=(Request("POST", "/v1/completions", json=_ONE_TOKEN, ignore=(*_OPENAI_IDS, "timings")),),
    env={"LLAMA_ARG_HOST": "0.0.0.0"},
    model_flags=("-m", "--model", "--mmproj"),
    memory_bytes=2 * _GIB,
    variants=tuple(
        Variant(flag, warmup=(_EMBEDDING,), canary=(_EMBEDDING,)) for flag in ("--embedding", "--embeddings")
    ),
)

UVICORN = Recipe(
    name="uvicorn",
    engine="Uvicorn",
    commands=("uvicorn *", "python -m uvicorn *"),
    env={"UVICORN_HOST": "0.0.0.0"},  # it reads UVICORN_* for each of its flags
)

FASTAPI = Recipe(
    name="fastapi",
    engine="FastAPI",
    commands=("fastapi run", "python -m fastapi run"),
    ready="/openapi.json",  # every FastAPI app has it, few have anything at /
)

NODE = Recipe(
    name="node",
    engine="Node.js",
    commands=("node *", "nodejs *", "npm start", "npm run *"),
    env={"PORT": "8000", "HOST": "0.0.0.0"},  # where programs look that hosting services start
)

BUILT_IN = (VLLM, SGLANG, LLAMA_CPP, UVICORN, FASTAPI, NODE)


def known_recipes() -> list[Recipe]:
    """Every recipe there is, in the order in which they are tried. Raises InvalidInput for a broken one."""
    added: dict[str, Recipe] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            recipe = entry.load()
        except Exception as error:  # another package's code may raise anything: it is reported as theirs
            raise InvalidInput(
                f"The recipe {entry.value} cannot be loaded: {type(error).__name__}: {error}.",
                remedy="Repair or uninstall the package that brings it.",
                entry_point=entry.name,
            ) from error
        if not isinstance(recipe, Recipe):
            raise InvalidInput(
                f"{entry.value} is not a glowplug.Recipe but a {type(recipe).__name__}.",
                remedy=f"An entry point of the group {ENTRY_POINTS} names one.",
                entry_point=entry.name,
            )
        added[recipe.name] = recipe
    return [*added.values(), *(recipe for recipe in BUILT_IN if recipe.name not in added)]
