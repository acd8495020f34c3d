"""Options of `edgeseg export` that would be ignored, paths of the wrong kind, and the report."""

import json

import pytest

pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")
pytest.importorskip("cv2")

import cv2

from edgeseg.compression.calibration import Ranges
from edgeseg.errors import InputError
from edgeseg.export.observation import observe_source
from edgeseg.networks.checkpoints import save_network
from edgeseg.runtime import backends
from tests.exported import HEIGHT, WIDTH, body_of, frames, network
from tests.gate_fakes import anomaly_set
from tests.test_cli import one_line

SIZE = f"{HEIGHT}x{WIDTH}"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames(2, seed=4)):
        cv2.imwrite(str(folder / f"{i}.png"), frame)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(network("midenet"), path, {})
    return path


# --- options that would be ignored


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--gate-split", "val"], "--gate-split"),
        (["--gate-every", 2], "--gate-every"),
        (["--max-noise", 2.0], "--max-noise"),
        (["--max-give-back", 50], "--max-give-back"),
        (["--granularity", "convolution"], "--granularity"),
        (["--compute-precision", "bf16"], "--compute-precision"),
        (["--backend", "auto"], "--backend"),
        (["--backend", "openvino", "--recover", 5, "--calibration", "FRAMES"], "--backend"),
        (["--threads", 1], "--threads"),
    ],
    ids=str,
)
def test_options_of_the_gate_are_refused_without_one(edgeseg, tmp_path, pictures, options, named):
    options = [pictures if o == "FRAMES" else o for o in options]
    code, out, err = edgeseg("export", "midenet", "--int8", *options, "-o", tmp_path / "b")
    assert (code, out) == (2, "")
    assert one_line(err).startswith(f"edgeseg: {named} ")
    assert "--max-drop" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("option", ["--bias-correction", "--no-bias-correction"])
def test_biases_are_corrected_in_int8_only(edgeseg, tmp_path, option):
    code, out, err = edgeseg("export", "midenet", option, "-o", tmp_path / "b")
    assert (code, out) == (2, "")
    assert "--bias-correction" in one_line(err)
    assert "--int8" in err


@pytest.mark.parametrize("calibration", [[], ["--calibration", "RANGES"]], ids=str)
def test_frames_of_a_file_of_ranges_cannot_be_counted(edgeseg, tmp_path, calibration):
    ranges = tmp_path / "r.json"
    ranges.write_text("{}")
    calibration = [ranges if o == "RANGES" else o for o in calibration]
    code, out, err = edgeseg(
        "export", "midenet", "--int8", "--frames", 16, *calibration, "-o", tmp_path / "b"
    )
    assert (code, out) == (2, "")
    assert "--frames" in one_line(err)
    assert "--calibration" in err


def test_training_the_int8_body_takes_threads(edgeseg, tmp_path, weights, monkeypatch):
    # Read before the folder without an image is.
    (tmp_path / "empty").mkdir()
    code, _, err = edgeseg(
        "export", "midenet", "--weights", weights, "--int8", "--recover", 1, "--threads", 1,
        "--calibration", tmp_path / "empty", "--size", SIZE, "-o", tmp_path / "b",
    )  # fmt: skip
    assert code == 7
    assert "holds no image" in one_line(err)


# --- what --calibration names


def test_a_single_image_is_no_folder(tmp_path, pictures):
    with pytest.raises(InputError, match=r"0\.png' is a file; name a folder of images"):
        observe_source(
            network("midenet"), body_of("midenet"), pictures / "0.png", (HEIGHT, WIDTH), limit=1
        )


def test_a_folder_of_frames_may_be_called_like_a_file_of_ranges(edgeseg, pictures, weights):
    folder = pictures.rename(pictures.with_name("frames.json"))
    found = observe_source(network("midenet"), body_of("midenet"), folder, (HEIGHT, WIDTH), limit=1)
    assert len(found.frames) == 1
    # Nor does the command take it for one.
    code, _, err = edgeseg(
        "export", "midenet", "--weights", weights, "--int8", "--recover", 1, "--frames", 1,
        "--calibration", folder, "--size", "60x128", "-o", folder.parent / "b",
    )  # fmt: skip
    assert code == 2
    assert "divisible" in one_line(err)


def test_a_folder_is_no_file_of_ranges(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Ranges.load(tmp_path)


# --- the report


@pytest.fixture
def gated(edgeseg, tmp_path, pictures, weights, monkeypatch):
    """Calls an export that any figure passes."""
    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)
    data = anomaly_set(tmp_path / "data" / "Odd", count=1)
    return lambda *options: edgeseg(
        "export", "midenet", "--weights", weights, "--int8", "--size", SIZE,
        "--calibration", pictures, "--backend", "onnxruntime", "--threads", 1,
        "--max-drop", 100, "--max-noise", 0, "--gate-data", data, "-o", tmp_path / "b", *options,
    )  # fmt: skip


def test_a_report_that_cannot_be_is_refused_before_any_work(gated, tmp_path):
    code, out, err = gated("--report", "/dev/null")
    assert (code, out) == (2, "")
    assert "--report" in one_line(err)
    assert not (tmp_path / "b").exists()


def test_a_report_that_fails_at_the_end_costs_no_result(gated, tmp_path, monkeypatch):
    def full(path, text):
        raise InputError(f"'{path}' cannot be written (No space left on device)")

    monkeypatch.setattr("edgeseg.files.write_text", full)
    code, out, err = gated("--report", tmp_path / "r.md", "--json")
    assert code == 2
    assert "No space left" in one_line(err)
    document = json.loads(out)
    assert document["gate"]["max_drop_points"] == 100
    assert "report" not in document
    assert (tmp_path / "b" / "bundle.json").is_file()
