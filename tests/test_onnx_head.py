"""One-file models on ONNX Runtime against the numpy definition."""

import dataclasses

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="one-file models need the build packages")

import onnxruntime as ort  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgeseg.errors import UsageError  # noqa: E402
from edgeseg.scoring.head import HEAD_KINDS  # noqa: E402
from edgeseg.scoring.onnx_head import standalone_model  # noqa: E402
from edgeseg.scoring.scorers import SCORERS, anomaly_score, class_map, score_range  # noqa: E402
from tests.test_head import make  # noqa: E402

HEIGHT, WIDTH = 16, 32
# Deviations of logits that the scores keep: float32 sums here, float64 there.
TOLERANCE = {"msp": 2e-6, "void": 2e-6, "entropy": 2e-5, "maxlogit": 2e-5, "energy": 5e-5}


def constant_body(features, layout):
    """A body that gives fixed features for any frame, in the exporter's shape."""
    c, h, w = features.shape
    value = features[None] if layout == "nchw" else features.reshape(1, c, h * w).transpose(0, 2, 1)
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["float"], ["top"], keepdims=0),
        helper.make_node("Mul", ["top", "zero"], ["nothing"]),
        helper.make_node("Add", ["value", "nothing"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, HEIGHT, WIDTH, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, value.shape)],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), "value"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    labels, score = session.run(
        ["class_map", "score"], {"frame": np.full((1, HEIGHT, WIDTH, 3), 9, np.uint8)}
    )
    return labels, score


def features_for(head, seed=0):
    shape = (head.channels_in, HEIGHT // head.factor, WIDTH // head.factor)
    return np.random.default_rng(seed).normal(0, 1.5, shape).astype(np.float32)


def compare(head, features, scorer, temperature):
    body = constant_body(features, head.layout)
    labels, score = run(standalone_model(body, head, scorer, temperature, HEIGHT, WIDTH))
    logits = head.logits(features)
    expected = anomaly_score(
        logits,
        scorer,
        num_known=head.num_known,
        void_index=head.void_index,
        temperature=temperature,
    )
    assert (labels.dtype, labels.shape) == (np.uint8, (1, HEIGHT, WIDTH))
    assert (score.dtype, score.shape) == (np.float32, (1, HEIGHT, WIDTH))
    np.testing.assert_allclose(score[0], expected, atol=TOLERANCE[scorer])
    theirs = class_map(logits, num_known=head.num_known)
    if not np.array_equal(labels[0], theirs):
        # Only where the best two logits tie up to rounding.
        ranked = np.sort(logits[: head.num_known], axis=0)
        assert (ranked[-1] - ranked[-2])[labels[0] != theirs].max() < 2e-5
    return labels[0], score[0]


@pytest.mark.parametrize("isomax", [False, True])
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_equal_to_the_definition(kind, scorer, isomax):
    layout = "nhwc" if isomax else "nchw"
    head = make(kind, isomax, layout)
    compare(head, features_for(head), scorer, 2.15)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_features_look_as_anomalous_as_can_be(kind, scorer, bad):
    head = make(kind, layout="nhwc")
    features = features_for(head)
    features[0, 1, 1] = bad
    _, score = compare(head, features, scorer, 1.0)
    y = x = head.factor + head.factor // 2
    assert score[y, x] == np.float32(score_range(scorer, 19)[1])


def test_a_broken_void_output_alone_counts_and_leaves_the_class():
    head = make("identity")
    features = features_for(head)
    features[19, 3, 4] = np.nan
    labels, score = compare(head, features, "msp", 1.0)
    assert score[3, 4] == 1
    assert labels[3, 4] == features[:19, 3, 4].argmax()


def test_large_logits_stay_inside_float16():
    head = make("identity")
    features = features_for(head) * 1e30
    for scorer in SCORERS:
        body = constant_body(features, head.layout)
        _, score = run(standalone_model(body, head, scorer, 1.0, HEIGHT, WIDTH))
        assert np.isfinite(score.astype(np.float16)).all()


def test_a_head_without_void_takes_no_void_scorer():
    head = dataclasses.replace(make("identity"), num_outputs=19, void_index=None, isomax=None)
    body = constant_body(features_for(head), "nchw")
    with pytest.raises(UsageError, match="void"):
        standalone_model(body, head, "void", 1.0, HEIGHT, WIDTH)
    compare(head, features_for(head), "msp", 1.0)


@pytest.mark.parametrize("scorer", ["magic", ""])
def test_an_unknown_scorer_is_a_usage_error(scorer):
    head = make("identity")
    with pytest.raises(UsageError, match="energy"):
        standalone_model(constant_body(features_for(head), "nchw"), head, scorer, 1.0, 16, 32)


def test_the_file_is_what_third_parties_expect():
    head = make("deconv2x2", layout="nhwc")
    model = standalone_model(
        constant_body(features_for(head), "nhwc"), head, "void", 1.0, HEIGHT, WIDTH
    )
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert [i.name for i in model.graph.input] == ["frame"]
    assert [o.name for o in model.graph.output] == ["class_map", "score"]
    domains = {n.domain for n in model.graph.node}
    assert domains == {""}
