"""Temperature scaling: the fit, and the way of T into the bundle and into a run."""

import json
import shutil
import sys

import numpy as np
import pytest

from edgeseg.bundle import Bundle, replace_manifest
from edgeseg.errors import ArtefactError, InputError
from edgeseg.scoring.scorers import SCORERS, anomaly_score
from tests.bundles import make_bundle

cv2 = pytest.importorskip("cv2")
ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from edgeseg.training import temperature  # noqa: E402

T0 = 1.7
SIZE = (64, 128)


def draw(logits, t, rng):
    """Labels from softmax(logits / t), class axis first, by the Gumbel trick."""
    return (logits / t + rng.gumbel(size=logits.shape)).argmax(axis=0)


def pixels(t, n=100_000, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, 19)).astype(np.float32)
    return logits, draw(logits.T, t, rng)


# --- the fit


@pytest.mark.parametrize("t", [0.2, 0.5, 1.0, 2.15, 6.0])
def test_the_temperature_that_labels_were_drawn_at_comes_back(t):
    assert temperature.fit_temperature(*pixels(t)) == pytest.approx(t, rel=0.02)


@pytest.mark.parametrize("t", [0.4, 3.0])
def test_no_temperature_of_a_fine_scan_fits_better(t):
    logits, labels = pixels(t, n=3000)
    scan = t * np.geomspace(0.8, 1.25, 2001)
    scaled = logits[:, None].astype(np.float64) / scan[:, None]
    at_label = np.take_along_axis(scaled, labels[:, None, None], axis=2)[..., 0]
    nll = (np.log(np.exp(scaled).sum(axis=2)) - at_label).mean(axis=0)
    best = temperature.fit_temperature(logits, labels)
    assert best == pytest.approx(scan[nll.argmin()], rel=3e-4)
    at_best = temperature.negative_log_likelihood(logits, labels, best)
    assert at_best <= nll.min() + 1e-12
    assert at_best == pytest.approx(nll.min(), abs=1e-7)


def test_many_pixels_are_taken_in_parts_without_a_difference(monkeypatch):
    logits, labels = pixels(2.0, n=1000)
    whole = temperature.fit_temperature(logits, labels)
    error = temperature.expected_calibration_error(logits, labels)
    monkeypatch.setattr(temperature, "_CHUNK", 7)
    assert temperature.fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-9)
    assert temperature.expected_calibration_error(logits, labels) == pytest.approx(error, abs=1e-12)


def test_a_temperature_beyond_the_bounds_becomes_the_bound():
    logits, _ = pixels(1.0, n=500)
    assert temperature.fit_temperature(logits, logits.argmax(axis=1)) == temperature.BOUNDS[0]
    assert temperature.fit_temperature(logits, logits.argmin(axis=1)) == temperature.BOUNDS[1]
    assert temperature.fit_temperature(np.zeros((9, 19)), np.zeros(9)) == 1.0


def test_calibration_error_is_that_of_the_definition():
    # Two classes: confidence 0.8 and right half of the time, 0.6 and always right.
    logits = np.log([[0.8, 0.2]] * 4 + [[0.4, 0.6]] * 2)
    error = temperature.expected_calibration_error(logits, [0, 0, 1, 1, 1, 1])
    assert error == pytest.approx((4 * 0.3 + 2 * 0.4) / 6)
    assert temperature.expected_calibration_error(*pixels(1.0)) < 0.01
    before = temperature.expected_calibration_error(*pixels(3.0))
    assert before > 0.2
    assert temperature.expected_calibration_error(*pixels(3.0), 3.0) < 0.01


# --- sampling


class Source:
    """Gives the frame's pixels back as logits."""

    def __init__(self):
        self.frames = 0

    def logits(self, frame):
        self.frames += 1
        planes = frame.transpose(2, 0, 1).astype(np.float32)
        return np.concatenate([planes, np.zeros((17, *frame.shape[:2]), np.float32)])


class Frame:
    """A frame of `side` x `side` pixels with one label per row."""

    image_path = "frame.png"

    def __init__(self, rows, side=32):
        self.rows, self.side = rows, side

    def load_image(self):
        return np.random.default_rng(0).integers(0, 256, (self.side, self.side, 3), np.uint8)

    def load_label(self):
        return np.repeat(np.array(self.rows, np.uint8)[:, None], self.side, axis=1)


