"""A text generator: a model of the transformers library behind FastAPI. `MODEL` is the folder it lies in."""

import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

app = FastAPI()
tokenizer = AutoTokenizer.from_pretrained(os.environ["MODEL"])
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"])


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = 8


@app.get("/health")
def health() -> str:
    return "ready"


@app.post("/generate")
def generate(request: Prompt) -> dict[str, str]:
    tokens = tokenizer(request.prompt, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**tokens, max_new_tokens=request.max_tokens, do_sample=False)
    return {"text": tokenizer.decode(output[0], skip_special_tokens=True)}
