"""A server in an image that was imported: here, or on another node that pushed it to the region.

    glowplug up --region s3://bucket/images
    glowplug image import /srv/rootfs web:1 && glowplug image push web:1      # on one node
    glowplug deploy examples/from_name.py                                     # on any
    curl localhost:8080/from-name/web/

GLOWPLUG_EXAMPLE_IMAGE names another image; it needs a python3.
"""

import os

import glowplug as gp

app = gp.App("from-name")


@app.server(image=gp.Image.from_name(os.environ.get("GLOWPLUG_EXAMPLE_IMAGE", "web:1")), port=8000)
def web():
    return ["python3", "-m", "http.server", "8000"]
