"""Four ranks of PyTorch behind one server: torch.distributed with Gloo, sub-groups too, through a snapshot.

    glowplug up && glowplug deploy examples/several_ranks.py
    curl 'localhost:8080/mesh/ranks/?x=3'

`nccl.enable()` is all that it takes: before the capture the ranks let their communicators go, and every copy
makes them anew on loopback. Ranks on the CPU would be captured without it, connections and all; it is meant
for GPUs, and this shows that the program notices nothing. Its workers wait for questions outside of
collectives: a rank that waits inside one cannot be stopped where the others are. See docs/nccl.md.
GLOWPLUG_TORCH_VENV names an environment that has torch (default: that of vLLM).
"""

import os

import glowplug as gp

CACHE = os.environ.get("GLOWPLUG_CACHE", "/var/cache/glowplug")
VLLM_VENV = os.environ.get("GLOWPLUG_VLLM_VENV", f"{CACHE}/engines/vllm-0.32.0")
VENV = os.environ.get("GLOWPLUG_TORCH_VENV", VLLM_VENV)
PROGRAM = """
import http.server, json, multiprocessing, os, urllib.parse
import torch, torch.distributed as dist
from glowplug import nccl

RANKS = 4
fork = multiprocessing.get_context("fork")

def join(rank):
    nccl.enable()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return pairs[rank // 2]

def compute(x, pair):
    rank = dist.get_rank()
    total, within = torch.tensor([x * (rank + 1)]), torch.tensor([x * rank])
    gathered = [torch.empty(1) for _ in range(RANKS)]
    dist.all_reduce(total)
    dist.all_gather(gathered, torch.tensor([x + rank]))
    dist.all_reduce(within, group=pair)
    return {"sum": total.item(), "gathered": [one.item() for one in gathered], "pair": within.item()}

def work(rank, questions):
    pair = join(rank)
    while True:
        questions.send(compute(questions.recv(), pair))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/status":
            self.answer({"generation": nccl.status().generation, "groups": len(nccl.status().groups)})
            return
        x = float(urllib.parse.parse_qs(url.query).get("x", ["1"])[0])
        for worker in workers:
            worker.send(x)
        self.answer([compute(x, pair), *(worker.recv() for worker in workers)])

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

workers = []
for rank in range(1, RANKS):
    mine, theirs = fork.Pipe()
    fork.Process(target=work, args=(rank, theirs), daemon=True).start()
    workers.append(mine)
pair = join(0)
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

app = gp.App("mesh")


@app.server(
    image=gp.Image.host_python(venv=VENV),
    cpus=2,
    memory="2GiB",
    env={"OMP_NUM_THREADS": "1"},
    startup_timeout_s=180,
    snapshot=gp.Snapshot(warmup=["GET /?x=2"], canary=["GET /?x=2"]),
    scaledown_window_s=10,
)
def ranks():
    return ["python3", "-c", PROGRAM]
