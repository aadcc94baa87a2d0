"""Any command that listens on a port is a server: here Python's own, serving this very folder.

glowplug up && glowplug deploy examples/static_files.py
curl localhost:8080/files/static/
"""

import glowplug as gp

app = gp.App("files")
image = gp.Image.host_python().add_local_dir(".", "/srv/files").workdir("/srv/files")


@app.server(image=image, port=8000, ready="/", memory="256MiB", scaledown_window_s=10)
def static():
    return ["python3", "-m", "http.server", "8000", "--bind", "0.0.0.0"]
