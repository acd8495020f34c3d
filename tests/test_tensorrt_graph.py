import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edgeseg.compression.calibration import observe
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.export.float16 import to_float16
from edgeseg.export.graph import Graph
from edgeseg.export.tensorrt_graph import TYPED_OPSET, tensorrt_model, without_quantization
from edgeseg.scoring.onnx_head import standalone_model
from exported import HEIGHT, WIDTH, body_of, frames, network, session

NETWORKS = ("midenet", "enet", "erfnet", "bisenet")


def _quantized(name):
    body = body_of(name)
    return quantize_body(body, observe(body, frames(2))).model


def _features(model):
    return session(model).run(None, {"frame": frames(1, seed=3)[0][None]})[0]


def _unfused_features(model):
    """As the graph is written, without ONNX Runtime's optimizer."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return plain.run(None, {"frame": frames(1, seed=3)[0][None]})[0]


def _head(name):
    head = network(name).head_spec()
    return type(head)(
        **{f: getattr(head, f) for f in head.__dataclass_fields__} | {"layout": "nhwc"}
    )


def _error(given, wanted):
    """Root of the mean square of the error, as a share of that of what is wanted."""
    return float(np.sqrt(np.mean((given - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float_body_computes_the_same(name):
    body = body_of(name)
    np.testing.assert_allclose(
        _features(tensorrt_model(body)), _features(body), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_an_int8_body_is_no_worse_than_the_one_it_came_from(name):
    wanted = _features(body_of(name))
    quantized = _quantized(name)
    ours = _features(tensorrt_model(quantized))
    typed = tensorrt_model(quantized, typed=True)
    # ReLU's outputs keep seven bits where they had eight; the frame gets its eighth back.
    allowed = 2.5 * _error(_features(quantized), wanted) + 0.01
    assert _error(ours, wanted) < allowed
    assert _error(_features(typed), wanted) < allowed
    assert _error(_unfused_features(typed), wanted) < allowed


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("typed", [False, True])
def test_every_pair_is_int8_symmetric_with_one_scale(name, typed):
    graph = Graph(tensorrt_model(_quantized(name), typed=typed))
    pairs = [n for n in graph.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale, zero = graph.constants[node.input[1]], graph.constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.dtype == (np.float16 if typed else np.float32)
        assert (scale > 0).all()
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants:
            quantize = graph.producer(node.input[0])
            assert quantize.op_type == "QuantizeLinear"
            assert graph.constants[quantize.input[1]] == scale


@pytest.mark.parametrize("name", NETWORKS)
def test_uint8_only_enters_and_leaves(name):
    model = standalone_model(_quantized(name), _head(name), "msp", 1.0, HEIGHT, WIDTH)
    model = tensorrt_model(model)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert TensorProto.UINT8 not in kinds.values()
    graph = Graph(model)
    (reader,) = graph.consumers("frame")
    assert reader.op_type == "Cast"
    writer = graph.producer("class_map")
    assert writer.op_type == "Cast"
    assert kinds[writer.input[0]] == TensorProto.FLOAT


@pytest.mark.parametrize("name", ["midenet", "erfnet"])
@pytest.mark.parametrize("scorer", ["msp", "maxlogit", "entropy", "energy", "void"])
@pytest.mark.parametrize("typed", [False, True])
def test_scores_agree_with_the_one_file_model(name, scorer, typed):
    head = _head(name)
    whole = standalone_model(to_float16(body_of(name)), head, scorer, 1.5, HEIGHT, WIDTH)
    frame = frames(1, seed=3)[0][None]
    wanted_map, wanted = session(whole).run(["class_map", "score"], {"frame": frame})
    ours = session(tensorrt_model(whole, typed=typed))
    class_map, score = ours.run(["class_map", "score"], {"frame": frame})
    assert class_map.dtype == np.uint8
    assert score.dtype == np.float16
    assert (class_map == wanted_map).mean() > 0.999
    np.testing.assert_allclose(score, wanted.astype(np.float16), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scorer", ["maxlogit", "energy", "msp"])
def test_typed_int8_keeps_the_head_in_float32(scorer):
    whole = standalone_model(_quantized("midenet"), _head("midenet"), scorer, 1.0, HEIGHT, WIDTH)
    model = tensorrt_model(whole, typed=True)
    assert model.opset_import[0].version == TYPED_OPSET
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    body = [n for n in model.graph.node if not n.name.startswith("head_")]
    convolutions = [n.output[0] for n in body if n.op_type == "Conv"]
    assert {kinds[name] for name in convolutions} == {TensorProto.FLOAT16}
    assert kinds["features"] == TensorProto.FLOAT
    session(model)


def test_small_weights_keep_their_values_in_float16_scales():
    """A channel of weights around 1e-5 has a scale among float16's subnormal numbers."""
    body = body_of("midenet")
    shrunk = onnx.ModelProto()
    shrunk.CopyFrom(body)
    graph = Graph(shrunk)
    name = next(n.input[1] for n in graph.nodes if n.op_type == "Conv" and n.name)
    graph.constants[name] = graph.constants[name] * np.float32(1e-4)
    quantized = quantize_body(graph.to_model(), observe(graph.to_model(), frames(1))).model
    typed = Graph(tensorrt_model(quantized, typed=True))
    plain = Graph(tensorrt_model(quantized))

    def weights(graph):
        found = {}
        for node in graph.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
                codes, scale, _ = (graph.constants[i] for i in node.input)
                axis = next(a.i for a in node.attribute if a.name == "axis")
                shape = [1] * codes.ndim
                shape[axis] = -1
                found[node.output[0]] = codes * scale.astype(np.float32).reshape(shape), scale
        return found

    ours = weights(typed)
    assert ours
    for key, (values, scale) in weights(plain).items():
        step = np.maximum(scale, ours[key][1].astype(np.float32)).max()
        assert np.abs(ours[key][0] - values).max() <= 0.51 * step


