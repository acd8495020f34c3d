"""The integer form of the initial block: a convolution beside a max-pooling of the frame.

A max-pooling of three channels defeats vector units: it took 4.5 of the 8.8 ms that OpenVINO
spent on this block at 512x1024 (two cores with AVX-512 VNNI). A pooled channel is the maximum of
the four pixels of a window, and taking one of them is a convolution; so four convolutions, which
share the thirteen real filters and differ in the pixel that they take, and the maximum of their
codes give the same codes in 2.6 ms. The maximum is taken between casts to float, which OpenVINO
fuses away: of uint8 itself ONNX Runtime takes it only from 1.24 on.

The maximum may only be taken of what grows with the pixel. A PReLU with a negative slope does
not; such a pooled channel passes the maximum as it is, and its activation comes behind it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.export.graph import Graph, attributes

__all__ = ["Affine", "quantize_stem"]


@dataclass(frozen=True, slots=True)
class Affine:
    """real = scale * (code - zero_point)."""

    scale: float
    zero_point: int
    dtype: "np.dtype[Any]"

    @property
    def smallest(self) -> int:
        """Smallest code."""
        return int(np.iinfo(self.dtype).min)

    @property
    def largest(self) -> int:
        """Largest code."""
        return int(np.iinfo(self.dtype).max)

    def constants(self, graph: Graph, stem: str) -> tuple[str, str]:
        """Names of new constants for the scale and the zero point."""
        return (
            graph.constant(f"{stem}_scale", np.float32(self.scale)),
            graph.constant(f"{stem}_zero", np.asarray(self.zero_point, self.dtype)),
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """The nodes of an initial block, and its pooled branch as factor * max + offset."""

    concat: onnx.NodeProto
    conv: onnx.NodeProto
    conv_first: bool
    factor: npt.NDArray[np.float32]
    """Per pooled channel, in the order of the concatenation."""
    offset: npt.NDArray[np.float32]
    source: list[int]
    """Channel of the frame that each pooled channel takes."""
    activation: onnx.NodeProto | None
    """A PRelu of the pooled part, or ``None`` for Relu."""
    conv_activation: onnx.NodeProto


def quantize_stem(graph: Graph, affine: dict[str, Affine]) -> bool:
    """Replace the initial block where it has the form that this needs; say whether it did.

    Needed: a 2x2 pooling with stride 2 and positive factors on the pooled channels (a negative
    one would ask for the minimum).
    """
    block = _find(graph)
    if block is None or (block.factor <= 0).any():
        return False
    parts = list(block.concat.input)
    if any(name not in affine for name in parts):
        return False
    # Codes can only be compared under one scale; both parts hold the range of the whole.
    quantization = affine[parts[0]]
    if affine[parts[1]] != quantization:
        return False
    out = block.concat.output[0]
    slopes = _slopes(graph, block)
    behind = None
    if slopes is not None and (slopes[_pooled(block)] < 0).any():
        late = np.zeros(len(slopes), bool)
        late[_pooled(block)] = slopes[_pooled(block)] < 0
        behind = np.where(late, slopes, 1).astype(np.float32)
        slopes = np.where(late, 1, slopes).astype(np.float32)
        quantization = _widened(quantization, float(block.offset.min()))
    codes = [
        _phase(graph, block, slopes, quantization, row, column)
        for row in (0, 1)
        for column in (0, 1)
    ]
    casts = [graph.make("Cast", [code], to=onnx.TensorProto.FLOAT) for code in codes]
    values = [cast.output[0] for cast in casts]
    upper = graph.make("Max", values[:2])
    lower = graph.make("Max", values[2:])
    largest = graph.make("Max", [upper.output[0], lower.output[0]])
    code = graph.make(
        "Cast",
        [largest.output[0]],
        graph.unique(f"{out}_q"),
        to=onnx.helper.np_dtype_to_tensor_dtype(quantization.dtype),
    )
    scale, zero = quantization.constants(graph, out)
    real = graph.make("DequantizeLinear", [code.output[0], scale, zero], f"{out}_dq")
    graph.insert_before(block.concat, *casts, upper, lower, largest, code, real)
    last = real
    if behind is not None:
        # A PReLU whose slopes are at most 1 is max(z, slope * z); for a PReLU by name OpenVINO
        # would leave the integer convolutions' layout and come back to it.
        slope = graph.constant("stem_late_slope", behind.reshape(1, -1, 1, 1))
        scaled = graph.make("Mul", [real.output[0], slope], "stem_late_scaled")
        graph.insert_before(block.concat, scaled)
        act = graph.make("Max", [real.output[0], scaled.output[0]], "stem_late_act")
        names = quantization.constants(graph, "stem_late")
        quantize = graph.make("QuantizeLinear", [act.output[0], *names], "stem_late_q")
        last = graph.make("DequantizeLinear", [quantize.output[0], *names], "stem_late_dq")
        graph.insert_before(block.concat, act, quantize, last)
    graph.redirect(out, last.output[0], only=lambda n: n is not block.concat)
    graph.remove(block.concat)
    for name in parts:
        del affine[name]
    graph.prune()
    return True


def _pooled(block: _Block) -> slice:
    """Where the pooled channels stand in the concatenation."""
    return slice(-len(block.factor), None) if block.conv_first else slice(0, len(block.factor))


def _widened(quantization: Affine, low: float) -> Affine:
    """The same with room for values down to ``low``."""
    have = quantization.scale * (quantization.smallest - quantization.zero_point)
    if low >= have:
        return quantization
    high = quantization.scale * (quantization.largest - quantization.zero_point)
    if quantization.dtype == np.int8:
        return Affine(max(high, -low) / 127, 0, quantization.dtype)
    scale = (high - low) / 255
    return Affine(scale, round(-low / scale), quantization.dtype)


def _phase(
    graph: Graph,
    block: _Block,
    slopes: npt.NDArray[np.float32] | None,
    quantization: Affine,
    row: int,
    column: int,
) -> str:
    """Codes of the block if every window's maximum were at (row, column)."""
    dequantize = graph.producer(block.conv.input[1])
    assert dequantize is not None
    weight, scale, _ = (graph.constants[i] for i in dequantize.input)
    pooled = len(block.factor)
    taps = np.zeros((pooled, *weight.shape[1:]), np.int8)
    for i, channel in enumerate(block.source):
        # The kernel is 3x3 with padding 1: its centre is the window's upper left pixel.
        taps[i, channel, 1 + row, 1 + column] = 127
    order = slice(None) if block.conv_first else slice(None, None, -1)
    both = np.concatenate([weight, taps][order])
    scales = np.concatenate([scale, block.factor / 127][order]).astype(np.float32)
    bias = (
        graph.constants[block.conv.input[2]]
        if len(block.conv.input) > 2
        else np.zeros(len(weight), np.float32)
    )
    biases = np.concatenate([bias, block.offset][order]).astype(np.float32)
    stem = f"stem_{row}{column}"
    inputs = [
        graph.constant(f"{stem}_int8", both),
        graph.constant(f"{stem}_scale", scales),
        graph.constant(f"{stem}_zero", np.zeros(len(scales), np.int8)),
    ]
    real = graph.make("DequantizeLinear", inputs, axis=0)
    conv = graph.make(
        "Conv",
        [block.conv.input[0], real.output[0], graph.constant(f"{stem}_bias", biases)],
        f"{stem}_conv",
        **attributes(block.conv),
    )
    if slopes is None:
        act = graph.make("Relu", [conv.output[0]], f"{stem}_act")
    else:
        slope = graph.constant(f"{stem}_slope", slopes.reshape(-1, 1, 1))
        act = graph.make("PRelu", [conv.output[0], slope], f"{stem}_act")
    names = quantization.constants(graph, stem)
    quantize = graph.make("QuantizeLinear", [act.output[0], *names], f"{stem}_q")
    graph.insert_before(block.concat, real, conv, act, quantize)
    return str(quantize.output[0])


