"""A server built from a Dockerfile, by buildah on the node.

    glowplug up && glowplug deploy examples/dockerfile/app.py
    curl localhost:8080/from-dockerfile/web/hello.txt

GLOWPLUG_EXAMPLE_REF names another base image; it needs a python3.
"""

import os

import glowplug as gp

BASE = os.environ.get("GLOWPLUG_EXAMPLE_REF", "docker.io/library/python:3.11-slim")

app = gp.App("from-dockerfile")


@app.server(image=gp.Image.from_dockerfile("Dockerfile", build_args={"BASE": BASE}), port=8000)
def web():
    return ["python3", "-m", "http.server", "8000"]