def test_only_labelled_pixels_are_taken_and_the_choice_is_repeatable():
    source = Source()
    rows = [5] * 10 + [19] * 10 + [255] * 12
    frames = [Frame(rows), Frame([255] * 32), Frame(rows)]
    seen = []
    sample = temperature.sample_pixels(
        source, frames, (32, 32), per_frame=50, progress=lambda *a: seen.append(a)
    )
    assert sample.logits.shape == (100, 19)
    assert sample.logits.dtype == np.float32
    assert (sample.labels == 5).all()
    assert (sample.frames, source.frames) == (2, 2)  # the network saw no frame in vain
    assert seen == [(1, 3), (2, 3), (3, 3)]
    again = temperature.sample_pixels(source, frames, (32, 32), per_frame=50)
    assert (again.logits == sample.logits).all()
    assert not (sample.logits[:50] == sample.logits[50:]).all()
    everything = temperature.sample_pixels(source, frames[:1], (32, 32))
    expected = frames[0].load_image()[:10].reshape(-1, 3)
    np.testing.assert_array_equal(everything.logits[:, :3], expected)


def test_nothing_to_learn_from_and_broken_logits_are_refused():
    with pytest.raises(InputError, match="no pixel"):
        temperature.sample_pixels(Source(), [Frame([255] * 32)], (32, 32))
    source = Source()
    source.logits = lambda frame: np.full((20, *frame.shape[:2]), np.nan, np.float32)
    with pytest.raises(ArtefactError, match=r"frame\.png"):
        temperature.sample_pixels(source, [Frame([0] * 32)], (32, 32))


# --- the command


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small", *SIZE)


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


@pytest.fixture(scope="module")
def logits_of(original):
    """The bundle's logits, by ONNX Runtime and the definition of the head."""
    opened = Bundle.open(original)
    body = ort.InferenceSession(str(opened.body_path), providers=["CPUExecutionProvider"])
    return lambda frame: opened.head.logits(body.run(None, {"frame": frame[None]})[0][0])


