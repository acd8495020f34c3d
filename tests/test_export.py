"""Exported bodies compute what torch computes, in a form that engines run well."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgeseg.bundle import BODY, CALIBRATION  # noqa: E402
from edgeseg.errors import ArtefactError, EdgesegError, InputError, UsageError  # noqa: E402
from edgeseg.export import exporter  # noqa: E402
from edgeseg.export.body import export_body  # noqa: E402
from edgeseg.export.dead_channels import drop_dead_channels  # noqa: E402
from edgeseg.export.exporter import (  # noqa: E402
    MAX_LOGIT_ERROR,
    MIN_EQUAL_LABELS,
    calibration_frames,
    check_parity,
    export_bundle,
)
from edgeseg.export.float16 import to_float16  # noqa: E402
from edgeseg.export.graph import Graph  # noqa: E402
from edgeseg.export.passes import canonicalise  # noqa: E402
from edgeseg.networks import NETWORKS  # noqa: E402
from edgeseg.scoring.scorers import SCORERS, class_map  # noqa: E402
from tests.exported import (  # noqa: E402
    HEIGHT,
    WIDTH,
    body_of,
    frames,
    network,
    run,
    torch_logits,
)

MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VARIANTS = [
    *((name, {}) for name in NETWORKS),
    *((name, MEAN_STD) for name in NETWORKS),
    ("enet", {"initial_pool": 3, "initial_pool_first": False, "initial_slopes": 1,
              "inner_biases": False, "rows_first": False, "unpool_kernel": 2,
              "unpool_expand_relu": False}),
    ("bisenet", {"fusion_two_convs": True, "auxiliary": False}),
    ("midenet", {"published_order": True}),
    ("erfnet", {"isomax": True}),
    ("midenet", {"num_outputs": 19, "isomax": True}),
]  # fmt: skip


def ident(value):
    return value if isinstance(value, str) else "+".join(value) or "published"


def logits_of(model, module, frame):
    head = module.head_spec()
    h, w = HEIGHT // head.factor, WIDTH // head.factor
    (features,) = run(model, [frame])
    return head.logits(features.reshape(h, w, -1).transpose(2, 0, 1))


# --- the float body


@pytest.mark.parametrize(("name", "structure"), VARIANTS, ids=ident)
def test_body_and_head_compute_what_torch_computes(name, structure):
    module, model = network(name, **structure), body_of(name, **structure)
    errors = []
    for frame in frames(2):
        ours, theirs = logits_of(model, module, frame), torch_logits(module, frame)
        assert ours.shape == theirs.shape == (module.structure.num_outputs, HEIGHT, WIDTH)
        assert theirs.std() > 0.05  # a dead network would agree with anything
        known = module.structure.num_known
        best = np.sort(theirs[:known], axis=0)
        flipped = class_map(ours, num_known=known) != theirs[:known].argmax(0)
        # Of 8192 pixels 0.8 may differ; random weights leave more of them on the edge between
        # two classes than trained ones, so those that differ must be ties.
        assert flipped.mean() < 1e-4 or (best[-1] - best[-2])[flipped].max() < 1e-4
        errors.append(np.abs(ours - theirs).ravel())
    # ENet's pooling remembers where the maximum was; where two values all but tie, rounding
    # decides which, and single logits follow it.
    error = np.quantile(np.concatenate(errors), 0.99 if name == "enet" else 1.0)
    assert error < 1e-3 * max(1, theirs.std())


@pytest.mark.parametrize(("name", "structure"), VARIANTS, ids=ident)
def test_the_graph_is_one_that_every_engine_takes(name, structure):
    model = body_of(name, **structure)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    (frame,), (features,) = model.graph.input, model.graph.output
    assert (frame.name, features.name) == ("frame", "features")
    assert frame.type.tensor_type.elem_type == TensorProto.UINT8
    assert features.type.tensor_type.elem_type == TensorProto.FLOAT
    head = network(name, **structure).head_spec()
    area = HEIGHT * WIDTH // head.factor**2
    assert [d.dim_value for d in frame.type.tensor_type.shape.dim] == [1, HEIGHT, WIDTH, 3]
    assert [d.dim_value for d in features.type.tensor_type.shape.dim] == [1, area, head.channels_in]
    kinds = {n.op_type for n in model.graph.node}
    assert not kinds & {
        "BatchNormalization", "MaxUnpool", "ScatterElements", "ScatterND", "Shape", "Identity",
        "Constant", "Loop", "If", "Dropout",
    }  # fmt: skip
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    used = {i for n in model.graph.node for i in n.input}
    assert {c.name for c in model.graph.initializer} <= used


@pytest.mark.parametrize(("name", "additions"), [("midenet", 7), ("bisenet", 11)])
def test_every_batch_norm_is_inside_a_convolution(name, additions):
    # Those of the residual blocks, of the paths, and of MiDE-Net's pooled colours.
    kinds = [n.op_type for n in body_of(name).graph.node]
    assert kinds.count("Add") == additions


@pytest.mark.parametrize("name", NETWORKS)
def test_exporting_leaves_the_network_as_it_was(name):
    module = network(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    mode, normalise = module.training, module.normalise
    export_body(module, HEIGHT, WIDTH)
    assert module.training == mode
    assert module.normalise is normalise
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_network_gives_the_same_file(name):
    again = export_body(network(name), HEIGHT, WIDTH)
    assert again.SerializeToString() == body_of(name).SerializeToString()


@pytest.mark.parametrize(
    ("name", "size", "divisor"),
    [
        ("enet", (60, 128), 8),
        ("erfnet", (64, 124), 8),
        ("midenet", (63, 127), 8),
        ("bisenet", (64, 120), 32),
        ("bisenet", (80, 128), 32),
        ("erfnet", (0, 128), 8),
    ],
)
def test_sides_that_do_not_divide_are_refused_with_the_reason(name, size, divisor):
    with pytest.raises(UsageError, match=f"divisible by {divisor}") as caught:
        export_body(network(name), *size)
    assert f"{size[0]}x{size[1]}" in str(caught.value)
    assert caught.value.exit_code == 2


# --- channels that cannot matter


def chain(*, bias=None, activation="Relu", slope=0.25, zero=(), unread=(), width=4, tail=None):
    """x -> convolution to ``width`` channels -> activation -> convolution to 5."""
    rng = np.random.default_rng(3)
    first = rng.normal(size=(width, 3, 3, 3)).astype(np.float32)
    first[list(zero)] = 0
    offset = rng.normal(size=width).astype(np.float32) if bias is None else np.float32(bias)
    second = rng.normal(size=(5, width, 3, 3)).astype(np.float32)
    second[:, list(unread)] = 0
    constants = {"w1": first, "b1": offset, "w2": second}
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["y"], pads=[1] * 4, name="first")]
    last = "y"
    if activation:
        inputs = ["y"]
        if activation == "PRelu":
            constants["slope"] = np.full((width, 1, 1), slope, np.float32)
            inputs.append("slope")
        nodes.append(helper.make_node(activation, inputs, ["z"], name="act"))
        last = "z"
    nodes.append(helper.make_node("Conv", [last, "w2"], ["out"], pads=[1] * 4, name="second"))
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 5, 8, 8])]
    if tail:
        nodes.append(helper.make_node(tail, [last], ["also"], name="tail"))
        outputs.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, [1, width, 8, 8]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drop(model):
    """How many channels went, having checked that nothing else changed."""
    import onnxruntime as ort

    graph = Graph(model)
    graph.infer_shapes()
    removed = drop_dead_channels(graph)
    x = np.random.default_rng(5).normal(size=(1, 3, 8, 8)).astype(np.float32)
    providers = ["CPUExecutionProvider"]
    before, after = (
        ort.InferenceSession(m.SerializeToString(), providers=providers).run(None, {"x": x})
        for m in (model, graph.to_model())
    )
    for a, b in zip(before, after, strict=True):
        # The same sums without their zeros; ONNX Runtime may add them in another order.
        np.testing.assert_allclose(a, b, atol=1e-5)
    return removed


NOTHING = (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({}, 0),
        ({"zero": [1], "bias": (1, -0.5, 1, 1)}, 1),
        ({"zero": [1], "bias": (1, 0, 1, 1)}, 1),
        # A constant would be wrong where the next convolution pads.
        ({"zero": [1], "bias": (1, 0.5, 1, 1)}, 0),
        ({"zero": [1], "bias": (1, -0.5, 1, 1), "activation": "PRelu"}, 0),
        ({"zero": [1], "bias": (1, 0, 1, 1), "activation": "PRelu"}, 1),
        ({"zero": [1], "bias": (1, -0.5, 1, 1), "activation": None}, 0),
        ({"zero": [1], "bias": (1, 0, 1, 1), "activation": None}, 1),
        ({"unread": [0, 3]}, 2),
        ({"unread": [0, 3], "activation": "PRelu"}, 2),
        ({"unread": [0], "zero": [2], "bias": (1, 1, -1, 1)}, 2),
        ({"unread": [0, 1, 2, 3]}, 3),  # a convolution keeps one channel
        # What others read too stays.
        ({"unread": [0, 3], "tail": "Abs"}, 0),
        # Whole vectors: 32 channels of which 10 are dead stay 32, of which 17 are dead become 16.
        ({"unread": range(10), "width": 32}, 0),
        ({"unread": range(17), "width": 32}, 16),
    ],
    ids=str,
)
def test_only_channels_that_cannot_matter_go(options, removed):
    assert drop(chain(**options)) == removed


def test_removal_goes_on_through_the_network():
    model = chain(unread=[0, 1])
    graph = Graph(model)
    # A convolution in front, of which only the two unread channels read its first channel.
    weight = np.ones((3, 3, 1, 1), np.float32)
    graph.constants["w1"] = graph.constants["w1"].copy()
    graph.constants["w1"][2:, 0] = 0
    front = helper.make_node("Conv", ["x", graph.constant("w0", weight)], ["front"], name="front")
    graph.insert_before(graph.nodes[0], front)
    graph.nodes[1].input[0] = "front"
    assert drop(graph.to_model()) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_channels_of_a_network_go_and_leave_its_function(name):
    import copy

    module = copy.deepcopy(network(name))
    pairs = {
        "enet": ("stage2.0.conv2", "stage2.0.bn2"),
        "erfnet": ("encoder.layers.7.conv1x3_1", "encoder.layers.7.bn1"),
        "bisenet": ("cp.resnet.layer4.0.conv1", "cp.resnet.layer4.0.bn1"),
        "midenet": ("bottleneck2.1.conv2", "bottleneck2.1.bn2"),
    }
    conv, norm = (module.get_submodule(path) for path in pairs[name])
    with torch.no_grad():
        conv.weight[:20] = 0
        if conv.bias is not None:
            conv.bias[:20] = 0
        norm.running_mean[:20] = 0
        # Negative behind ReLU; behind PReLU only zero is nothing.
        norm.bias[:20] = 0 if name == "enet" else -0.3
    slim = export_body(module, HEIGHT, WIDTH)
    whole = export_body(module, HEIGHT, WIDTH, drop_dead=False)
    shrunk = sum(numpy_helper.to_array(c).size for c in whole.graph.initializer) - sum(
        numpy_helper.to_array(c).size for c in slim.graph.initializer
    )
    assert shrunk > 0
    batch = frames(2)
    np.testing.assert_allclose(run(slim, batch), run(whole, batch), atol=1e-4)


# --- float16


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_halves_the_file_and_stays_near(name):
    body = body_of(name)
    half = to_float16(body)
    onnx.checker.check_model(half, full_check=True)
    assert half.ByteSize() < 0.65 * body.ByteSize()
    scales = {i for n in half.graph.node if n.op_type == "Resize" for i in n.input[1:]}
    wide = {c.name for c in half.graph.initializer if c.data_type == TensorProto.FLOAT}
    assert wide <= scales
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    batch = frames(2)
    full, less = run(body, batch), run(half, batch)
    # 11 bits of mantissa through some twenty layers; ENet's remembered maxima move on ties.
    relative = np.mean((full - less) ** 2) / np.mean((full - full.mean()) ** 2)
    assert relative < (1e-2 if name == "enet" else 1e-4)


def test_float16_saturates_weights_instead_of_making_them_infinite():
    body = onnx.ModelProto()
    body.CopyFrom(body_of("midenet"))
    graph = Graph(body)
    name = next(n.input[1] for n in graph.nodes if n.op_type == "Conv")
    graph.constants[name] = graph.constants[name] * np.float32(1e9)
    half = to_float16(graph.to_model())
    assert all(np.isfinite(numpy_helper.to_array(c)).all() for c in half.graph.initializer)


# --- the parity check itself


def test_a_wrong_graph_is_noticed():
    module = network("midenet")
    graph = Graph(body_of("midenet"))
    name = [n for n in graph.nodes if n.op_type == "Conv"][5].input[1]
    graph.constants[name] = graph.constants[name] * np.float32(1.05)
    head = exporter._last(module.head_spec())
    with pytest.raises(ArtefactError, match="report it"):
        check_parity(module, graph.to_model(), head, frames(1))
    parity = check_parity(module, body_of("midenet"), head, frames(1))
    assert parity.equal_labels >= MIN_EQUAL_LABELS
    assert parity.logit_error <= MAX_LOGIT_ERROR


# --- the graph view


def test_passes_do_not_change_the_callers_model():
    model = chain(unread=[0])
    before = model.SerializeToString()
    graph = Graph(model)
    graph.infer_shapes()
    drop_dead_channels(graph)
    canonicalise(graph)
    assert model.SerializeToString() == before


def test_an_input_that_goes_elsewhere_is_refused_in_words():
    from edgeseg.export.passes import attach_frame

    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["rgb"], ["features"])],
            "g",
            [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 3, 8, 8])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    graph = Graph(model)
    with pytest.raises(EdgesegError, match="Relu"):
        attach_frame(graph, "rgb", 8, 8, None, None)


# --- calibration frames


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of five pictures, some of them deeper."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep" / "er").mkdir(parents=True)
    for i, frame in enumerate(frames(5, seed=2, height=96, width=160)):
        where = folder if i < 3 else folder / "deep" / "er"
        cv2.imwrite(str(where / f"{i}.png"), frame)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_calibration_frames_are_searched_deep_and_spread_evenly(pictures):
    assert [f.shape for f in calibration_frames(pictures, 64, 128, 16)] == [(64, 128, 3)] * 5
    for limit in (1, 2, 3, 4):
        assert 1 <= len(calibration_frames(pictures, 64, 128, limit)) <= limit


def test_calibration_without_frames_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        calibration_frames(tmp_path / "absent", 64, 128, 4)
    with pytest.raises(InputError, match="no image"):
        calibration_frames(tmp_path, 64, 128, 4)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"broken\.png"):
        calibration_frames(tmp_path, 64, 128, 4)


# --- whole bundles


def small(destination, **options):
    options = {"height": HEIGHT, "width": WIDTH} | options
    return export_bundle(network("midenet"), destination, **options)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_bundle_of_every_precision(tmp_path, pictures, precision):
    from edgeseg.runtime.session import Session

    said = []
    bundle = small(
        tmp_path / "b",
        precision=precision,
        calibration=pictures,
        standalone=["void", "energy"],
        progress=said.append,
    )
    manifest = bundle.manifest
    assert said
    assert bundle.size == (HEIGHT, WIDTH)
    assert (manifest.network, manifest.precision) == ("midenet", precision)
    assert tuple(manifest.scorers) == SCORERS
    assert all(d.threshold is not None for d in manifest.scorers.values())
    assert manifest.calibration["frames"] == 5
    assert manifest.accuracy["float_parity"]["equal_labels_percent"] >= 99.99
    expected = {BODY, "head.safetensors", "golden.safetensors"}
    expected |= {"model_void.onnx", "model_energy.onnx"}
    assert set(manifest.files) == expected | ({CALIBRATION} if precision == "int8" else set())
    assert sorted(os.listdir(bundle.path)) == sorted([*manifest.files, "bundle.json"])
    assert os.listdir(tmp_path) == ["b"]
    # The one-file model says what the session says.
    (frame,) = frames(1)
    with Session(bundle, backend="onnxruntime", scorer="void", threads=1) as engine:
        result = engine.run(frame)
        alone = onnx.load(bundle.path / "model_void.onnx")
        from tests.exported import session

        labels, score = session(alone).run(["class_map", "score"], {"frame": frame[None]})
        assert (labels[0] == result.class_map).mean() > 0.9999
        np.testing.assert_allclose(score[0], result.score.astype(np.float32), atol=2e-3)


def test_thresholds_are_the_99th_percentile_at_the_bundles_temperature(tmp_path, pictures):
    from edgeseg.scoring.scorers import anomaly_score

    for temperature in (1.0, 2.15):
        bundle = small(tmp_path / "b", calibration=pictures, temperature=temperature)
        logits = [
            torch_logits(network("midenet"), f) for f in calibration_frames(pictures, 64, 128, 16)
        ]
        for scorer, defaults in bundle.manifest.scorers.items():
            assert defaults.temperature == temperature
            scores = [
                anomaly_score(
                    f, scorer, num_known=19, void_index=19, temperature=temperature
                ).ravel()
                for f in logits
            ]
            expected = np.quantile(np.concatenate(scores), 0.99)
            spread = np.std(np.concatenate(scores))
            # It is taken of every fifth pixel.
            assert defaults.threshold == pytest.approx(expected, abs=0.1 * float(spread))


def test_ranges_of_a_bundle_make_the_same_bundle_without_frames(tmp_path, pictures):
    first = small(tmp_path / "a", precision="int8", calibration=pictures)
    second = small(tmp_path / "b", precision="int8", calibration=first.path / CALIBRATION)
    assert {k: v.threshold for k, v in first.manifest.scorers.items()} == {
        k: v.threshold for k, v in second.manifest.scorers.items()
    }
    a, b = (
        {c.name: numpy_helper.to_array(c) for c in onnx.load(bundle.body_path).graph.initializer}
        for bundle in (first, second)
    )
    assert a.keys() == b.keys()
    for name, value in a.items():
        # Ranges travel with five digits.
        if value.dtype == np.int8:
            assert np.abs(value.astype(int) - b[name]).max() <= 1
        elif name.endswith("_scale"):
            np.testing.assert_allclose(value, b[name], rtol=1e-3)


def test_thresholds_at_another_temperature_are_not_passed_on(tmp_path, pictures):
    first = small(tmp_path / "a", precision="int8", calibration=pictures)
    second = small(
        tmp_path / "b", precision="int8", calibration=first.path / CALIBRATION, temperature=2.15
    )
    thresholds = {k: v.threshold for k, v in second.manifest.scorers.items()}
    assert thresholds["maxlogit"] == first.manifest.scorers["maxlogit"].threshold
    assert thresholds["msp"] is None


def test_int8_without_ranges_says_how_to_get_them(tmp_path):
    with pytest.raises(UsageError, match="--calibration"):
        small(tmp_path / "b", precision="int8")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -1.0},
        {"standalone": ["magic"]},
        {"precision": "int4"},
        {"height": 60},
    ],
    ids=str,
)
def test_options_that_cannot_be_leave_nothing_behind(tmp_path, options):
    with pytest.raises(UsageError):
        small(tmp_path / "b", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", [{"msp": "x"}, {"msp": float("nan")}, {"msp": None}, [], 3])
def test_damaged_thresholds_in_ranges_are_one_sentence(tmp_path, pictures, damage):
    first = small(tmp_path / "a", precision="int8", calibration=pictures)
    document = json.loads((first.path / CALIBRATION).read_text())
    document["provenance"]["thresholds"] = damage
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match=r"r\.json"):
        small(tmp_path / "b", precision="int8", calibration=tmp_path / "r.json")
    assert not (tmp_path / "b").exists()


def test_a_network_with_other_classes_is_refused_in_words(tmp_path):
    module = network("midenet", num_outputs=12)
    with pytest.raises(EdgesegError, match="12") as caught:
        export_bundle(module, tmp_path / "b", height=HEIGHT, width=WIDTH)
    assert "damaged" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_failing_engine_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise ArtefactError("engine 'x' cannot load it")

    monkeypatch.setattr(exporter, "golden_of", fail)
    with pytest.raises(ArtefactError):
        small(tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_published_weights_keep_their_promise_at_full_size(shared_data):
    """One published network at 512x1024 on a real frame; dead channels and all."""
    from edgeseg.data.samples import read_image
    from edgeseg.data.transforms import resize_frame
    from edgeseg.networks.checkpoints import load_network

    module = load_network("midenet", shared_data / "weights" / "midenet_void20.pth")
    image = sorted(Path(shared_data / "anomaly" / "fs_static" / "images").iterdir())[0]
    frame = resize_frame(read_image(image), (512, 1024))
    body = export_body(module, 512, 1024)
    parity = check_parity(module, body, exporter._last(module.head_spec()), [frame])
    assert parity.equal_labels >= 0.9999
