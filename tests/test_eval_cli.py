"""``edgeseg eval`` with a stand-in network: figures, shards, merging, refusals."""

import contextlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner, Result

from edgeseg.bundle import Bundle
from edgeseg.cli import eval as eval_module
from edgeseg.cli.eval_targets import open_dataset
from edgeseg.data import AnomalySet, CamVid
from edgeseg.data.transforms import resize_frame, resize_label
from edgeseg.errors import ArtefactError, EdgesegError, InputError, UsageError
from edgeseg.evaluation.evaluate import Prediction, evaluate
from edgeseg.evaluation.metrics import AnomalyMetric
from edgeseg.evaluation.state import EvaluationState, ScorerSpec
from edgeseg.scoring.scorers import anomaly_score
from tests.bundles import make_bundle

SIZE = (16, 32)
APP = typer.Typer(pretty_exceptions_enable=False)
APP.command()(eval_module.eval_command)


class Brightness:
    """Scores by the blue channel and classifies by the green one."""

    network = "erfnet"
    artefact = "0" * 64
    precision = "float32"
    backend = "torch"
    score_dtype = "float16"
    scorers = ("msp", "void")

    def predict(self, frame: np.ndarray, scorers: Sequence[ScorerSpec]) -> Prediction:
        value = frame[..., 0].astype(np.float16) / np.float16(255)
        return Prediction(
            (frame[..., 1] % 19).astype(np.uint8),
            {
                s: value if s.name == "msp" else (-value / s.temperature).astype("f2")
                for s in scorers
            },
        )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven anomaly frames, two of them without an anomaly, and four of CamVid."""
    rng = np.random.default_rng(0)
    root = tmp_path / "sets" / "street"
    (root / "images").mkdir(parents=True)
    (root / "labels_masks").mkdir()
    for index in range(7):
        label = np.zeros((32, 64), np.uint8)
        if index not in (2, 5):
            label[8:20, 10 + index : 40] = 1
        label[:4] = 255
        photo = rng.integers(0, 200, (32, 64, 3)).astype(np.uint8)
        photo[..., 0] += (label == 1).astype(np.uint8) * 50
        cv2.imwrite(str(root / "images" / f"{index}.png"), photo)
        cv2.imwrite(str(root / "labels_masks" / f"{index}.png"), label)
    for folder in ("val", "valannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
    for index in range(4):
        photo = rng.integers(0, 256, (16, 32, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "camvid" / "val" / f"{index}.png"), photo)
        label = rng.integers(0, 12, (16, 32)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "camvid" / "valannot" / f"{index}.png"), label)
    return tmp_path / "sets"


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_module, "open_target", lambda *_: (Brightness(), SIZE, []))


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(APP, [str(a) for a in arguments])


def document(*arguments: Any) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.exception or result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def refusal(*arguments: Any) -> EdgesegError:
    error = run(*arguments).exception
    assert isinstance(error, EdgesegError), error
    return error


@pytest.mark.usefixtures("brightness")
def test_document_has_the_promised_keys_and_the_figures_of_sklearn(data: Path) -> None:
    found = document("erfnet", "--data", data, "--dataset", "anomaly:street")
    assert found["schema"] == "edgeseg.eval/1"
    assert (found["network"], found["precision"], found["backend"]) == (
        "erfnet",
        "float32",
        "torch",
    )
    assert (found["dataset"], found["protocol"], found["frames"]) == ("street", "paper", 5)
    assert found["miou_percent"] is None
    assert found["frames_left_out"] == 2
    assert [(r["scorer"], r["temperature"]) for r in found["results"]] == [("msp", 1), ("void", 1)]
    truth, score = [], []
    for sample in AnomalySet(data / "street"):
        label = cv2.resize(sample.load_label(), SIZE[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if (label == 1).any():
            frame = resize_frame(sample.load_image(), SIZE)
            truth.append(label[label < 255])
            score.append((frame[..., 0].astype(np.float16) / np.float16(255))[label < 255])
    expected = 100 * average_precision_score(np.concatenate(truth), np.concatenate(score))
    assert found["results"][0]["auprc_percent"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.usefixtures("brightness")
def test_protocol_scorer_temperature_and_every_are_kept(data: Path) -> None:
    found = document(
        "erfnet", "--data", data, "--dataset", "anomaly:street", "--protocol", "all",
        "--scorer", "void", "--temperature", "2.15", "--every", "3",
    )  # fmt: skip
    assert (found["frames"], found["every"], found["protocol"]) == (3, 3, "all")
    assert [(r["scorer"], r["temperature"]) for r in found["results"]] == [("void", 2.15)]


@pytest.mark.usefixtures("brightness")
def test_merged_shards_give_exactly_the_figures_of_the_whole(data: Path, tmp_path: Path) -> None:
    call = ("erfnet", "--data", data, "--dataset", "anomaly:street", "--components")
    whole = document(*call)
    files = [tmp_path / f"part{i}.npz" for i in (1, 2, 3)]
    for index, file in enumerate(files, start=1):
        part = document(*call, "--shard", f"{index}/3", "-o", file)
        assert part["shard"] == f"{index}/3"
    for arguments in (
        ("--merge", *files),
        ("erfnet", "--merge", files[2], "--merge", files[0], "--merge", files[1]),
        ("--merge", ",".join(map(str, files))),
    ):
        assert document(*arguments) == whole
    assert whole["results"][0]["components"]["labelled"] == 5
    saved = tmp_path / "whole.npz"
    assert document("--merge", *files, "-o", saved)["results"] == whole["results"]
    assert document("--merge", saved) == whole


@pytest.mark.usefixtures("brightness")
def test_merged_miou_is_that_of_the_whole(data: Path, tmp_path: Path) -> None:
    call = ("erfnet", "--data", data.parent / "camvid", "--dataset", "camvid")
    whole = document(*call)
    assert (whole["frames"], whole["results"]) == (4, [])
    assert 0 < whole["miou_percent"] < 20
    assert whole["iou_percent"]["train"] is None
    for index in (1, 2):
        document(*call, "--shard", f"{index}/2", "-o", tmp_path / f"{index}.npz")
    merged = document("--merge", tmp_path / "1.npz", tmp_path / "2.npz")
    assert merged == whole


@pytest.mark.usefixtures("brightness")
def test_shards_that_do_not_make_a_whole_are_refused(data: Path, tmp_path: Path) -> None:
    call = ("erfnet", "--data", data, "--dataset", "anomaly:street")
    one, other, foreign = (tmp_path / n for n in ("1.npz", "2.npz", "3.npz"))
    document(*call, "--shard", "1/2", "-o", one)
    document(*call, "--shard", "2/2", "-o", other)
    document(*call, "--shard", "2/2", "-o", foreign, "--protocol", "all")
    assert "shard 2/2 is missing" in str(refusal("--merge", one))
    assert "given twice" in str(refusal("--merge", one, one))
    assert "differ in protocol" in str(refusal("--merge", one, foreign))
    assert isinstance(refusal("--merge", tmp_path / "none.npz"), InputError)
    assert "not of enet" in str(refusal("enet", "--merge", one, other))
    assert "exclude each other" in str(refusal("--merge", one, "--shard", "1/2"))


@pytest.mark.usefixtures("brightness")
def test_a_shard_without_a_name_is_written_beside(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = document("erfnet", "--data", data, "--dataset", "anomaly:street", "--shard", "1/4")
    assert found["state_file"] == "eval-anomaly-street-1of4.npz"
    assert (tmp_path / found["state_file"]).is_file()


@pytest.mark.usefixtures("brightness")
def test_damaged_state_files_are_refused(data: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    document("erfnet", "--data", data, "--dataset", "anomaly:street", "--components", "-o", good)
    content = good.read_bytes()
    rng = np.random.default_rng(0)
    bad = tmp_path / "bad.npz"
    damaged = [b"", b"PK\x03\x04", content[: len(content) // 2]]
    for _ in range(60):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), 3):
            changed[at] ^= int(rng.integers(1, 256))
        damaged.append(bytes(changed))
    for content in damaged:
        bad.write_bytes(content)
        # A flipped byte may leave a valid file; whatever else happens is one sentence.
        with contextlib.suppress(ArtefactError):
            EvaluationState.load(bad).results()


@pytest.mark.usefixtures("brightness")
@pytest.mark.parametrize(
    "change",
    [
        {"num_shards": 10**9},
        {"num_shards": float("inf")},
        {"shards": [1, 1], "num_shards": 2},
        {"shards": [2]},
        {"shards": []},
    ],
    ids=str,
)
def test_shards_of_a_state_file_are_not_trusted(
    data: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    document("erfnet", "--data", data, "--dataset", "anomaly:street", "-o", good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "header.json":
                content = json.dumps(json.loads(content) | change).encode()
            target.writestr(name, content)
    assert isinstance(refusal("--merge", bad), ArtefactError)


@pytest.mark.usefixtures("brightness")
def test_the_first_missing_shard_of_many_is_named(data: Path, tmp_path: Path) -> None:
    call = ("erfnet", "--data", data, "--dataset", "anomaly:street")
    for index in (1, 2, 10000):
        found = document(*call, "--shard", f"{index}/10000", "-o", tmp_path / f"{index}.npz")
        assert found["shard"] == f"{index}/10000"
    error = refusal("--merge", *(tmp_path / f"{index}.npz" for index in (10000, 1, 2)))
    assert "shard 3/10000 is missing" in str(error)
    assert "10000 at most" in str(refusal(*call, "--shard", "1/1000000000"))


def test_a_pickle_in_a_state_file_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "pickle.npz"
    np.savez(path, confusion=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtefactError):
        EvaluationState.load(path)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--scorer", "msp,nonsense", "nonsense"),
        ("--temperature", "0", "positive"),
        ("--temperature", "nan", "positive"),
        ("--protocol", "mine", "paper, all"),
        ("--size", "512", "HxW"),
        ("--size", "0x8", "HxW"),
        ("--resize", "area", "runtime, pillow"),
        ("--every", "0", "--every"),
        ("--shard", "3/2", "--shard"),
        ("--dataset", "kitti", "anomaly:FOLDER"),
        ("--backend", "openvino", "edgeseg export"),
    ],
)
def test_bad_options_are_named(data: Path, option: str, value: str, word: str) -> None:
    error = refusal("erfnet", "--data", data, "--dataset", "anomaly:street", option, value)
    assert isinstance(error, UsageError)
    assert word in str(error)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("brightness")
def test_missing_input_is_named(data: Path) -> None:
    assert isinstance(refusal("erfnet"), UsageError)
    assert isinstance(refusal("erfnet", "--data", "/nowhere", "--dataset", "camvid"), InputError)
    missing = refusal("erfnet", "--data", data, "--dataset", "anomaly:other")
    assert isinstance(missing, InputError)
    assert "'other'" in str(missing)
    (data / "street" / "images" / "3.png").write_bytes(b"\x89PNG")
    broken = refusal("erfnet", "--data", data, "--dataset", "anomaly:street")
    assert isinstance(broken, InputError)
    assert "3.png" in str(broken)


@pytest.mark.usefixtures("brightness")
def test_a_set_without_a_frame_to_evaluate_is_refused(data: Path) -> None:
    for mask in (data / "street" / "labels_masks").iterdir():
        cv2.imwrite(str(mask), np.zeros((32, 64), np.uint8))
    error = refusal("erfnet", "--data", data, "--dataset", "anomaly:street")
    assert isinstance(error, InputError)
    assert "--protocol all" in str(error)
    found = document("erfnet", "--data", data, "--dataset", "anomaly:street", "--protocol", "all")
    assert found["results"][0]["auprc_percent"] is None


def test_target_that_is_nothing_is_refused(data: Path) -> None:
    error = refusal("resnet", "--data", data, "--dataset", "anomaly:street")
    assert isinstance(error, InputError)
    assert "neither a bundle nor a network" in str(error)


@pytest.mark.usefixtures("brightness")
def test_table_shows_every_scorer(data: Path) -> None:
    result = run("erfnet", "--data", data, "--dataset", "anomaly:street", "--components")
    assert result.exit_code == 0
    for word in ("msp", "void", "AuPRC", "FPR95", "mean F1", "5 frames"):
        assert word in result.stdout


def test_data_folder_may_be_the_parent_the_root_or_the_set(data: Path) -> None:
    root = data.parent / "root"
    root.mkdir()
    (root / "anomaly").symlink_to(data)
    for folder in (data, root, data / "street"):
        assert len(open_dataset(folder, "anomaly:street", "val")) == 7


def test_scorer_that_the_network_does_not_have_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="msp, void"):
        evaluate(Brightness(), AnomalySet(data / "street"), [ScorerSpec("energy")], size=SIZE)


def test_progress_counts_every_frame(data: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        Brightness(),
        CamVid(data.parent / "camvid"),
        size=SIZE,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("score_type", ["float32", "float16"])
def test_bundle_is_scored_as_its_definition_says(
    data: Path, tmp_path: Path, score_type: str
) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder = make_bundle(tmp_path / "bundle")
    found = document(
        folder, "--data", data, "--dataset", "anomaly:street", "--backend", "onnxruntime",
        "--threads", "1", "--score-type", score_type,
    )  # fmt: skip
    assert (found["backend"], found["precision"], found["size"]) == (
        "onnxruntime", "float32", "64x128",
    )  # fmt: skip
    assert found["score_dtype"] == score_type
    bundle = Bundle.open(folder)
    body = ort.InferenceSession(str(bundle.body_path), providers=["CPUExecutionProvider"])
    metrics = {row["scorer"]: AnomalyMetric() for row in found["results"]}
    for sample in AnomalySet(data / "street"):
        label = resize_label(sample.load_label(), bundle.size)
        if not (label == 1).any():
            continue
        frame = resize_frame(sample.load_image(), bundle.size)
        logits = bundle.head.logits(body.run(None, {"frame": frame[None]})[0][0])
        for name, metric in metrics.items():
            score = anomaly_score(logits, name, num_known=19, void_index=19)
            metric.update(score.astype(score_type), label)
    for row in found["results"]:
        metric = metrics[row["scorer"]]
        # The kernel's rounding moves some scores past their neighbours.
        assert row["auprc_percent"] == pytest.approx(100 * metric.auprc(), abs=0.01)
        assert row["fpr95_percent"] == pytest.approx(100 * metric.fpr95(), abs=0.05)


def test_what_a_bundle_does_not_have_is_refused(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = make_bundle(tmp_path / "bundle", void=False)
    call = (folder, "--data", data, "--dataset", "anomaly:street", "--backend")
    for options, word in (
        (("onnxruntime", "--scorer", "void"), "'void'"),
        (("onnxruntime", "--size", "512x1024"), "64x128"),
        (("onnxruntime", "--weights", data), "--weights"),
        (("torch",), "cannot run a bundle"),
    ):
        error = refusal(*call, *options)
        assert isinstance(error, UsageError)
        assert word in str(error)
    (folder / "body.onnx").write_bytes(b"")
    assert isinstance(refusal(*call, "onnxruntime"), ArtefactError)


@pytest.mark.data
@pytest.mark.slow
def test_published_figures_of_midenet_come_out(shared_data: Path) -> None:
    pytest.importorskip("torch")
    weights = shared_data / "weights" / "midenet_void20.pth"
    found = document(
        "midenet", "--weights", weights, "--data", shared_data, "--dataset",
        "anomaly:RoadAnomaly21", "--scorer", "void,msp,maxlogit,entropy",
    )  # fmt: skip
    measured = [(r["auprc_percent"], r["fpr95_percent"]) for r in found["results"]]
    published = [(18.50, 79.19), (18.77, 82.98), (19.37, 83.35), (19.84, 81.23)]
    for row, expected in zip(measured, published, strict=True):
        assert row == pytest.approx(expected, abs=0.1)
    found = document(
        "midenet", "--weights", weights, "--data", shared_data / "cityscapes",
        "--dataset", "cityscapes",
    )  # fmt: skip
    assert found["miou_percent"] == pytest.approx(33.0, abs=0.3)
