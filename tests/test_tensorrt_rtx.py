"""Graphs go through TensorRT-RTX's parser and builder, which need no GPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from edgeseg.compression.calibration import observe
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.export.float16 import to_float16
from edgeseg.export.tensorrt_graph import tensorrt_model
from edgeseg.scoring.onnx_head import standalone_model
from edgeseg.scoring.scorers import valid_scorers
from exported import HEIGHT, WIDTH, body_of, frames, network

NETWORKS = ("midenet", "enet", "erfnet", "bisenet")


@pytest.fixture(scope="module")
def builder():
    """Builds a file, in an interpreter that has tensorrt_rtx."""
    python = os.environ.get("EDGESEG_RTX_PYTHON")
    beside = ROOT / ".venv-rtx" / "bin" / "python"
    if python is None and beside.exists():
        python = str(beside)
    if python is None and importlib.util.find_spec("tensorrt_rtx"):
        python = sys.executable
    if python is None:
        pytest.skip("TensorRT-RTX is not installed; see tools/trt_build_matrix.py")
    command = [python, str(ROOT / "tools" / "trt_build_matrix.py"), "--worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:

        def build(path, precision="float32", targets=("8.6",)):
            request = {"path": str(path), "precision": precision, "targets": targets}
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            return json.loads(child.stdout.readline())

        yield build
        child.stdin.close()


def _model(name, precision):
    body = body_of(name)
    if precision == "float16":
        return to_float16(body)
    if precision == "int8":
        return quantize_body(body, observe(body, frames(1))).model
    return body


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_body_and_every_scorer_build(builder, tmp_path, name, precision):
    model = _model(name, precision)
    head = network(name).head_spec()
    head = type(head)(
        **{f: getattr(head, f) for f in head.__dataclass_fields__} | {"layout": "nhwc"}
    )
    graphs = {"body": model}
    for scorer in valid_scorers(head.void_index):
        graphs[scorer] = standalone_model(model, head, scorer, 1.0, HEIGHT, WIDTH)
    for graph, whole in graphs.items():
        path = tmp_path / f"{graph}.onnx"
        path.write_bytes(tensorrt_model(whole, typed=True).SerializeToString())
        built = builder(path, precision)
        assert "error" not in built, f"{graph}: {built}"
        assert built["engine_bytes"] > 10_000


def test_what_is_not_rewritten_is_refused_and_the_reason_told(builder, tmp_path):
    path = tmp_path / "body.onnx"
    path.write_bytes(body_of("midenet").SerializeToString())
    assert "UInt8" in builder(path)["error"]


def test_a_gpu_that_it_cannot_build_for_is_named(builder, tmp_path):
    path = tmp_path / "body.onnx"
    path.write_bytes(tensorrt_model(body_of("midenet")).SerializeToString())
    assert "compute capability 5.3" in builder(path, targets=["5.3"])["error"]
