"""Bodies and one-file models in the form that TensorRT's parser takes and computes rightly.

What differs from ``body.onnx``, and why:

- The frame becomes real first and is transposed then: uint8 may only enter or leave a network.
- Activations are int8 with zero point 0 and scale amax / 127, amax = max(|high|, |low|). The
  parser refuses other zero points, and its integer type is int8 whatever the graph says.
- The maximum over codes, which other engines fuse, becomes one over values; the integer stem
  takes the frame as it is, so that no pixel is rounded to seven bits.
- Weights whose convolution takes a real input are real.
- The class map goes to uint8 by way of float32, which is the only way; the score leaves as
  float16: three bytes a pixel.
- ``typed``: what is not INT8 is float16 in the graph itself, Q/DQ scales included, in opset 19.
  The head stays float32.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgeseg.errors import ArtefactError
from edgeseg.export.graph import Graph, attributes
from edgeseg.export.passes import CONVOLUTIONS

__all__ = ["TYPED_OPSET", "tensorrt_model", "without_quantization"]

TYPED_OPSET: Final = 19
"""The first opset whose Q/DQ scales may be float16."""

_FEATURES: Final = "features"
_CODES: Final = (TensorProto.UINT8, TensorProto.INT8)
_MONOTONE: Final = ("Max", "MaxPool")
# Their axes are an attribute until opset 17 and an input from 18 on.
_REDUCTIONS: Final = ("ReduceMax", "ReduceLogSumExp")
# Of float16's 65504, what rounding of two scales and of their product leaves.
_BIAS_STEPS: Final = 60000


def tensorrt_model(model: onnx.ModelProto, *, typed: bool = False) -> onnx.ModelProto:
    """Rewrite an exported body or one-file model for TensorRT.

    Args:
        model: ``frame`` uint8 ``[1, H, W, 3]`` -> ``features`` float32, or ``class_map`` uint8
            and ``score`` float32; opset 17, float32, float16 or Q/DQ INT8.
        typed: for strongly typed networks (TensorRT 11, TensorRT-RTX): INT8 bodies compute
            their rest in float16.

    Returns:
        The same graph with ``score`` as float16.

    Raises:
        ArtefactError: integer arithmetic that this version does not know.
    """
    graph = Graph(model)
    _frame_to_real(graph)
    _codes_to_values(graph)
    _symmetric(graph)
    _real_weights(graph)
    _outputs(graph)
    graph.infer_shapes()
    if typed and any(n.op_type == "QuantizeLinear" for n in graph.nodes):
        _half(graph)
        graph.infer_shapes()
    return graph.to_model()


def without_quantization(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph under a Q/DQ graph: its weights as they were rounded, its tensors under
    their names, so that a calibration cache can give the scales (TensorRT 8 and 10).

    Args:
        model: what :func:`tensorrt_model` gave, not ``typed``.
    """
    graph = Graph(model)
    for node in [n for n in graph.nodes if n.op_type == "DequantizeLinear"]:
        quantize = graph.producer(node.input[0])
        if quantize is None:
            _fold_weights(graph, node)
        else:
            graph.redirect(node.output[0], quantize.input[0])
            graph.remove(node)
    graph.infer_shapes()
    return graph.to_model()


def _frame_to_real(graph: Graph) -> None:
    frame = graph.inputs[0].name
    casts = [n for n in graph.nodes if n.op_type == "Cast" and _is_front(graph, n.input[0])]
    half = any(attributes(n)["to"] == TensorProto.FLOAT16 for n in casts)
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    real = graph.make("Cast", [frame], graph.unique("frame_real"), to=kind)
    fronts = {frame} | {o for n in graph.nodes if _is_front(graph, n.input[0]) for o in n.output}
    graph.redirect(frame, real.output[0])
    graph.nodes.insert(0, real)
    for cast in casts:
        graph.redirect(cast.output[0], cast.input[0])
        graph.remove(cast)
    for node in [n for n in graph.nodes if n.op_type == "DequantizeLinear"]:
        if node.input[0] in fronts | {real.output[0]}:
            scale = graph.constants[node.input[1]]
            pixels = graph.make(
                "Mul", [node.input[0], graph.constant("pixel_scale", scale)], node.output[0]
            )
            graph.insert_before(node, pixels)
            graph.remove(node)


def _is_front(graph: Graph, tensor: str) -> bool:
    """Whether ``tensor`` is the frame, moved or pooled and still uint8."""
    while True:
        producer = graph.producer(tensor)
        if producer is None:
            return tensor == str(graph.inputs[0].name)
        if producer.op_type not in ("Transpose", "MaxPool"):
            return False
        tensor = producer.input[0]


