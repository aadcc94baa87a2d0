"""llama.cpp's own HTTP server, from the xllamacpp wheel. `python llama_server.py MODEL.gguf`"""

import signal
import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.hostnames = ["0.0.0.0"]
parameters.port = 8080
parameters.n_ctx = 512
parameters.n_parallel = 1
server = xllamacpp.Server(parameters)  # returns when the model is loaded; serves in threads of its own
print("listening on", server.listening_address, flush=True)
signal.pause()
