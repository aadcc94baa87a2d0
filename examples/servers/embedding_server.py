"""Which sentences mean the same: sentence-transformers behind FastAPI. `MODEL` is the model's folder."""

import os

from fastapi import FastAPI
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(os.environ["MODEL"], device="cpu")


@app.get("/health")
def health() -> str:
    return "ready"


@app.post("/similarity")
def similarity(sentences: list[str]) -> list[list[float]]:
    vectors = model.encode(sentences, normalize_embeddings=True)
    return [[round(value, 3) for value in row] for row in (vectors @ vectors.T).tolist()]
