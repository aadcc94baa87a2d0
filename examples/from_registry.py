"""A server in an OCI image of a registry: the index is made once, content is fetched when it is read.

    glowplug up && glowplug deploy examples/from_registry.py
    curl localhost:8080/from-registry/web/

GLOWPLUG_EXAMPLE_REF names another image; it needs a python3.
"""

import os

import glowplug as gp

REFERENCE = os.environ.get("GLOWPLUG_EXAMPLE_REF", "docker.io/library/python:3.11-slim")

app = gp.App("from-registry")


@app.server(image=gp.Image.from_registry(REFERENCE), port=8000)
def web():
    return ["python3", "-m", "http.server", "8000"]
