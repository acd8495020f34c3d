"""Counts come from the graph that is deployed, and are right."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.networks.zoo import NETWORKS, counts
from edgeseg.profiling.counts import HeadShape, count, layer_rows
from edgeseg.profiling.fusion import layers_of
from edgeseg.profiling.layers import Layer, LayerGraph
from edgeseg.profiling.onnx_reader import parse_onnx, read_onnx
from edgeseg.profiling.shapes import Tensor, infer_tensors
from edgeseg.profiling.subjects import from_bundle, from_table
from tests.bundles import make_bundle, small_body

onnx = pytest.importorskip("onnx", reason="the reader is compared with the onnx package")


@pytest.fixture(scope="module")
def exported():
    pytest.importorskip("torch", reason="exporting needs torch")
    from tests import exported

    return exported


def graph_of(model):
    return layers_of(parse_onnx(model.SerializeToString()))


def test_reader_sees_what_onnx_sees():
    content = small_body(64, 128)
    theirs, ours = onnx.load_from_string(content).graph, parse_onnx(content)
    assert [(n.op, n.inputs, n.outputs) for n in ours.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    conv = ours.nodes[3]
    assert conv.attributes == {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert ours.constants["weight"].shape == (16, 3, 3, 3)
    assert ours.constants["weight"].values is None
    assert ours.constants["scale"].values == (np.float32(1 / 255),)
    assert (ours.inputs[0].dtype, ours.inputs[0].shape) == ("uint8", (1, 64, 128, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_onnx_inference(name, exported):
    model = onnx.shape_inference.infer_shapes(exported.body_of(name), strict_mode=True)
    ours = infer_tensors(parse_onnx(model.SerializeToString()))
    assert model.graph.value_info
    for value in model.graph.value_info:
        tensor = value.type.tensor_type
        shape = tuple(d.dim_value for d in tensor.shape.dim)
        assert ours[value.name].shape == shape, value.name
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        assert ours[value.name].dtype == numpy_type.name, value.name


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_torch(name, exported):
    from edgeseg.networks.counts import count as count_module

    module = exported.network(name)
    graph = graph_of(exported.body_of(name, drop_dead=False))
    total = count(graph, HeadShape.of(module.head_spec()), "void", params=0).macs
    assert total == count_module(module, exported.HEIGHT, exported.WIDTH).macs


@pytest.mark.parametrize("name", NETWORKS)
def test_tables_are_of_the_published_structure(name):
    subject, told = from_table(name), counts(name)
    found = subject.counts("void")
    assert found.macs == told["macs"] == subject.macs_network
    assert found.params == told["params"]
    assert subject.divisor == told["size_divisor"]
    assert subject.size == told["macs_size"]


def test_three_layers_by_hand():
    """ERFNet's first factorised pair, its first downsampler and its second last upsampling."""
    graph = from_table("erfnet").graph
    rows = {row.name: row for row in layer_rows(graph, from_table("erfnet").head, "void")}
    convolutions = [layer for layer in graph.layers if layer.op == "Conv"]
    stem = convolutions[0]
    # 3 -> 13, 3x3, stride 2: 256 x 512 outputs of 13 channels, 27 taps each.
    assert graph.macs(stem) == 256 * 512 * 13 * 27
    vertical = next(c for c in convolutions if c.kernel == (3, 1))
    # 64 -> 64, 3x1 on 128 x 256: three taps, not nine.
    assert graph.macs(vertical) == 128 * 256 * 64 * 64 * 3
    deconvolution = [layer for layer in graph.layers if layer.op == "ConvTranspose"][-1]
    # 64 -> 16, 3x3, stride 2 from 128 x 256: every input meets every tap once.
    assert graph.macs(deconvolution) == 128 * 256 * 64 * 16 * 9
    # The head, 16 -> 20, 2x2, stride 2 from 256 x 512.
    assert rows["head"].macs == 256 * 512 * 16 * 20 * 4


def test_another_size_is_what_an_export_gives(exported):
    from edgeseg.export.body import export_body

    module = exported.network("bisenet")
    small = graph_of(exported.body_of("bisenet", drop_dead=False))
    large = graph_of(export_body(module, 96, 192, drop_dead=False))
    resized = small.resized(96, 192, divisor=32)
    for ours, theirs in zip(resized.layers, large.layers, strict=True):
        assert resized.macs(ours) == large.macs(theirs), ours.name
        assert resized.bytes_of(ours.output) == large.bytes_of(theirs.output), ours.name
    assert resized.peak_bytes() == large.peak_bytes()
    with pytest.raises(UsageError, match="divisible by 32"):
        small.resized(100, 192, divisor=32)


