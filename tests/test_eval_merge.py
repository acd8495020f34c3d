"""What ``edgeseg eval --merge`` may put together, and options that ``eval`` must not pass over."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.bundle import BODY, HEAD, Bundle, write_bundle
from edgeseg.cli import eval as eval_module
from edgeseg.errors import InputError, UsageError
from edgeseg.evaluation.evaluate import SessionPredictor
from edgeseg.evaluation.state import EvaluationState
from edgeseg.profiling.rows import estimated_row
from edgeseg.profiling.subjects import from_bundle
from edgeseg.reporting.accuracy import accuracy_section, points
from edgeseg.reporting.files import search
from edgeseg.runtime.session import Session
from edgeseg.safetensors import read_safetensors, write_safetensors
from tests.bundles import make_bundle
from tests.report_files import evaluation
from tests.report_pages import profile
from tests.test_eval_cli import SIZE, Brightness, data, document, refusal

__all__ = ["data"]  # a fixture


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_module, "open_target", lambda *_: (Brightness(), SIZE, []))


def with_another_head(bundle: Path, folder: Path) -> Path:
    """As teaching the void class leaves a network: body as before, head not."""
    opened = Bundle.open(bundle)
    tensors = dict(read_safetensors(bundle / HEAD))
    tensors["bias"] = tensors["bias"] + np.float32(1)
    content = {BODY: (bundle / BODY).read_bytes(), HEAD: write_safetensors(tensors)}
    return write_bundle(folder, opened.manifest, content)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles that differ in their heads alone."""
    bundle = make_bundle(tmp_path / "bundle")
    return bundle, with_another_head(bundle, tmp_path / "taught")


@pytest.fixture
def shards(data: Path, tmp_path: Path, brightness: None) -> tuple[Path, Path]:
    files = tmp_path / "1.npz", tmp_path / "2.npz"
    for index, file in enumerate(files, start=1):
        document(
            "erfnet", "--data", data, "--dataset", "anomaly:street", "--shard", f"{index}/2",
            "-o", file, "--every", "2", "--temperature", "1.5",
        )  # fmt: skip
    return files


# --- networks with one body