def _slopes(graph: Graph, block: _Block) -> npt.NDArray[np.float32] | None:
    """PReLU slopes of all channels in the order of the concatenation; ``None`` for ReLU."""
    if block.activation is None:
        return None
    pooled, conv = len(block.factor), len(graph.constants[_int8(graph, block.conv)])
    parts = [
        np.broadcast_to(graph.constants[block.conv_activation.input[1]].reshape(-1), conv),
        np.broadcast_to(graph.constants[block.activation.input[1]].reshape(-1), pooled),
    ]
    return np.concatenate(parts if block.conv_first else parts[::-1]).astype(np.float32)


def _int8(graph: Graph, conv: onnx.NodeProto) -> str:
    dequantize = graph.producer(conv.input[1])
    assert dequantize is not None
    return str(dequantize.input[0])


def _find(graph: Graph) -> _Block | None:
    cast = next((n for n in graph.nodes if n.op_type == "Cast"), None)
    if cast is None:
        return None
    behind = graph.consumers(cast.output[0])
    conv = next((n for n in behind if n.op_type == "Conv"), None)
    pool = next((n for n in behind if n.op_type == "MaxPool"), None)
    if conv is None or pool is None or len(behind) != 2:
        return None
    shape = attributes(pool)
    plain = shape["kernel_shape"] == [2, 2] and not any(shape.get("pads", [0]))
    conv_shape = attributes(conv)
    if (
        not plain
        or conv_shape.get("kernel_shape") != [3, 3]
        or conv_shape.get("pads") != [1, 1, 1, 1]
    ):
        return None
    weight = graph.producer(conv.input[1])
    if weight is None or weight.op_type != "DequantizeLinear":
        return None
    source, factor, offset = list(range(3)), np.ones(3, np.float32), np.zeros(3, np.float32)
    node, activation = pool, None
    while True:
        following = graph.consumers(node.output[0])
        if len(following) != 1:
            return None
        node = following[0]
        if node.op_type == "Gather":
            source = [source[i] for i in graph.constants[node.input[1]].tolist()]
        elif node.op_type == "Mul":
            factor = factor * graph.constants[node.input[1]].reshape(-1)
            offset = offset * graph.constants[node.input[1]].reshape(-1)
        elif node.op_type == "Add":
            offset = offset + graph.constants[node.input[1]].reshape(-1)
        elif node.op_type in ("Relu", "PRelu") and activation is None:
            activation = node
        elif node.op_type == "Concat" and activation is not None:
            break
        else:
            return None
    act = graph.consumers(conv.output[0])
    if len(act) != 1 or act[0].op_type != activation.op_type:
        return None
    if sorted(node.input) != sorted([act[0].output[0], activation.output[0]]):
        return None
    return _Block(
        node,
        conv,
        node.input[0] == act[0].output[0],
        factor,
        offset,
        source,
        activation if activation.op_type == "PRelu" else None,
        act[0],
    )