@pytest.fixture(scope="module")
def data(tmp_path_factory, logits_of):
    """Labelled frames whose labels are drawn at T0, and an anomaly set."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    for folder in ("val/images", "val/labels", "odd/images", "odd/labels_masks"):
        (root / folder).mkdir(parents=True)
    for index in range(5):
        frame = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        label = draw(logits_of(frame)[:19], T0, rng).astype(np.uint8)
        label[: 2 * index] = 255
        mask = np.zeros(SIZE, np.uint8)
        mask[20:40, 30:60] = index != 2
        for folder, picture in (
            ("val/images", frame),
            ("val/labels", label),
            ("odd/images", frame),
            ("odd/labels_masks", mask),
        ):
            assert cv2.imwrite(str(root / folder / f"{index}.png"), picture)
    return root


ENGINE = ("--backend", "onnxruntime", "--threads", "1")


@pytest.fixture
def learned(edgeseg, bundle, data):
    """The document of the command; `bundle` has the temperature afterwards."""
    code, out, err = edgeseg(
        "calibrate-temperature", bundle, "--data", data, "--anomaly", data / "odd", *ENGINE,
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_document_says_what_was_learned_from_what(learned, bundle):
    assert learned["schema"] == "edgeseg.calibrate-temperature/1"
    assert learned["temperature"] == pytest.approx(T0, rel=0.02)
    assert learned["nll"]["after"] < learned["nll"]["before"]
    assert learned["ece_percent"]["after"] < 1 < learned["ece_percent"]["before"]
    assert learned["frames"] == 5
    assert learned["pixels"] == sum((64 - 2 * index) * 128 for index in range(5))
    assert (learned["network"], learned["precision"], learned["backend"], learned["size"]) == (
        "erfnet", "float32", "onnxruntime", "64x128",
    )  # fmt: skip
    assert learned["split"] == "val"
    assert learned["written"] == str(bundle / "bundle.json")
    assert "notes" not in learned


def test_the_grid_report_is_what_eval_measures(edgeseg, learned, original, data):
    (report,) = learned["anomaly"]
    assert (report["dataset"], report["protocol"]) == ("odd", "paper")
    assert (report["frames"], report["frames_left_out"]) == (4, 1)
    rows = {(row["scorer"], row["temperature"]): row for row in report["results"]}
    grid = sorted([0.5, 0.75, 1, 1.1, 1.6, 2.15, learned["temperature"]])
    assert list(rows) == [(name, t) for name in ("msp", "entropy") for t in grid]
    for t in (1, 2.15):
        code, out, _ = edgeseg(
            "eval", original, "--data", data, "--dataset", "anomaly:odd", *ENGINE, "--scorer",
            "msp,entropy", "--temperature", t, "--json",
        )  # fmt: skip
        assert code == 0
        for row in json.loads(out)["results"]:
            assert row == rows[row["scorer"], t]


def test_only_the_manifest_changes_and_thresholds_hold_at_the_new_temperature(
    learned, bundle, original, data, logits_of
):
    t = learned["temperature"]
    old, new = Bundle.open(original), Bundle.open(bundle)
    assert {p.name for p in bundle.iterdir()} == {p.name for p in original.iterdir()}
    assert (bundle / "bundle.json").stat().st_mode == (original / "bundle.json").stat().st_mode
    assert new.manifest.files == old.manifest.files
    assert {d.temperature for d in new.manifest.scorers.values()} == {t}
    logits = [logits_of(cv2.imread(str(p))) for p in sorted((data / "val/images").iterdir())]
    for name, defaults in new.manifest.scorers.items():
        if name == "maxlogit":
            assert defaults.threshold == old.manifest.scorers[name].threshold
            continue
        assert learned["thresholds"][name] == defaults.threshold
        scores = [
            anomaly_score(f, name, num_known=19, void_index=19, temperature=t) for f in logits
        ]
        share = np.mean(np.stack(scores) >= defaults.threshold)
        assert share == pytest.approx(0.01, abs=0.002)
    told = new.manifest.calibration["temperature_scaling"]
    assert told["temperature"] == t
    assert told["pixels"] == learned["pixels"]
    assert told["thresholds"]["frames"] == 5
    assert set(told["thresholds"]["values"]) == set(SCORERS) - {"maxlogit"}


def test_run_uses_the_learned_temperature(edgeseg, learned, bundle, data, logits_of, tmp_path):
    call = ("run", bundle, "--input", data / "val/images/3.png", "--scorer", "msp", *ENGINE)
    code, out, err = edgeseg(*call, "--save", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["temperature"] == learned["temperature"]
    assert document["threshold"] == learned["thresholds"]["msp"]
    (path,) = (tmp_path / "out").glob("*.npy")
    expected = anomaly_score(
        logits_of(cv2.imread(str(data / "val/images/3.png"))),
        "msp",
        num_known=19,
        void_index=19,
        temperature=learned["temperature"],
    )
    np.testing.assert_allclose(np.load(path), expected, atol=2e-3)
    code, out, err = edgeseg(*call, "--temperature", "1", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["temperature"], document["threshold"]) == (1.0, None)
    assert "--threshold" in err  # the default one would be wrong at 1


def test_eval_stays_at_one_unless_told(edgeseg, learned, bundle, original, data):
    options = ("--data", data, "--dataset", "anomaly:odd", *ENGINE, "--json")
    documents = []
    for folder in (bundle, original):
        code, out, _ = edgeseg("eval", folder, *options)
        assert code == 0
        documents.append(json.loads(out))
    assert documents[0] == documents[1]
    assert {row["temperature"] for row in documents[0]["results"]} == {1.0}
    t = learned["temperature"]
    code, out, _ = edgeseg("eval", bundle, *options, "--temperature", repr(t))
    assert {row["temperature"] for row in json.loads(out)["results"]} == {t}


def test_learning_twice_gives_the_same(edgeseg, learned, bundle, data):
    before = (bundle / "bundle.json").read_bytes()
    code, out, _ = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)
    assert code == 0
    assert (bundle / "bundle.json").read_bytes() == before
    assert f"T = {learned['temperature']:.4g}" in out


def test_no_write_leaves_the_bundle_alone(edgeseg, bundle, data):
    before = (bundle / "bundle.json").read_bytes()
    code, out, err = edgeseg(
        "calibrate-temperature", bundle, "--data", data / "val", "--dataset", "folder",
        "--no-write", "--every", "2", "--pixels-per-frame", "100", *ENGINE, "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert (document["frames"], document["pixels"], document["every"]) == (3, 300, 2)
    assert (document["written"], document["thresholds"]) == (None, None)
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_standalone_model_is_said_to_keep_its_temperature(edgeseg, bundle, data):
    (bundle / "model_msp.onnx").write_bytes(b"model")
    path = bundle / "bundle.json"
    document = json.loads(path.read_text())
    digest = "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    document["files"]["model_msp.onnx"] = {"sha256": digest, "bytes": 5}
    path.write_text(json.dumps(document))
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)
    assert code == 0, err
    assert "model_msp.onnx keeps the temperature" in err


def test_a_signature_is_said_to_hold_no_longer(edgeseg, bundle, data):
    said = "signature.json no longer holds"
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)
    assert code == 0, err
    assert said not in err
    (bundle / "signature.json").write_text("{}")
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE, "--no-write")
    assert code == 0, err
    assert said not in err
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)
    assert code == 0, err
    assert said in err
    assert "edgeseg bundle sign" in err


def test_a_network_is_only_told(edgeseg, data, tmp_path):
    call = ("calibrate-temperature", "midenet", "--data", data, "--size", "64x128", "--threads", 1)
    code, out, err = edgeseg(*call, "--grid", "1,2", "--scorer", "void", "--anomaly", data / "odd")
    assert code == 0, err
    assert "void" in out
    assert "edgeseg export midenet --temperature" in out
    code, out, err = edgeseg(*call, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["backend"], document["written"]) == ("torch", None)
    low, high = temperature.BOUNDS
    assert low <= document["temperature"] <= high


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["BUNDLE"], 2, "--data"),
        (["BUNDLE", "--data", "nowhere"], 7, "nowhere"),
        (["BUNDLE", "--data", "DATA", "--split", "test"], 7, "test"),
        (["BUNDLE", "--data", "DATA", "--dataset", "kitti"], 2, "kitti"),
        (["BUNDLE", "--data", "DATA", "--dataset", "camvid"], 7, "CamVid"),
        (["BUNDLE", "--data", "DATA", "--every", "0"], 2, "--every"),
        (["BUNDLE", "--data", "DATA", "--pixels-per-frame", "0"], 2, "--pixels-per-frame"),
        (["BUNDLE", "--data", "DATA", "--grid", "1,0"], 2, "--grid"),
        (["BUNDLE", "--data", "DATA", "--grid", "one"], 2, "--grid"),
        (["BUNDLE", "--data", "DATA", "--grid", ",".join("1" * 33)], 2, "--grid"),
        (["BUNDLE", "--data", "DATA", "--scorer", "magic"], 2, "magic"),
        (["BUNDLE", "--data", "DATA", "--size", "512x1024"], 2, "64x128"),
        (["BUNDLE", "--data", "DATA", "--weights", "x.pth"], 2, "--weights"),
        (["BUNDLE", "--data", "DATA", "--backend", "torch"], 2, "torch"),
        (["BUNDLE", "--data", "DATA", "--backend", "tensorrt"], 3, "tensorrt"),
        (["BUNDLE", "--data", "DATA", "--anomaly", "nothing"], 7, "nothing"),
        (["BUNDLE", "--data", "DATA", "--anomaly", "DATA"], 7, "images"),
        (["resnet", "--data", "DATA"], 7, "resnet"),
        (["midenet", "--data", "DATA", "--backend", "openvino"], 2, "openvino"),
    ],
)
def test_bad_requests_end_with_one_sentence_and_their_code(
    edgeseg, bundle, data, arguments, code, says
):
    before = (bundle / "bundle.json").read_bytes()
    places = {"BUNDLE": bundle, "DATA": data}
    got, out, err = edgeseg("calibrate-temperature", *(places.get(a, a) for a in arguments))
    assert (got, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_network_without_shipped_weights_asks_for_some(edgeseg, data, monkeypatch):
    monkeypatch.setattr("edgeseg.networks.zoo.shipped_weights", lambda name: None)
    code, out, err = edgeseg("calibrate-temperature", "erfnet", "--data", data)
    assert (code, out) == (2, "")
    assert "--weights" in err
    assert err.count("\n") == 1


def test_frames_without_a_label_are_refused(edgeseg, bundle, data, tmp_path):
    shutil.copytree(data / "val" / "images", tmp_path / "set" / "images")
    (tmp_path / "set" / "labels").mkdir()
    for image in (tmp_path / "set" / "images").iterdir():
        empty = np.full(SIZE, 255, np.uint8)
        assert cv2.imwrite(str(tmp_path / "set" / "labels" / image.name), empty)
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", tmp_path / "set", *ENGINE)
    assert code == 7
    assert "labelled" in err
    assert err.count("\n") == 1


def test_without_torch_it_says_what_to_install(edgeseg, bundle, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)
    assert code == 3
    assert "edgeseg[build]" in err


def test_a_damaged_bundle_is_refused(edgeseg, bundle, data):
    (bundle / "body.onnx").write_bytes(b"")
    assert edgeseg("calibrate-temperature", bundle, "--data", data, *ENGINE)[0] == 4


def test_a_manifest_that_cannot_be_written_stays_as_it_was(bundle, monkeypatch):
    opened = Bundle.open(bundle)
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeseg.bundle.os.replace", full)
    changed = temperature.with_temperature(opened.manifest, 2.0, {}, {})
    with pytest.raises(InputError, match="No space left"):
        replace_manifest(opened, changed)
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before


@pytest.mark.data
def test_the_published_midenet_is_overconfident(edgeseg, shared_data):
    code, out, err = edgeseg(
        "calibrate-temperature", "midenet", "--weights",
        shared_data / "weights" / "midenet_void20.pth", "--data", shared_data / "cityscapes",
        "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["temperature"] == pytest.approx(1.198, abs=0.03)
    assert document["pixels"] == 100_000
    assert document["ece_percent"]["after"] < 1.5 < 3.5 < document["ece_percent"]["before"]