def _codes_to_values(graph: Graph) -> None:
    """Replace casts of codes to float, and back, by dequantizing and quantizing."""
    coded = {
        o: n for n in graph.nodes if n.op_type == "QuantizeLinear" for o in n.output
    }  # codes -> who made them, with which scale
    for node in list(graph.nodes):
        if node.op_type == "MaxPool" and node.input[0] in coded:
            source = coded[node.input[0]]
            real = graph.make("DequantizeLinear", [node.input[0], *source.input[1:]])
            graph.insert_before(node, real)
            codes, pooled = node.output[0], graph.unique(f"{node.output[0]}_real")
            node.input[0], node.output[0] = real.output[0], pooled
            again = graph.make("QuantizeLinear", [pooled, *source.input[1:]], codes)
            graph.insert_after(node, again)
            coded[codes] = again
        elif node.op_type == "Cast" and node.input[0] in coded:
            source = coded[node.input[0]]
            real = graph.make(
                "DequantizeLinear", [node.input[0], *source.input[1:]], node.output[0]
            )
            graph.insert_before(node, real)
            graph.remove(node)
        elif node.op_type == "Cast" and attributes(node)["to"] in _CODES:
            if graph.is_output(node.output[0]):
                continue
            source = _quantizer_above(graph, node.input[0])
            again = graph.make("QuantizeLinear", [node.input[0], *source.input[1:]], node.output[0])
            graph.insert_before(node, again)
            graph.remove(node)
            coded[again.output[0]] = again