def test_int8_graph_has_integer_layers_and_byte_activations():
    bundle = _ready()
    subject = from_bundle(bundle)
    found = subject.counts("void")
    assert found.macs == found.macs_integer > 0
    assert found.macs_float == 0
    assert found.integer_operations == 2 * found.macs_integer
    convolutions = [layer for layer in subject.graph.layers if layer.op == "Conv"]
    assert len(convolutions) >= bundle.manifest.counts["integer_convolutions"]
    assert all(layer.integer for layer in convolutions)
    table = from_table(subject.network)
    assert found.activation_peak_bytes < table.counts("void").activation_peak_bytes
    assert found.file_bytes == bundle.file_bytes


def test_precision_of_an_estimate():
    table = from_table("enet")
    whole, half, bytewise = (table.at(p, None) for p in (None, "float16", "int8"))
    layer = whole.graph.layers[20]
    sizes = [s.graph.bytes_of(layer.output) for s in (whole, half, bytewise)]
    assert sizes[0] == 2 * sizes[1] == 4 * sizes[2]
    assert bytewise.counts("void").macs_float == table.head.macs((512, 1024))
    # What the head reads stays float32.
    assert len({s.graph.bytes_of(s.graph.features) for s in (whole, half, bytewise)}) == 1
    with pytest.raises(UsageError, match="needs the float32 network"):
        half.at("int8", None)


def test_peak_counts_what_is_alive_at_once():
    tensors = {
        "frame": Tensor((1, 4, 4, 3), "uint8"),
        **{n: Tensor((1, 8, 4, 4), "float32") for n in "abcd"},
    }
    layers = (
        Layer("a", "Conv", ("frame",), "a"),
        Layer("b", "Relu", ("a",), "b"),
        Layer("c", "Relu", ("b",), "c"),
        Layer("d", "Add", ("a", "c"), "d"),
    )
    graph = LayerGraph(layers, tensors, "frame", "d", (4, 4), (4, 4))
    # a waits for the addition: a, b, c are alive while c is made, and a, c, d at the end.
    assert graph.peak_bytes() == 3 * 8 * 16 * 4
    chain = replace(graph, layers=(*layers[:3], replace(layers[3], inputs=("c",))))
    assert chain.peak_bytes() == 2 * 8 * 16 * 4


def test_activation_and_addition_are_fused():
    graph = layers_of(parse_onnx(small_body(64, 128)))
    ops = [(layer.op, layer.fused) for layer in graph.layers]
    assert ("Conv", ("Bias", "Relu")) in ops
    conv = graph.layers[-1]
    assert graph.macs(conv) == 16 * 32 * 64 * 27
    assert graph.operations(conv) == 16 * 32 * 64 * 3


def test_json_round_trip():
    graph = from_table("bisenet").graph
    assert LayerGraph.from_document(json.loads(json.dumps(graph.to_document()))) == graph


def test_bundle_without_counts_is_counted(tmp_path):
    subject = from_bundle(Bundle.open(make_bundle(tmp_path / "b")))
    assert subject.params == 16 * 27 + 16 + 16 * 20 * 4 + 20 + 1  # the last: a scale
    assert subject.macs_network == subject.counts("void").macs


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not an onnx file", b"\x3a\xff\xff\xff\xff\x0f", small_body(64, 128)[:500]],
)
def test_damaged_graph_is_one_sentence(tmp_path, content):
    path = tmp_path / "body.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="no ONNX model"):
        read_onnx(path)


def test_unknown_operator_is_named():
    model = onnx.load_from_string(small_body(64, 128))
    model.graph.node[-1].op_type = "Einsum"
    with pytest.raises(ValueError, match="operator Einsum"):
        graph_of(model)


def _ready() -> Bundle:
    from edgeseg.runtime.ready import ready_bundle

    try:
        return Bundle.open(ready_bundle())
    except UsageError:
        pytest.skip("this checkout has no ready bundle (make ranges)")