def test_networks_that_differ_in_the_head_alone_do_not_merge(
    pair: tuple[Path, Path],
    data: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("onnxruntime")
    files = [tmp_path / "1.npz", tmp_path / "2.npz", tmp_path / "3.npz"]
    for file, bundle, shard in zip(files, (*pair, pair[0]), ("1/2", "2/2", "2/2"), strict=True):
        document(
            bundle, "--data", data, "--dataset", "anomaly:street", "--shard", shard, "-o", file,
            "--backend", "onnxruntime", "--threads", "1",
        )  # fmt: skip
    assert "differ in artefact" in str(refusal("--merge", files[0], files[1]))
    whole = document("--merge", files[0], files[2])
    assert document(pair[0], "--merge", files[0], files[2]) == whole
    error = refusal(pair[1], "--merge", files[0], files[2])
    assert isinstance(error, UsageError)
    assert "not of the bundle" in str(error)


def test_profile_and_eval_name_a_bundle_alike(pair: tuple[Path, Path]) -> None:
    pytest.importorskip("onnxruntime")
    one, other = (Bundle.open(folder) for folder in pair)
    assert one.body_sha256 == other.body_sha256
    assert one.network_sha256 != other.network_sha256
    with Session(one, "onnxruntime", 1) as session:
        assert SessionPredictor(session).artefact == one.network_sha256
    from edgeseg.profiling.devices import load_device
    from edgeseg.profiling.roofline import estimate

    subject, device = from_bundle(other), load_device("orin-nano-8")
    guess = estimate(subject.graph, subject.head, device, "void")
    assert estimated_row(subject, "void", device, guess, 1.0)["artefact"] == other.network_sha256


# --- splits


def test_shards_of_two_splits_do_not_merge(
    data: Path,
    tmp_path: Path,
    brightness: None,
) -> None:
    camvid = data.parent / "camvid"
    for name in ("train", "trainannot"):
        (camvid / name).symlink_to(camvid / name.replace("train", "val"))
    call = ("erfnet", "--data", camvid, "--dataset", "camvid", "--split")
    files = [tmp_path / f"{i}.npz" for i in range(3)]
    for file, split, shard in zip(files, ("val", "train", "val"), "122", strict=True):
        assert document(*call, split, "--shard", f"{shard}/2", "-o", file)["split"] == split
    assert "differ in split" in str(refusal("--merge", files[0], files[1]))
    assert document("--merge", files[0], files[2])["split"] == "val"
    assert "--split train does not fit" in str(
        refusal("--merge", files[0], files[2], "--split", "train")
    )


def test_files_from_before_the_split_was_kept_are_read(
    shards: tuple[Path, Path], tmp_path: Path
) -> None:
    old = tmp_path / "old.npz"
    with zipfile.ZipFile(shards[0]) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "header.json":
                header = json.loads(content)
                del header["identity"]["split"]
                content = json.dumps(header).encode()
            target.writestr(name, content)
    assert EvaluationState.load(old).identity == EvaluationState.load(shards[0]).identity
    assert "split" not in document("--merge", old, shards[1])


def test_the_report_keeps_splits_apart(tmp_path: Path) -> None:
    labelled: dict[str, Any] = {
        "kind": "semantic", "scorers": (), "dataset": "city", "network": "enet",
        "artefact": "a" * 64,
    }  # fmt: skip
    found: list[dict[str, Any]] = [profile(artefact="a" * 64)]
    for split, miou in (("val", 40.0), ("train", 60.0)):
        found.append(evaluation(split=split, **labelled) | {"miou_percent": miou})
    for i, content in enumerate(found):
        (tmp_path / f"{i}.json").write_text(json.dumps(content))
    read = search(tmp_path, tmp_path / "none")
    panels = {p.panel[0]: p.percent for p in points(read.profiles, read.evaluations, [])}
    assert panels == {"city": 40.0, "city, split train": 60.0}
    page = accuracy_section(read.evaluations)
    assert "city, protocol paper" in page
    assert "city, split train, protocol paper" in page


# --- options


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--scorer", "msp", "were made with msp,void"),
        ("--temperature", "2", "with 1.5"),
        ("--protocol", "all", "with paper"),
        ("--size", "64x128", "with 16x32"),
        ("--every", "3", "with 2"),
        ("--resize", "pillow", "with runtime"),
        ("--backend", "openvino", "with torch"),
        ("--score-type", "float32", "with float16"),
        ("--dataset", "anomaly:forest", "with street"),
        ("--components", None, "which have none"),
    ],
)
def test_options_that_do_not_fit_the_files_are_refused(
    shards: tuple[Path, Path], option: str, value: str | None, says: str
) -> None:
    error = refusal("--merge", *shards, option, *([value] if value else []))
    assert isinstance(error, UsageError)
    assert f"{option} {value or ''}".strip() in str(error)
    assert says in str(error)


def test_options_of_the_shards_fit_their_files(shards: tuple[Path, Path], data: Path) -> None:
    call = (
        "erfnet", "--data", data, "--dataset", "anomaly:street", "--every", "2", "--temperature",
        "1.5", "--scorer", "void,msp", "--size", "16x32",
    )  # fmt: skip
    assert document(*call, "--merge", *shards) == document("--merge", *shards)


def test_weights_that_the_files_are_not_of_are_refused(
    shards: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = tmp_path / "other.safetensors"
    weights.write_bytes(b"x")
    assert "--weights" in str(refusal("--merge", *shards, "--weights", weights))
    assert isinstance(refusal("--merge", *shards, "--weights", tmp_path / "none"), InputError)


@pytest.mark.parametrize(
    ("value", "says"), [("float16", "goes with a BUNDLE"), ("bogus", "neither")]
)
def test_a_network_has_no_score_type(data: Path, value: str, says: str) -> None:
    error = refusal("erfnet", "--data", data, "--dataset", "anomaly:street", "--score-type", value)
    assert isinstance(error, UsageError)
    assert says in str(error)
