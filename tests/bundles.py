"""A small random network as a bundle, for tests that need one to run but not to know anything."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeseg.bundle import BODY, HEAD, Manifest, ScorerDefaults, head_to_files, write_bundle
from edgeseg.scoring.head import Head, Layout
from edgeseg.scoring.scorers import valid_scorers
from edgeseg.taxonomy import CLASSES, PALETTE, VOID

__all__ = ["make_bundle", "small_body"]


def small_body(
    height: int, width: int, *, seed: int = 0, name: str = "frame", layout: str = "nchw"
) -> bytes:
    """uint8 [1,H,W,3] -> cast, transpose, /255, conv 3x3 s2 to 16 channels, ReLU.

    ``nhwc`` gives features [1, h * w, C], as the exporter does.
    """
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.6, (16, 3, 3, 3)).astype(np.float32)
    bias = rng.normal(0, 0.3, 16).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node(
            "Conv", ["scaled", "weight", "bias"], ["conv"], strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["conv"], ["features" if layout == "nchw" else "relu"]),
    ]
    shape = [1, 16, height // 2, width // 2]
    constants = []
    if layout == "nhwc":
        shape = [1, height * width // 4, 16]
        nodes += [
            helper.make_node("Reshape", ["relu", "merged"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["features"], perm=[0, 2, 1]),
        ]
        constants = [numpy_helper.from_array(np.int64([1, 16, -1]), "merged")]
    graph = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, [1, height, width, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)],
        [
            *constants,
            numpy_helper.from_array(np.float32(1 / 255), "scale"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def make_bundle(
    folder: Path,
    height: int = 64,
    width: int = 128,
    *,
    void: bool = True,
    thresholds: bool = True,
    compute_precision: str = "f32",
    body: bytes | None = None,
    seed: int = 0,
    layout: Layout = "nchw",
) -> Path:
    """Write a bundle with 20 outputs (void last) or 19, head deconv2x2, at ``folder``."""
    rng = np.random.default_rng(seed + 1)
    outputs = 20 if void else 19
    head = Head(
        kind="deconv2x2",
        num_outputs=outputs,
        num_known=19,
        void_index=VOID if void else None,
        weight=rng.normal(0, 0.7, (16, outputs, 2, 2)).astype(np.float32),
        bias=rng.normal(0, 0.3, outputs).astype(np.float32),
        layout=layout,
    )
    entry, weights = head_to_files(head)
    limits = {"msp": 0.7, "maxlogit": -1.0, "entropy": 1.5, "void": 0.3, "energy": -2.0}
    manifest = Manifest(
        network="erfnet",
        structure={},
        classes=list(CLASSES),
        palette=[list(colour) for colour in PALETTE],
        height=height,
        width=width,
        head=entry,
        scorers={
            scorer: ScorerDefaults(threshold=limits[scorer] if thresholds else None)
            for scorer in valid_scorers(head.void_index)
        },
        precision="float32",
        compute_precision=compute_precision,
        weights_name="random",
    )
    content = {BODY: body or small_body(height, width, seed=seed, layout=layout), HEAD: weights}
    return write_bundle(folder, manifest, content)