@pytest.mark.parametrize("gain", [1e-2, 1e-4])
def test_biases_large_beside_their_weights_fit_in_float16(gain):
    """ONNX Runtime's optimizer counts a bias in steps of the product of both scales, in float16."""
    graph = Graph(body_of("erfnet"))
    quantizable = [n for n in graph.nodes if n.op_type == "Conv"][2:-2]
    for node in quantizable:
        # A fifth of the channels, so that there is still a picture to compare.
        graph.constants[node.input[1]] = graph.constants[node.input[1]].copy()
        graph.constants[node.input[1]][::5] *= np.float32(gain)
    body = graph.to_model()
    quantized = quantize_body(body, observe(body, frames(2))).model
    typed = tensorrt_model(quantized, typed=True)
    seen = Graph(typed)
    checked = 0
    for node in [n for n in seen.nodes if n.op_type in ("Conv", "ConvTranspose")]:
        given, weights = (seen.producer(name) for name in node.input[:2])
        if weights is None or len(node.input) < 3:
            continue
        steps = seen.constants[given.input[1]] * seen.constants[weights.input[1]]
        assert steps.dtype == np.float16
        assert np.isfinite(seen.constants[node.input[2]] / steps).all()
        checked += 1
    assert checked > len(quantizable) / 2
    wanted = _features(body)
    allowed = 2.5 * _error(_features(quantized), wanted) + 0.01
    assert _error(_features(typed), wanted) < allowed


@pytest.mark.parametrize("name", NETWORKS)
def test_without_pairs_the_graph_is_float_and_keeps_its_tensors(name):
    quantized = _quantized(name)
    implicit = without_quantization(tensorrt_model(quantized))
    names = {n.op_type for n in implicit.graph.node}
    assert not names & {"QuantizeLinear", "DequantizeLinear"}
    tensors = {o for n in implicit.graph.node for o in n.output}
    body = body_of(name)
    decided = set(quantize_body(body, observe(body, frames(2))).activations)
    # Its scales are given by name, so the names must be there.
    assert len(decided & tensors) >= 0.8 * len(decided)
    wanted = _features(body)
    allowed = 2 * _error(_features(quantized), wanted) + 0.01
    assert _error(_features(implicit), wanted) < allowed
