"""Static INT8 of an ONNX body: Q/DQ around every convolution, weights per channel.

The form is the one that ONNX Runtime and OpenVINO both fuse into integer convolutions:

- weights int8, symmetric, one scale an output channel;
- activations uint8 with one scale a tensor: zero point 0 where nothing is negative (behind ReLU),
  else asymmetric; ``symmetric=True`` gives int8 with zero point 0 for what is negative
  (TensorRT);
- biases and the features that leave the body in float32;
- the frame enters the first convolution as the uint8 that it is, with scale 1.

Before rounding, channels are balanced (:mod:`edgeseg.compression.equalization`); after it, each
bias takes up the mean error that rounding its weights makes (Nagel et al. 2019, section 4.2,
with observed means in place of those derived from BatchNorms).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.compression.calibration import Ranges
from edgeseg.compression.equalization import equalize
from edgeseg.compression.pooling import pool_by_convolution
from edgeseg.compression.rounding import Parts, frame_tensor, is_worthwhile, tensors_to_round
from edgeseg.compression.stem import Affine, quantize_stem
from edgeseg.errors import ArtefactError
from edgeseg.export.graph import Graph
from edgeseg.export.passes import CONVOLUTIONS, channel_axis

__all__ = [
    "Affine",
    "QuantizedBody",
    "balanced_ranges",
    "describe",
    "quantize_body",
]


@dataclass(frozen=True, slots=True)
class QuantizedBody:
    """An INT8 body and what was decided."""

    model: onnx.ModelProto
    activations: dict[str, Affine]
    """Scale and zero point by tensor."""
    convolutions: int
    """How many are integer."""
    float_convolutions: int


def quantize_body(
    body: onnx.ModelProto,
    ranges: Ranges,
    *,
    symmetric: bool = False,
    balance: bool = True,
    correct_bias: bool = True,
    keep_float: frozenset[str] = frozenset(),
) -> QuantizedBody:
    """Quantize a float body.

    Args:
        body: what :func:`edgeseg.export.body.export_body` gave.
        ranges: observed on it.
        symmetric: int8 with zero point 0 for activations that take negative values.
        balance: equalize channels first.
        correct_bias: absorb the weights' mean rounding error.
        keep_float: names of convolutions to leave in float.

    Raises:
        ArtefactError: a tensor has no range of as many channels. That the ranges are those of the
            body's weights is for the caller to know.
    """
    graph = Graph(body)
    graph.infer_shapes()
    moved = pool_by_convolution(graph)
    chosen = [
        n
        for n in graph.nodes
        if n.op_type in CONVOLUTIONS and n.name not in keep_float and is_worthwhile(graph, n)
    ]
    total = sum(n.op_type in CONVOLUTIONS for n in graph.nodes)
    parts = Parts(graph, chosen, keep_float)
    tensors = tensors_to_round(graph, parts)
    _check_ranges(graph, ranges, tensors)
    if balance:
        ranges = equalize(graph, ranges, tensors)
    frame = frame_tensor(graph)
    affine = {
        name: _affine(
            min(ranges.tensors[r].clipped_low for r in group),
            max(ranges.tensors[r].clipped_high for r in group),
            # OpenVINO has no integer transposed convolution of inputs with a zero point.
            symmetric or _is_spread(graph, name),
        )
        for name, group in tensors.items()
        if name != frame
    }
    for name in moved:
        if name in affine:
            affine[name] = _same_codes(graph, name, affine)
    for node in chosen:
        mean = ranges.tensors[node.input[0]].mean if node.input[0] in ranges.tensors else None
        _quantize_weights(graph, node, mean if correct_bias else None)
    quantize_stem(graph, affine)
    for name, quantization in affine.items():
        _round_tensor(graph, name, quantization, parts)
    if frame is not None:
        _enter_as_integer(graph, frame)
    graph.infer_shapes()
    return QuantizedBody(graph.to_model(), affine, len(chosen), total - len(chosen))


def balanced_ranges(body: onnx.ModelProto, ranges: Ranges) -> Ranges:
    """Ranges of the tensors that :func:`quantize_body` rounds, as they are once it balanced them.

    Of tensors that share a scale every one is there.
    """
    graph = Graph(body)
    graph.infer_shapes()
    pool_by_convolution(graph)
    chosen = [n for n in graph.nodes if n.op_type in CONVOLUTIONS and is_worthwhile(graph, n)]
    tensors = tensors_to_round(graph, Parts(graph, chosen))
    _check_ranges(graph, ranges, tensors)
    balanced = equalize(graph, ranges, tensors)
    needed = {t for group in tensors.values() for t in group} - {frame_tensor(graph)}
    return Ranges(
        {k: r for k, r in balanced.tensors.items() if k in needed}, ranges.frames, ranges.provenance
    )


def _check_ranges(graph: Graph, ranges: Ranges, tensors: dict[str, set[str]]) -> None:
    needed = {t for group in tensors.values() for t in group} | set(tensors)
    for name in sorted(needed - {frame_tensor(graph)}):
        if name not in ranges.tensors or len(ranges.tensors[name].low) != graph.shapes[name][1]:
            raise ArtefactError(
                f"the calibration has no range that fits tensor '{name}'; it was observed on "
                "another network or with another version, so give a folder of frames instead"
            )


def _affine(low: float, high: float, symmetric: bool) -> Affine:
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Affine(1.0, 0, np.dtype(np.uint8))
    if low == 0:
        return Affine(high / 255, 0, np.dtype(np.uint8))
    if symmetric:
        return Affine(max(high, -low) / 127, 0, np.dtype(np.int8))
    scale = (high - low) / 255
    return Affine(scale, round(-low / scale), np.dtype(np.uint8))


def _is_spread(graph: Graph, tensor: str) -> bool:
    """Whether a transposed convolution takes ``tensor``, perhaps as part of a concatenation."""
    return any(
        n.op_type == "ConvTranspose" or (n.op_type == "Concat" and _is_spread(graph, n.output[0]))
        for n in graph.consumers(tensor)
    )


def _same_codes(graph: Graph, moved: str, affine: dict[str, Affine]) -> Affine:
    """The quantization of what a transposed convolution only moves."""
    spread = graph.producer(moved)
    assert spread is not None
    source = graph.producer(spread.input[0])
    parts = source.input if source is not None and source.op_type == "Concat" else spread.input[:1]
    return next((affine[p] for p in parts if p in affine), affine[moved])


def _quantize_weights(
    graph: Graph, node: onnx.NodeProto, mean: npt.NDArray[np.float32] | None
) -> None:
    weight = graph.constants[node.input[1]]
    axis = channel_axis(node)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    top = np.abs(weight).max(axis=others)
    scale = np.where(top > 0, top / 127, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    rounded = np.clip(np.rint(weight / scale.reshape(shape)), -127, 127).astype(np.int8)
    if mean is not None and node.op_type == "Conv" and len(mean) == weight.shape[1]:
        error = (weight - rounded * scale.reshape(shape)).sum(axis=(2, 3)) @ mean
        _shift_bias(graph, node, error.astype(np.float32))
    stem = node.input[1]
    inputs = [
        graph.constant(f"{stem}_int8", rounded),
        graph.constant(f"{stem}_scale", scale),
        graph.constant(f"{stem}_zero", np.zeros(len(scale), np.int8)),
    ]
    dequantize = graph.make("DequantizeLinear", inputs, axis=axis)
    graph.insert_before(node, dequantize)
    node.input[1] = dequantize.output[0]


def _shift_bias(graph: Graph, node: onnx.NodeProto, shift: npt.NDArray[np.float32]) -> None:
    if len(node.input) > 2:
        bias = graph.constants[node.input[2]] + shift
        node.input[2] = graph.constant(f"{node.input[2]}_corrected", bias, np.float32)
    else:
        node.input.append(graph.constant(f"{node.name}_bias", shift, np.float32))


def _round_tensor(graph: Graph, name: str, quantization: Affine, parts: Parts) -> None:
    """Put a Q/DQ pair behind ``name``; of what is made in float, float nodes take it as it is."""
    producer = graph.producer(name)
    if producer is None:
        return
    scale, zero = quantization.constants(graph, name)
    quantize = graph.make("QuantizeLinear", [name, scale, zero], graph.unique(f"{name}_q"))
    dequantize = graph.make(
        "DequantizeLinear", [quantize.output[0], scale, zero], graph.unique(f"{name}_dq")
    )
    in_float = parts.made_in_float(name)
    graph.redirect(name, dequantize.output[0], only=lambda n: not (in_float and parts.is_float(n)))
    graph.insert_after(producer, quantize, dequantize)


def _enter_as_integer(graph: Graph, frame: str) -> None:
    """The frame's bytes are the first convolution's uint8 input: nothing to round.

    With the scale 1 that they have, OpenVINO drops the dequantization and with it the sign that
    the convolution is integer; so 1/255 moves back out of the weights' scale. Convolutions that
    stay in float go on taking the bytes as float.
    """
    cast = graph.producer(frame)
    assert cast is not None
    _pool_bytes(graph, cast, frame)
    integer = []
    for node in graph.consumers(frame):
        weight = graph.producer(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            scaled = graph.constants[weight.input[1]] * 255
            weight.input[1] = graph.constant(weight.input[1], scaled, np.float32)
            integer.append(id(node))
    if not integer:
        return
    quantization = Affine(1 / 255, 0, np.dtype(np.uint8))
    scale, zero = quantization.constants(graph, frame)
    dequantize = graph.make("DequantizeLinear", [cast.input[0], scale, zero], f"{frame}_dq")
    graph.insert_after(cast, dequantize)
    graph.redirect(frame, dequantize.output[0], only=lambda n: id(n) in integer)
    if not graph.consumers(frame):
        graph.remove(cast)


def _pool_bytes(graph: Graph, cast: onnx.NodeProto, frame: str) -> None:
    """Let poolings of the frame pool its bytes, and turn the quarter that is left into float."""
    for pool in graph.consumers(frame):
        if pool.op_type == "MaxPool":
            pooled = graph.unique(f"{pool.output[0]}_bytes")
            real = graph.make("Cast", [pooled], pool.output[0], to=onnx.TensorProto.FLOAT)
            pool.input[0], pool.output[0] = cast.input[0], pooled
            graph.insert_after(pool, real)


def describe(activations: dict[str, Affine]) -> dict[str, Any]:
    """Scales and zero points as the bundle's ``calibration.json`` keeps them: neutral ranges.

    ``low`` and ``high`` are the values of the smallest and the largest code.
    """
    return {
        name: {
            "low": a.scale * (a.smallest - a.zero_point),
            "high": a.scale * (a.largest - a.zero_point),
            "scale": a.scale,
            "zero_point": a.zero_point,
            "dtype": a.dtype.name,
        }
        for name, a in activations.items()
    }
