"""A class: what `load` makes is captured in the snapshot; `connect` runs in every copy, with its secret.

export EMBEDDER_SALT=anything
glowplug up && glowplug deploy examples/embedder_cls.py
curl localhost:8080/embeddings/embedder/embed -d '{"texts": ["hello", "world"]}'
python examples/embedder_cls.py        # the same from Python, with .remote and .map
"""

import hashlib
import math
import os

import glowplug as gp

DIMENSIONS = 64
app = gp.App("embeddings")


@app.cls(
    snapshot=gp.Snapshot(warmup=['POST /embed {"texts": ["warm"]}']),
    secrets=[gp.Secret.from_env("EMBEDDER_SALT")],
)
class Embedder:
    @gp.enter(snap=True)
    def load(self):
        self.weights = [math.sin(i * i) for i in range(100_000)]  # stands for minutes of loading

    @gp.enter(snap=False)
    def connect(self):
        self.salt = os.environ.get("EMBEDDER_SALT", "").encode()

    @gp.method()
    def embed(self, texts: list[str]) -> list[list[float]]:
        return [self._unit_vector(text) for text in texts]

    @gp.method()
    def signature(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self.salt[:64], digest_size=8).hexdigest()

    def _unit_vector(self, text: str) -> list[float]:
        seeds = hashlib.shake_128(text.encode()).digest(DIMENSIONS * 2)
        vector = [self.weights[seeds[2 * i] * 256 + seeds[2 * i + 1]] for i in range(DIMENSIONS)]
        length = math.sqrt(sum(x * x for x in vector))
        return [x / length for x in vector]


if __name__ == "__main__":
    print(Embedder.signature.remote("hello"))
    print(list(Embedder.signature.map(["a", "b", "c"], concurrency=2)))
