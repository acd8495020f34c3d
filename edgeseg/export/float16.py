"""A body with float16 weights and activations, for engines that compute in it."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeseg.export.graph import Graph

__all__ = ["to_float16"]


def to_float16(body: onnx.ModelProto) -> onnx.ModelProto:
    """The float body in float16; the frame stays uint8 and the features leave as float32.

    Engines without float16 arithmetic (CPUs) insert casts and compute in float32; there it only
    halves the file.
    """
    graph = Graph(body)
    # Region and scales of a Resize are float32 whatever it resizes.
    kept = {name for n in graph.nodes if n.op_type == "Resize" for name in n.input[1:]}
    for name, value in graph.constants.items():
        if value.dtype == np.float32 and name not in kept:
            graph.constants[name] = _saturate(value)
    for node in graph.nodes:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.FLOAT16
    (output,) = graph.outputs
    producer = graph.producer(output.name)
    assert producer is not None
    half = graph.unique(f"{output.name}_half")
    producer.output[0] = producer.name = half  # ONNX Runtime refuses two nodes of one name
    graph.nodes.append(graph.make("Cast", [half], output.name, to=TensorProto.FLOAT))
    shape: Sequence[int] = [d.dim_value for d in output.type.tensor_type.shape.dim]
    graph.outputs = [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape)]
    return graph.to_model()


def _saturate(value: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> "np.ndarray":
    top = np.finfo(np.float16).max
    return np.clip(value, -top, top).astype(np.float16)
