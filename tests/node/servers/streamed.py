"""A class whose weights lie in /models: 100 MB, which a copy of it may hold, or read for itself."""

import glowplug as gp

app = gp.App("streamed")


@app.cls(snapshot=True)
class Streamed:
    @gp.enter(snap=True)
    def load(self):
        import torch

        from glowplug import weights

        torch.set_num_threads(1)
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(25)))
        weights.load_into(self.layers, "/models")

    @gp.method()
    def answer(self, start: int = 0) -> str:
        """The bits of what comes out."""
        import torch

        with torch.inference_mode():
            out = self.layers(torch.linspace(start, start + 1, 1024))
        return bytes(out.view(torch.uint8).tolist()).hex()
