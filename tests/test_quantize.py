"""INT8 bodies: near the float ones, the same on every engine, in the form that engines fuse."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")

import onnx  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402

from edgeseg.compression import quantize_onnx  # noqa: E402
from edgeseg.compression.calibration import Ranges, TensorRange, observe  # noqa: E402
from edgeseg.compression.equalization import equalize  # noqa: E402
from edgeseg.compression.quantize_onnx import describe, quantize_body  # noqa: E402
from edgeseg.errors import ArtefactError, InputError  # noqa: E402
from edgeseg.export.graph import Graph  # noqa: E402
from edgeseg.networks import NETWORKS  # noqa: E402
from tests.exported import (  # noqa: E402
    body_of,
    frames,
    on_openvino,
    relative_error,
    run,
    session,
)

MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_RANGES = {}
_QUANTIZED = {}


def ranges_of(name, **structure):
    key = (name, *structure)
    if key not in _RANGES:
        _RANGES[key] = observe(body_of(name, **structure), frames(3, seed=4), network=name)
    return _RANGES[key]


def quantized(name, structure=None, **options):
    structure = structure or {}
    key = (name, *structure, *options.items())
    if key not in _QUANTIZED:
        body, ranges = body_of(name, **structure), ranges_of(name, **structure)
        _QUANTIZED[key] = quantize_body(body, ranges, **options)
    return _QUANTIZED[key]


def constants(model):
    return {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}


# --- what it computes

# A frame with noise of 0.3 grey levels, which is what rounding it to bytes does, moves the features
# of these networks by 1.3e-3 (ERFNet, MiDE-Net) and, as ENet's unpooling puts whole values
# elsewhere where two neighbours all but tie, ENet's by 5e-2. INT8 may cost some times that.
NEAR_FLOAT = {"enet": 0.3, "erfnet": 0.01, "bisenet": 0.01, "midenet": 0.01}
# OpenVINO fuses additions into convolutions and does not round in between, so the engines differ
# by up to what rounding costs, and no more.
NEAR_EACH_OTHER = {"enet": 0.15, "erfnet": 0.01, "bisenet": 0.01, "midenet": 0.01}


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_is_near_float_on_every_engine(name):
    batch = frames(2, seed=4)
    reference = run(body_of(name), batch)
    model = quantized(name).model
    ours = run(model, batch)
    assert relative_error(ours, reference) < NEAR_FLOAT[name]
    theirs = on_openvino(model, batch)
    assert relative_error(theirs, reference) < NEAR_FLOAT[name]
    assert relative_error(theirs, ours) < NEAR_EACH_OTHER[name]


@pytest.mark.parametrize("symmetric", [False, True])
def test_mean_and_std_networks_quantize_too(symmetric):
    batch = frames(2, seed=4)
    reference = run(body_of("midenet", **MEAN_STD), batch)
    model = quantized("midenet", MEAN_STD, symmetric=symmetric).model
    assert relative_error(run(model, batch), reference) < NEAR_FLOAT["midenet"]
    assert relative_error(on_openvino(model, batch), reference) < NEAR_FLOAT["midenet"]


@pytest.mark.parametrize("name", NETWORKS)
def test_equalization_leaves_the_float_function(name):
    body, ranges = body_of(name), ranges_of(name)
    graph = Graph(body)
    graph.infer_shapes()
    balanced = equalize(graph, ranges, list(ranges.tensors))
    model = graph.to_model()
    changed = sum(
        not np.array_equal(a, b)
        for a, b in zip(constants(body).values(), constants(model).values(), strict=False)
    )
    assert changed > 5
    batch = frames(2, seed=7)
    before, after = run(body, batch), run(model, batch)
    # Two roundings more per weight. ENet's ties may fall the other way.
    difference = np.abs(after - before) / before.std()
    assert np.quantile(difference, 0.99 if name == "enet" else 1.0) < 1e-3
    # The new ranges are those that the new graph has.
    seen = observe(model, frames(3, seed=4))
    for tensor in list(balanced.tensors)[::5]:
        a, b = balanced.tensors[tensor], seen.tensors[tensor]
        scale = np.abs([b.low, b.high]).max() + 1e-6
        np.testing.assert_allclose(a.high, b.high, atol=0.01 * scale)
        np.testing.assert_allclose(a.low, b.low, atol=0.01 * scale)


def test_equalization_fills_the_range_of_quiet_channels():
    body, ranges = body_of("midenet"), ranges_of("midenet")
    graph = Graph(body)
    graph.infer_shapes()
    balanced = equalize(graph, ranges, list(ranges.tensors))

    def evenness(r):
        tops = np.maximum(r.high, -r.low)
        return np.mean(tops / tops.max())

    before, after = (
        np.mean([evenness(r.tensors[t]) for t in ranges.tensors]) for r in (ranges, balanced)
    )
    assert after > before + 0.05


def test_balancing_and_bias_correction_help():
    batch = frames(3, seed=4)
    reference = run(body_of("midenet"), batch)

    def error(**options):
        return relative_error(run(quantized("midenet", **options).model, batch), reference)

    assert error() < error(balance=False, correct_bias=False)


@pytest.mark.parametrize(
    ("name", "stem"), [("midenet", "gains"), ("enet", "gains"), ("enet", "slopes")]
)
def test_the_stem_gives_the_codes_that_it_gave(name, stem, monkeypatch):
    body = body_of(name, stem=stem)
    ranges = observe(body, frames(3, seed=4))
    rewritten = quantize_body(body, ranges).model
    monkeypatch.setattr(quantize_onnx, "quantize_stem", lambda *_: False)
    plain = quantize_body(body, ranges).model
    assert sum(n.op_type == "Conv" and "stem" in n.name for n in rewritten.graph.node) == 4
    concat = next(n for n in body.graph.node if n.op_type == "Concat").output[0]
    results = []
    for model in (plain, rewritten):
        # The rewritten block ends in the last dequantization that bears the tensor's name.
        names = [o for n in model.graph.node for o in n.output]
        late = [n for n in names if n == "stem_late_dq_out" or n.startswith("stem_late_dq")]
        candidates = late or [n for n in (concat, f"{concat}_dq") if n in names]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(candidates[-1]))
        engine = session(probe)
        results.append(
            np.concatenate(
                [engine.run([candidates[-1]], {"frame": f[None]})[0] for f in frames(2, seed=6)]
            )
        )
    a, b = results
    step = np.diff(np.unique(a)).min()
    # Values on the edge between two codes may fall either way. A negative slope comes behind the
    # rounding instead of before it, which costs up to half a code more.
    assert np.abs(a - b).max() < (2.1 if stem == "slopes" else 1.1) * step
    if stem == "gains":
        assert (np.abs(a - b) > 0.5 * step).mean() < 1e-3


def test_a_stem_with_a_negative_gain_is_left_alone():
    # There the pooled channel would need the minimum.
    model = quantized("midenet", {"stem": "loss"}).model
    assert not any("stem" in n.name for n in model.graph.node if n.op_type == "Conv")


# --- its form


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_int8_per_channel_and_activations_as_asked(name, symmetric):
    result = quantized(name, symmetric=symmetric)
    model, values = result.model, constants(result.model)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    producer = {o: n for n in model.graph.node for o in n.output}
    integer = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        weight = producer.get(node.input[1])
        if weight is None:
            continue
        integer += 1
        assert weight.op_type == "DequantizeLinear"
        codes, scale, zero = (values[i] for i in weight.input)
        assert codes.dtype == np.int8
        assert codes.min() >= -127
        axis = 0 if node.op_type == "Conv" else 1
        assert scale.shape == zero.shape == (codes.shape[axis],)
        assert not zero.any()
        others = tuple(i for i in range(4) if i != axis)
        full = np.abs(codes.astype(int)).max(axis=others)
        assert ((full == 127) | (full == 0)).all()  # every channel uses its range
    # Convolutions of pooled vectors stay in float; the stem has four where there was one.
    extra = 3 if any("stem" in n.name for n in model.graph.node if n.op_type == "Conv") else 0
    assert integer == result.convolutions + extra
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = values[node.input[2]]
            if symmetric:
                assert zero == 0
            elif zero.dtype == np.int8:
                assert zero == 0  # what transposed convolutions take
    assert all(a.scale > 0 for a in result.activations.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_features_leave_as_they_are(name):
    model = quantized(name).model
    producer = {o: n for n in model.graph.node for o in n.output}
    node = producer["features"]
    while node.op_type in ("Transpose", "Reshape"):
        node = producer[node.input[0]]
    assert node.op_type not in ("DequantizeLinear", "QuantizeLinear")
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("name", NETWORKS)
def test_most_convolutions_are_integer_and_the_file_is_small(name):
    result, body = quantized(name), body_of(name)
    total = sum(n.op_type in ("Conv", "ConvTranspose") for n in body.graph.node)
    # ENet's poolings become convolutions.
    assert result.convolutions + result.float_convolutions >= total
    assert result.float_convolutions <= (4 if name == "bisenet" else 0)
    weights = sum(v.nbytes for v in constants(body).values())
    assert sum(v.nbytes for v in constants(result.model).values()) < 0.45 * weights


def test_the_frame_is_not_rounded_again():
    model = quantized("bisenet").model
    (node,) = [
        n
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and any(i in ("frame", "frame_planes") for i in n.input)
    ]
    assert constants(model)[node.input[1]] == np.float32(1 / 255)


def test_convolutions_can_be_kept_in_float():
    first = next(n for n in body_of("midenet").graph.node if n.op_type == "Conv")
    result = quantized("midenet", keep_float=frozenset([first.name]))
    assert result.float_convolutions == 1
    batch = frames(1, seed=4)
    error = relative_error(run(result.model, batch), run(body_of("midenet"), batch))
    assert error < NEAR_FLOAT["midenet"]


def test_quantizing_leaves_the_float_body_and_is_repeatable():
    body = body_of("midenet")
    before = body.SerializeToString()
    first, second = (quantize_body(body, ranges_of("midenet")) for _ in range(2))
    assert body.SerializeToString() == before
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_the_description_says_what_the_codes_mean():
    result = quantized("midenet")
    document = describe(result.activations)
    json.dumps(document, allow_nan=False)
    for entry in document.values():
        assert entry["low"] <= 0 < entry["high"]
        assert entry["high"] - entry["low"] == pytest.approx(255 * entry["scale"])


# --- ranges


def test_ranges_hold_every_value_that_was_seen():
    ranges = ranges_of("midenet")
    body = onnx.ModelProto()
    body.CopyFrom(body_of("midenet"))
    name = sorted(ranges.tensors)[3]
    body.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    engine = session(body)
    values = np.concatenate([engine.run([name], {"frame": f[None]})[0] for f in frames(3, seed=4)])
    r = ranges.tensors[name]
    np.testing.assert_allclose(r.low, values.min(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(r.high, values.max(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(r.mean, values.mean(axis=(0, 2, 3)), atol=1e-4)
    assert ranges.frames == 3
    assert ranges.provenance == {"network": "midenet"}


def test_ranges_travel_as_json(tmp_path):
    ranges = ranges_of("midenet")
    path = tmp_path / "r.json"
    path.write_text(ranges.to_json())
    back = Ranges.load(path)
    assert (back.frames, back.provenance) == (ranges.frames, ranges.provenance)
    assert list(back.tensors) == list(ranges.tensors)
    for name, r in ranges.tensors.items():
        np.testing.assert_allclose(back.tensors[name].low, r.low, rtol=1e-4)
        np.testing.assert_allclose(back.tensors[name].high, r.high, rtol=1e-4)
    assert back.to_json() == ranges.to_json()


def test_no_frames_is_an_input_error():
    with pytest.raises(InputError, match="no frame"):
        observe(body_of("midenet"), [])


def test_ranges_of_another_network_are_refused():
    with pytest.raises(ArtefactError, match="another network"):
        quantize_body(body_of("midenet"), ranges_of("erfnet"))


def test_ranges_of_the_same_network_with_other_widths_are_refused():
    narrow = {"stage1": 48}
    with pytest.raises(ArtefactError, match="another network"):
        quantize_body(body_of("midenet", **narrow), ranges_of("midenet"))


def test_ranges_that_lack_one_tensor_are_refused():
    ranges = ranges_of("midenet")
    for name in ranges.tensors:
        rest = {k: v for k, v in ranges.tensors.items() if k != name}
        try:
            quantize_body(body_of("midenet"), Ranges(rest, 1))
        except ArtefactError:
            continue


def test_constant_and_zero_activations_quantize():
    ranges = ranges_of("midenet")
    flat = {
        k: TensorRange(np.zeros_like(r.low), np.zeros_like(r.high), np.zeros_like(r.mean))
        for k, r in ranges.tensors.items()
    }
    result = quantize_body(body_of("midenet"), Ranges(flat, 1))
    assert np.isfinite(run(result.model, frames(1))).all()


def entry(**change):
    return {"low": [0.0], "high": [1.0], "mean": [0.5]} | change


def document(**change):
    base = {"schema": "edgeseg.calibration/1", "frames": 1, "provenance": {}, "tensors": {}}
    return json.dumps(base | change).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        document(schema="edgeseg.calibration/2"),
        document(frames="many"),
        document(frames=float("inf")),
        document(frames=None),
        document(provenance=3),
        document(tensors=[]),
        document(tensors={"a": 3}),
        document(tensors={"a": {"low": [0]}}),
        document(tensors={"a": entry(high=[1, 2])}),
        document(tensors={"a": entry(high=[-1])}),
        document(tensors={"a": entry(high=[float("nan")])}),
        document(tensors={"a": entry(high=[float("inf")])}),
        document(tensors={"a": entry(high=[1e300])}),
        document(tensors={"a": entry(mean=[float("nan")])}),
        document(tensors={"a": entry(high=["x"])}),
        document(tensors={"a": entry(high=[[1.0]])}),
        document(tensors={"a": entry(high=1.0, low=0.0, mean=0.5)}),
    ],
    ids=lambda c: c[-60:].decode(errors="replace"),
)
def test_a_file_that_holds_no_ranges_is_one_sentence(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"r\.json") as caught:
        Ranges.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_ranges_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Ranges.load(tmp_path / "r.json")
