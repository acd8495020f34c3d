"""The head in standard ONNX operators: for one-file models and for engines on a GPU.

Same definition as :mod:`edgeseg.scoring.scorers`, tested against it. Needs the ``onnx`` package.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseg.errors import UsageError
from edgeseg.scoring.head import Head
from edgeseg.scoring.scorers import FLOAT16_MAX, score_range, valid_scorers

__all__ = ["standalone_model"]


class _Nodes:
    """Nodes and constants under construction, all names prefixed with ``head_``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        name = f"head_c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attrs: Any) -> str:
        name = output or f"head_{len(self.nodes)}_{op.lower()}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def channels(self, tensor: str, start: int, stop: int) -> str:
        bounds = (self.constant([v], np.int64) for v in (start, stop, 1))
        return self.add("Slice", tensor, *bounds)


def standalone_model(
    body: onnx.ModelProto, head: Head, scorer: str, temperature: float, height: int, width: int
) -> onnx.ModelProto:
    """One file for third parties: ``frame`` -> ``class_map`` and ``score``.

    Args:
        body: ``frame`` uint8 ``[1, H, W, 3]`` BGR -> ``features``.
        head: the bundle's head.
        scorer: one that the head has.
        temperature: > 0.
        height: of the frame, in pixels.
        width: of the frame, in pixels.

    Returns:
        Model with outputs ``class_map`` uint8 ``[1, H, W]`` and ``score`` float32 ``[1, H, W]``,
        larger is more anomalous.

    Raises:
        UsageError: the head does not have the scorer.
    """
    if scorer not in valid_scorers(head.void_index):
        raise UsageError(
            f"scorer '{scorer}' cannot be exported for this network; "
            f"choose one of {', '.join(valid_scorers(head.void_index))}"
        )
    n = _Nodes()
    logits = _logits(n, head, height, width)
    known = n.channels(logits, 0, head.num_known)
    nan = n.add("IsNaN", known)
    ranked = n.add("Where", nan, n.constant(-np.inf), known)
    first = n.add("ArgMax", ranked, axis=1, keepdims=0)
    n.add("Cast", first, output="class_map", to=TensorProto.UINT8)
    _score(n, head, scorer, temperature, logits)
    outputs = [
        helper.make_tensor_value_info("class_map", TensorProto.UINT8, [1, height, width]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, height, width]),
    ]
    graph = helper.make_graph(
        [*body.graph.node, *n.nodes],
        f"edgeseg_{scorer}",
        list(body.graph.input),
        outputs,
        [*body.graph.initializer, *n.constants],
    )
    model = helper.make_model(graph, opset_imports=list(body.opset_import))
    model.ir_version = body.ir_version
    model.producer_name = "edgeseg"
    onnx.checker.check_model(model, full_check=True)
    return model


def _logits(n: _Nodes, head: Head, height: int, width: int) -> str:
    h, w = height // head.factor, width // head.factor
    features = "features"
    if head.layout == "nhwc":
        turned = n.add("Transpose", "features", perm=[0, 2, 1])
        shape = n.constant([1, head.channels_in, h, w], np.int64)
        features = n.add("Reshape", turned, shape)
    if head.kind in ("deconv2x2", "deconv3x3"):
        assert head.weight is not None
        assert head.bias is not None
        kernel = 2 if head.kind == "deconv2x2" else 3
        edge: dict[str, Any] = {}
        if kernel == 3:
            edge = {"pads": [1] * 4, "output_padding": [1, 1]}
        logits = n.add(
            "ConvTranspose",
            features,
            n.constant(head.weight),
            n.constant(head.bias),
            kernel_shape=[kernel] * 2,
            strides=[2, 2],
            **edge,
        )
    elif head.kind == "bilinear":
        logits = n.add(
            "Resize",
            features,
            "",
            n.constant([1, 1, head.factor, head.factor]),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
    else:
        logits = features
    if head.isomax is not None:
        prototypes = head.isomax.prototypes.reshape(1, -1, 1, 1)
        away = n.add("Sub", logits, n.constant(prototypes))
        scale = n.constant(-abs(head.isomax.distance_scale))
        logits = n.add("Mul", n.add("Abs", away), scale)
    return logits


def _score(n: _Nodes, head: Head, scorer: str, temperature: float, logits: str) -> None:
    # A pixel whose logits are not all finite gets the largest score, whatever follows gives.
    total = n.add("ReduceSum", logits, n.constant([1], np.int64), keepdims=0)
    zero = n.constant(0.0)
    broken = n.add("Not", n.add("Equal", n.add("Mul", total, zero), zero))
    known = n.channels(logits, 0, head.num_known)
    used = known
    if scorer == "void":
        assert head.void_index is not None
        void = n.channels(logits, head.void_index, head.void_index + 1)
        used = n.add("Concat", known, void, axis=1)
    if scorer == "maxlogit":
        score = n.add("Neg", n.add("ReduceMax", known, axes=[1], keepdims=0))
    else:
        scaled = n.add("Mul", used, n.constant(1 / temperature))
        if scorer in ("msp", "void"):
            p = n.add("Softmax", scaled, axis=1)
            if scorer == "void":
                squeezed = n.channels(p, head.num_known, head.num_known + 1)
                score = n.add("Squeeze", squeezed, n.constant([1], np.int64))
            else:
                top = n.add("ReduceMax", p, axes=[1], keepdims=0)
                score = n.add("Sub", n.constant(1.0), top)
        elif scorer == "entropy":
            log_p = n.add("LogSoftmax", scaled, axis=1)
            product = n.add("Mul", n.add("Exp", log_p), log_p)
            summed = n.add("ReduceSum", product, n.constant([1], np.int64), keepdims=0)
            score = n.add("Neg", summed)
        else:
            lse = n.add("ReduceLogSumExp", scaled, axes=[1], keepdims=0)
            score = n.add("Mul", lse, n.constant(-temperature))
    low, high = score_range(scorer, head.num_known)
    bounded = n.add("Clip", score, n.constant(max(low, -FLOAT16_MAX)), n.constant(high))
    n.add("Where", broken, n.constant(high), bounded, output="score")