def _quantizer_above(graph: Graph, tensor: str) -> onnx.NodeProto:
    """The Q node whose codes ``tensor`` holds, through what keeps their order."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in (*_MONOTONE, "DequantizeLinear"):
        above = graph.producer(node.input[0])
        if above is not None and above.op_type == "QuantizeLinear":
            return above
        node = above
    raise ArtefactError(
        f"tensor '{tensor}' is computed from integer codes in a way that TensorRT has no form "
        "for; this is a defect of the export, please report it"
    )


def _symmetric(graph: Graph) -> None:
    """int8 with zero point 0 for every activation; one constant a pair, as before."""
    done: dict[tuple[str, str], tuple[str, str]] = {}
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.input[0] in graph.constants:
            continue
        key = (node.input[1], node.input[2])
        if key not in done:
            scale, zero = (graph.constants[k] for k in key)
            info = np.iinfo(zero.dtype)
            far = max(int(info.max) - int(zero), int(zero) - int(info.min))
            if zero.dtype == np.int8 and int(zero) == 0:
                far = 127
            done[key] = (
                graph.constant(f"{key[0]}_int8", np.float32(scale * far / 127)),
                graph.constant(f"{key[1]}_int8", np.int8(0)),
            )
        node.input[1], node.input[2] = done[key]


def _real_weights(graph: Graph) -> None:
    """Fold the weights of convolutions whose input is not quantized."""
    for node in [n for n in graph.nodes if n.op_type in CONVOLUTIONS]:
        weights, given = graph.producer(node.input[1]), graph.producer(node.input[0])
        if weights is None or weights.op_type != "DequantizeLinear":
            continue
        if given is None or given.op_type != "DequantizeLinear":
            _fold_weights(graph, weights)


def _fold_weights(graph: Graph, dequantize: onnx.NodeProto) -> None:
    codes, scale = graph.constants[dequantize.input[0]], graph.constants[dequantize.input[1]]
    values = codes.astype(np.float32) * _along(scale, codes.ndim, dequantize)
    graph.redirect(dequantize.output[0], graph.constant(f"{dequantize.input[0]}_real", values))
    graph.remove(dequantize)


def _along(
    scale: npt.NDArray[np.float32], ndim: int, node: onnx.NodeProto
) -> npt.NDArray[np.float32]:
    if scale.ndim == 0:
        return scale
    shape = [1] * ndim
    shape[attributes(node).get("axis", 1)] = -1
    return scale.reshape(shape)


def _outputs(graph: Graph) -> None:
    for i, output in enumerate(graph.outputs):
        kind = output.type.tensor_type.elem_type
        shape = [d.dim_value for d in output.type.tensor_type.shape.dim]
        producer = graph.producer(output.name)
        assert producer is not None
        if kind == TensorProto.UINT8:
            real = graph.make("Cast", [producer.input[0]], to=TensorProto.FLOAT)
            graph.insert_before(producer, real)
            producer.input[0] = real.output[0]
        elif output.name == "score":
            inner = graph.unique("score_float32")
            producer.output[0] = producer.name = inner
            graph.insert_after(
                producer, graph.make("Cast", [inner], "score", to=TensorProto.FLOAT16)
            )
            graph.outputs[i] = helper.make_tensor_value_info("score", TensorProto.FLOAT16, shape)


def _half(graph: Graph) -> None:
    """float16 for the body of an INT8 graph; what follows ``features`` stays as it is."""
    body = _ancestors(graph, _FEATURES)
    kept = {name for n in body if n.op_type == "Resize" for name in n.input[1:]}
    for node in body:
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            _half_weights(graph, node)
    for node in body:
        for i, name in enumerate(node.input):
            value = graph.constants.get(name)
            if value is None or value.dtype != np.float32 or name in kept:
                continue
            is_scale = i == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
            graph.constants[name] = _scale_half(value) if is_scale else _saturate(value)
        if node.op_type == "Cast" and attributes(node)["to"] == TensorProto.FLOAT:
            for attribute in node.attribute:
                if attribute.name == "to":
                    attribute.i = TensorProto.FLOAT16
    producer = graph.producer(_FEATURES)
    assert producer is not None
    inner = graph.unique(f"{_FEATURES}_half")
    producer.output[0] = producer.name = inner
    graph.insert_after(producer, graph.make("Cast", [inner], _FEATURES, to=TensorProto.FLOAT))
    graph.opset = TYPED_OPSET
    for node in graph.nodes:
        if node.op_type in _REDUCTIONS:
            axes = attributes(node)["axes"]
            kept_attributes = [a for a in node.attribute if a.name != "axes"]
            del node.attribute[:]
            node.attribute.extend(kept_attributes)
            node.input.append(graph.constant(f"{node.name}_axes", axes, np.int64))


def _half_weights(graph: Graph, node: onnx.NodeProto) -> None:
    """Round weights again, on the grid of a scale that float16 holds well.

    Channels that weight decay has all but emptied have scales down to 1e-9. Among float16's
    subnormal numbers such a scale is wrong by up to its own size. With the smallest normal number
    as a floor their weights lose less than 3e-5. :func:`_bias_floor` is the other one.
    """
    codes, scale = graph.constants[node.input[0]], graph.constants[node.input[1]]
    floor = np.maximum(_bias_floor(graph, node, scale), np.finfo(np.float16).tiny)
    half = _scale_half(np.maximum(scale, floor)).astype(np.float32)
    values = codes.astype(np.float32) * _along(scale, codes.ndim, node)
    rounded = np.rint(values / _along(half, codes.ndim, node))
    node.input[0] = graph.constant(
        f"{node.input[0]}_half", np.clip(rounded, -127, 127).astype(np.int8)
    )
    node.input[1] = graph.constant(f"{node.input[1]}_half", half, np.float32)


def _bias_floor(
    graph: Graph, node: onnx.NodeProto, scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """From which scales on biases, counted in steps of input times weight scale, fit in float16.

    ONNX Runtime's optimizer (WeightBiasQuantization, seen in 1.31) makes a bias int32 by dividing
    it by the product of both scales, in float16: where a bias is large beside its channel's
    weights, as in a quarter of the shipped BiSeNet's channels, that overflows. Weights of such
    channels get coarser steps, there up to seven times, and the features' error stays what it was.
    In the graph itself a bias stays real.
    """
    floor = np.zeros_like(scale)
    for convolution in graph.consumers(node.output[0]):
        given = graph.producer(convolution.input[0])
        if len(convolution.input) < 3 or given is None:
            continue
        steps = np.abs(graph.constants[convolution.input[2]]) / _BIAS_STEPS
        # A product below the smallest number would be zero, and nothing can be divided by it.
        steps = np.maximum(steps, np.finfo(np.float16).smallest_subnormal)
        needed = steps / graph.constants[given.input[1]]
        floor = np.maximum(floor, needed if needed.shape == scale.shape else needed.max())
    return np.asarray(floor, np.float32)


def _scale_half(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """The smallest float16 that is not below, so that nothing is clipped."""
    half = np.asarray(scale).astype(np.float16)
    below = half.astype(np.float32) < scale
    return np.where(below, np.nextafter(half, np.float16(np.inf)), half).astype(np.float16)


def _saturate(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    top = np.finfo(np.float16).max
    return np.clip(value, -top, top).astype(np.float16)


def _ancestors(graph: Graph, tensor: str) -> list[onnx.NodeProto]:
    needed, found = {tensor}, []
    for node in reversed(graph.nodes):
        if _any_of(node.output, needed):
            found.append(node)
            needed.update(node.input)
    return found[::-1]


def _any_of(names: Iterable[str], wanted: set[str]) -> bool:
    return any(name in wanted for name in names)
