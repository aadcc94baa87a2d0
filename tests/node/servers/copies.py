"""A class for our runner whose copies must differ in what they were given, and agree in what they loaded."""

import os
import random
import socket

import glowplug as gp

app = gp.App("copies")


@app.cls(snapshot=True, secrets=[gp.Secret.from_dict({"TOKEN": "a"})])
class Copies:
    @gp.enter(snap=True)
    def load(self):
        self.loaded = random.random()
        self.token_while_loading = os.environ.get("TOKEN")

    @gp.enter(snap=False)
    def connect(self):
        self.token = os.environ.get("TOKEN")
        if self.token == "broken":
            raise ConnectionError("the token is refused")

    @gp.method()
    def look(self):
        return {
            "loaded": self.loaded,
            "token_while_loading": self.token_while_loading,
            "token": self.token,
            "drawn": [random.random(), os.urandom(8).hex()],
            "hostname": socket.gethostname(),
            "hostname_variable": os.environ.get("HOSTNAME"),
            "address": socket.gethostbyname(socket.gethostname()),
        }
