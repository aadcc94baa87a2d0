"""A PyTorch server that holds so much memory, the same in each of its processes, and answers with its sum."""

SERVER = """
import http.server, torch
torch.set_num_threads(1)
torch.manual_seed(4)
weights = torch.randn({megabytes} << 18)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(float(weights[::4096].sum())).encode())
    def log_message(self, *words): pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
