"""Passes that turn the exporter's graph into the body that engines run best.

All are exact up to float32 rounding. Order matters: :func:`canonicalise` runs them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgeseg.errors import EdgesegError
from edgeseg.export.graph import Graph, attributes

__all__ = ["ACTIVATIONS", "attach_frame", "canonicalise", "output_channels_last"]

Float32 = npt.NDArray[np.float32]

CONVOLUTIONS = ("Conv", "ConvTranspose")
ACTIVATIONS = ("Relu", "PRelu")

# frame is BGR, networks take RGB
_BGR_TO_RGB = np.array([2, 1, 0])


def canonicalise(graph: Graph) -> None:
    """Fold BatchNorms, move activations in front of concatenations, fold constants."""
    graph.fold_constants()
    _fold_batch_norms(graph)
    _activate_before_concat(graph)
    _phases_to_space(graph)
    graph.infer_shapes()


def attach_frame(
    graph: Graph,
    tensor: str,
    height: int,
    width: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    """Replace the float RGB input ``tensor`` by ``frame``, uint8 ``[1, H, W, 3]`` BGR.

    Colour order, /255 and 1/std go into the weights of the first convolutions, and behind the
    first pooling where they act on a quarter of the pixels. A mean stays a subtraction: folded
    into a bias it would be wrong along the border, where the convolution pads with zeros.
    """
    scale = np.full(3, 1 / 255, np.float32) / np.asarray(std or (1, 1, 1), np.float32)
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, height, width, 3])
    planes = graph.make("Transpose", ["frame"], "frame_planes", perm=[0, 3, 1, 2])
    cast = graph.make("Cast", ["frame_planes"], "frame_float", to=TensorProto.FLOAT)
    front, pixels = [planes, cast], "frame_float"
    if mean is not None:
        grey = 255 * np.asarray(mean, np.float32)[_BGR_TO_RGB]
        centre = graph.make(
            "Sub", [pixels, graph.constant("frame_mean", grey.reshape(1, 3, 1, 1))], "frame_centred"
        )
        front.append(centre)
        pixels = "frame_centred"
    for node in graph.consumers(tensor):
        if node.op_type == "Conv":
            weight = graph.constants[node.input[1]]
            folded = (weight * scale.reshape(1, 3, 1, 1))[:, _BGR_TO_RGB]
            node.input[1] = graph.constant(f"{node.input[1]}_bgr", folded, np.float32)
            node.input[0] = pixels
        elif node.op_type == "MaxPool":
            # scale is positive, so it commutes with the maximum.
            node.input[0] = pixels
            out, raw = node.output[0], graph.unique(f"{node.output[0]}_bgr")
            node.output[0] = raw
            order = graph.make(
                "Gather", [raw, graph.constant("rgb_order", _BGR_TO_RGB, np.int64)], axis=1
            )
            factor = graph.constant("pool_scale", scale.reshape(1, 3, 1, 1), np.float32)
            scaled = graph.make("Mul", [order.output[0], factor], out)
            graph.insert_after(node, order, scaled)
        else:
            raise EdgesegError(
                f"a network whose input goes into {node.op_type} cannot be exported yet; "
                "only convolutions and poolings are known there"
            )
    graph.nodes[0:0] = front
    graph.inputs = [frame]
    _merge_scales(graph)
    graph.infer_shapes()


def output_channels_last(graph: Graph) -> None:
    """Give the features as ``[1, h * w, C]``, the order in which integer convolutions compute.

    OpenVINO sees that a transposition of three dimensions, as the last node, moves nothing. With
    four dimensions, or with a reshape behind it, it reorders the 8 MB of features twice, which
    took longer than the last four convolutions of an ERFNet.
    """
    (output,) = graph.outputs
    name = output.name
    n, c, h, w = graph.shapes[name]
    inner = graph.unique(f"{name}_planes")
    producer = graph.producer(name)
    assert producer is not None
    producer.output[0] = inner
    graph.redirect(name, inner)
    flat = graph.constant("flat_shape", [n, c, h * w], np.int64)
    folded = graph.make("Reshape", [inner, flat], graph.unique(f"{name}_flat"))
    graph.nodes += [folded, graph.make("Transpose", [folded.output[0]], name, perm=[0, 2, 1])]
    graph.outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, h * w, c])]
    graph.infer_shapes()


def channel_axis(node: onnx.NodeProto) -> int:
    """Axis of the output channels in the weight of a convolution (grouped ones: of a group)."""
    return 0 if node.op_type == "Conv" else 1


def scale_outputs(graph: Graph, node: onnx.NodeProto, factor: Float32, offset: Float32) -> None:
    """Let a convolution give ``factor * y + offset`` per output channel."""
    weight = graph.constants[node.input[1]]
    shape = [1] * weight.ndim
    shape[channel_axis(node)] = len(factor)
    bias = graph.constants[node.input[2]] if len(node.input) > 2 else np.zeros_like(factor)
    new_weight = graph.constant(node.input[1], weight * factor.reshape(shape), np.float32)
    new_bias = graph.constant(f"{node.input[1]}_bias", bias * factor + offset, np.float32)
    node.input[1] = new_weight
    if len(node.input) > 2:
        node.input[2] = new_bias
    else:
        node.input.append(new_bias)


def _fold_batch_norms(graph: Graph) -> None:
    for node in [n for n in graph.nodes if n.op_type == "BatchNormalization"]:
        gamma, beta, mean, var = (graph.constants[name] for name in node.input[1:5])
        eps = attributes(node).get("epsilon", 1e-5)
        # float64: the folded weights are rounded once.
        factor = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
        offset = beta - mean * factor
        _apply_affine(graph, node.input[0], node, factor, offset)
        graph.redirect(node.output[0], node.input[0])
        graph.remove(node)
    graph.infer_shapes()


def _apply_affine(
    graph: Graph, tensor: str, consumer: onnx.NodeProto, factor: Any, offset: Any
) -> None:
    """Multiply and shift ``tensor`` per channel where it is made; only ``consumer`` may use it."""
    producer = graph.producer(tensor)
    alone = len(graph.consumers(tensor)) == 1 and not graph.is_output(tensor)
    if producer is not None and alone and _is_plain(producer):
        scale_outputs(graph, producer, factor.astype(np.float32), offset.astype(np.float32))
    elif producer is not None and alone and producer.op_type == "Concat":
        start = 0
        for name in list(producer.input):
            width = graph.shapes[name][1]
            part = slice(start, start + width)
            _apply_affine(graph, name, producer, factor[part], offset[part])
            start += width
    else:
        shape = (1, -1, 1, 1)
        gain = graph.constant("bn_scale", factor.reshape(shape), np.float32)
        shift = graph.constant("bn_shift", offset.reshape(shape), np.float32)
        mul = graph.make("Mul", [tensor, gain])
        graph.insert_before(consumer, mul)
        add = graph.make("Add", [mul.output[0], shift])
        graph.insert_before(consumer, add)
        for i, name in enumerate(consumer.input):
            if name == tensor:
                consumer.input[i] = add.output[0]


def _is_plain(node: onnx.NodeProto) -> bool:
    return node.op_type in CONVOLUTIONS and attributes(node).get("group", 1) == 1


def _activate_before_concat(graph: Graph) -> None:
    """relu(concat(a, b)) becomes concat(relu(a), relu(b)): then a convolution fuses with it."""
    for node in [n for n in graph.nodes if n.op_type in ACTIVATIONS]:
        concat = graph.producer(node.input[0])
        if concat is None or concat.op_type != "Concat" or len(graph.consumers(node.input[0])) > 1:
            continue
        start = 0
        for i, name in enumerate(list(concat.input)):
            width = graph.shapes[name][1]
            inputs = [name]
            if node.op_type == "PRelu":
                slope = graph.constants[node.input[1]]
                if slope.size > 1:
                    slope = slope.reshape(-1, 1, 1)[start : start + width]
                inputs.append(graph.constant(f"{node.input[1]}_part", slope, np.float32))
            act = graph.make(node.op_type, inputs)
            graph.insert_before(concat, act)
            concat.input[i] = act.output[0]
            start += width
        graph.redirect(node.output[0], concat.output[0])
        graph.remove(node)
    graph.infer_shapes()


def _phases_to_space(graph: Graph) -> None:
    """Unpooling's four phases: stacked behind their channel becomes concatenated before it.

    torch's pixel shuffle wants the phase as the innermost part of the channel, for which the
    exporter stacks in five dimensions; ``DepthToSpace`` also takes it as the outermost, and then
    a plain concatenation of channels does, which engines keep in their own layout.
    """
    for shuffle in [n for n in graph.nodes if n.op_type == "DepthToSpace"]:
        reshape = graph.producer(shuffle.input[0])
        concat = graph.producer(reshape.input[0]) if reshape is not None else None
        if reshape is None or reshape.op_type != "Reshape" or concat is None:
            continue
        stacked = [graph.producer(i) for i in concat.input]
        if (
            concat.op_type != "Concat"
            or attributes(concat)["axis"] != 2
            or attributes(shuffle).get("mode", b"DCR") != b"CRD"
            or any(
                n is None or n.op_type != "Unsqueeze" or graph.constants[n.input[1]].tolist() != [2]
                for n in stacked
            )
        ):
            continue
        parts = [n.input[0] for n in stacked if n is not None]
        together = graph.make("Concat", parts, axis=1)
        graph.insert_before(shuffle, together)
        replacement = graph.make(
            "DepthToSpace",
            [together.output[0]],
            shuffle.output[0],
            blocksize=attributes(shuffle)["blocksize"],
            mode="DCR",
        )
        graph.insert_before(shuffle, replacement)
        graph.remove(shuffle)
    graph.prune()


def _merge_scales(graph: Graph) -> None:
    """Merge a Mul into the Mul behind it (the pooled input's /255 and its BatchNorm)."""
    for node in [n for n in graph.nodes if n.op_type == "Mul"]:
        behind = graph.consumers(node.output[0])
        if (
            len(behind) == 1
            and behind[0].op_type == "Mul"
            and node.input[1] in graph.constants
            and behind[0].input[1] in graph.constants
        ):
            product = graph.constants[node.input[1]] * graph.constants[behind[0].input[1]]
            behind[0].input[1] = graph.constant("scale", product, np.float32)
            behind[0].input[0] = node.input[0]
            graph.remove(node)
