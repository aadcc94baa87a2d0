"""An ONNX model behind FastAPI: two layers made on the spot, from a fixed seed, run by ONNX Runtime."""

import numpy as np
import onnxruntime
from fastapi import FastAPI
from onnx import TensorProto, helper, numpy_helper

SIZE = 1024
app = FastAPI()


def two_layers() -> bytes:
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((SIZE, SIZE), dtype=np.float32) / SIZE for _ in range(2)]
    vector = [1, SIZE]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["output"]),
        ],
        "two-layers",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, vector)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, vector)],
        [numpy_helper.from_array(w, name) for w, name in zip(weights, ("first", "second"), strict=True)],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


session = onnxruntime.InferenceSession(two_layers(), providers=["CPUExecutionProvider"])


@app.get("/predict")
def predict(x: float) -> dict[str, float]:
    (output,) = session.run(["output"], {"input": np.full((1, SIZE), x, dtype=np.float32)})
    return {"sum": round(float(output.sum()), 4)}
