"""Graphs go through TensorRT-RTX's parser and builder, which need no GPU."""

import json
import sys
from dataclasses import replace

import pytest

from conftest import ROOT
from edgeseg.compression.calibration import observe
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.export.float16 import to_float16
from edgeseg.export.tensorrt_graph import tensorrt_model
from edgeseg.scoring.onnx_head import standalone_model
from edgeseg.scoring.scorers import valid_scorers
from exported import HEIGHT, WIDTH, body_of, frames, network

sys.path.insert(0, str(ROOT / "tools"))

import rtx_builder
import trt_build_matrix

NETWORKS = ("midenet", "enet", "erfnet", "bisenet")


@pytest.fixture(scope="module")
def builder():
    """Builds a file, in an interpreter that has tensorrt_rtx."""
    python = rtx_builder.interpreter()
    if python is None:
        pytest.skip("TensorRT-RTX is not here; 'make .venv-rtx/.installed' downloads it")
    with rtx_builder.rtx_builder(python) as (_, build):
        yield build


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
    head = replace(network(name).head_spec(), layout="nhwc")
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


def test_the_committed_builds_are_of_every_graph():
    """Whole networks at real sizes take an hour: tools/trt_build_matrix.py."""
    rows = json.loads((ROOT / "tools" / "results" / "trt_builds.json").read_text())["rows"]
    matrix = trt_build_matrix
    wanted = {
        (name, size, precision, graph)
        for name in matrix.NETWORKS
        for size in matrix.SIZES
        for precision in matrix.PRECISIONS
        for graph in matrix.GRAPHS
    }
    assert {tuple(row[k] for k in matrix.KEY) for row in rows} == wanted
    assert not [row for row in rows if "error" in row]


def test_an_interrupted_matrix_goes_on_where_graphs_are_the_same(tmp_path):
    row = {"network": "enet", "size": "256x512", "precision": "int8", "graph": "msp"}
    told = {"tensorrt_rtx": "1.7", "targets": ["8.6"]}
    path = tmp_path / "builds.json"
    trt_build_matrix.Results(path, told).add({**row, "onnx_sha256": "a"})
    again = trt_build_matrix.Results(path, told)
    assert again.has({**row, "onnx_sha256": "a"})
    assert not again.has({**row, "onnx_sha256": "b"})
    assert not again.has({**row, "graph": "void", "onnx_sha256": "a"})
    again.add({**row, "onnx_sha256": "a", "error": "refused"})
    assert not trt_build_matrix.Results(path, told).has({**row, "onnx_sha256": "a"})
    other = {**told, "targets": ["8.9"]}
    assert not trt_build_matrix.Results(path, other).rows


def test_an_interpreter_without_tensorrt_rtx_is_named(tmp_path):
    # Without site-packages no interpreter has it.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    with (
        pytest.raises(RuntimeError, match="import tensorrt_rtx"),
        rtx_builder.rtx_builder(str(python)),
    ):
        pass
