"""Weights that cannot be exported, and ranges that belong to other weights."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.bundle import CALIBRATION, Bundle  # noqa: E402
from edgeseg.data.samples import find_images  # noqa: E402
from edgeseg.errors import ArtefactError, UsageError  # noqa: E402
from edgeseg.export import exporter  # noqa: E402
from edgeseg.export.exporter import check_parity, export_bundle  # noqa: E402
from edgeseg.export.fingerprint import WEIGHTS_SHA256, weights_sha256  # noqa: E402
from edgeseg.export.observation import observe_frames  # noqa: E402
from edgeseg.networks import NETWORKS, build  # noqa: E402
from edgeseg.networks.checkpoints import load_network, save_network  # noqa: E402
from edgeseg.networks.zoo import shipped_calibration, shipped_weights  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.exported import HEIGHT, WIDTH, body_of, frames, network  # noqa: E402

SIZE = {"height": HEIGHT, "width": WIDTH}


@cache
def other(seed: int = 7):
    """A MiDE-Net of other random weights than those of :func:`network`."""
    torch.manual_seed(seed)
    module = build("midenet", {})
    module.provenance = {"weights_name": "other"}
    return module.eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    import cv2

    folder = tmp_path_factory.mktemp("frames")
    for i, frame in enumerate(frames(2, seed=4)):
        cv2.imwrite(str(folder / f"{i}.png"), frame)
    assert len(find_images(folder, recursive=True)) == 2
    return folder


@pytest.fixture(scope="module")
def bundle(pictures, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return export_bundle(network("midenet"), folder, precision="int8", calibration=pictures, **SIZE)


# --- weights that give no numbers


def overflowing():
    """Finite weights whose products are not: the classifier's are near float32's largest."""
    module = build("midenet", {})
    module.load_state_dict(network("midenet").state_dict())
    module.provenance = {"weights_name": "enormous"}
    with torch.no_grad():
        module.last_layer().weight.fill_(3e38)
    return module.eval()


@pytest.mark.parametrize(
    ("precision", "calibrated"), [("float32", False), ("float32", True), ("int8", True)]
)
def test_weights_that_give_nan_are_refused_and_nothing_is_written(
    tmp_path, pictures, precision, calibrated
):
    with pytest.raises(ArtefactError, match=r"weights 'enormous' .* not finite"):
        export_bundle(
            overflowing(),
            tmp_path / "b",
            precision=precision,
            calibration=pictures if calibrated else None,
            **SIZE,
        )
    assert os.listdir(tmp_path) == []


def test_nan_on_either_side_is_no_agreement():
    body, head = body_of("midenet"), exporter._last(network("midenet").head_spec())
    assert check_parity(network("midenet"), body, head, frames(1)).equal_labels > 0.999
    with pytest.raises(ArtefactError, match="not finite"):
        check_parity(overflowing(), body, head, frames(1))
    from edgeseg.export.body import export_body

    broken = export_body(overflowing(), HEIGHT, WIDTH)
    with pytest.raises(ArtefactError, match="not finite"):
        check_parity(network("midenet"), broken, head, frames(1))


# --- ranges of other weights


def test_the_digest_is_that_of_the_numbers_alone(tmp_path):
    module = network("midenet")
    known = weights_sha256(module)
    save_network(module, tmp_path / "renamed.safetensors", {"weights_name": "another name"})
    assert weights_sha256(load_network("midenet", tmp_path / "renamed.safetensors")) == known
    assert weights_sha256(other()) != known
    changed = build("midenet", {})
    changed.load_state_dict(module.state_dict())
    changed.initial.bn.num_batches_tracked += 1
    assert weights_sha256(changed) == known
    with torch.no_grad():
        changed.initial.bn.running_mean[0] += 1e-3
    assert weights_sha256(changed) != known
    normalised = build("midenet", {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})
    normalised.load_state_dict(module.state_dict())
    assert weights_sha256(normalised) != known


@pytest.mark.parametrize("name", ["erfnet", "bisenet"])
def test_heads_of_training_alone_do_not_change_the_digest(name):
    whole = network(name)
    auxiliary = {id(p) for p in whole.auxiliary_parameters()}
    assert auxiliary
    known = weights_sha256(whole)
    kept = {k: v.clone() for k, v in whole.state_dict().items()}
    changed = build(name, whole.structure.to_dict())
    changed.load_state_dict(kept)
    assert weights_sha256(changed) == known
    with torch.no_grad():
        for p in changed.auxiliary_parameters():
            p += 1
    assert weights_sha256(changed) == known


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_ranges_of_other_weights_are_refused_in_one_sentence(tmp_path, bundle, precision):
    # A float bundle takes the thresholds, which are those of the weights too.
    with pytest.raises(ArtefactError, match=r"calibration\.json.* other weights .*'other'"):
        export_bundle(
            other(),
            tmp_path / "b",
            precision=precision,
            calibration=bundle.path / CALIBRATION,
            **SIZE,
        )
    assert os.listdir(tmp_path) == []


def test_the_bundle_says_which_weights_its_ranges_are_of(bundle):
    digest = weights_sha256(network("midenet"))
    document = json.loads((bundle.path / CALIBRATION).read_text())
    assert document["provenance"][WEIGHTS_SHA256] == digest
    assert bundle.manifest.calibration[WEIGHTS_SHA256] == digest


@pytest.mark.parametrize(("name", "said"), [("someone's", 1), ("other", 0), (None, 0)])
def test_files_without_a_digest_are_taken_with_a_note(tmp_path, bundle, name, said):
    document = json.loads((bundle.path / CALIBRATION).read_text())
    del document["provenance"][WEIGHTS_SHA256]
    document["provenance"]["weights_name"] = name
    if name is None:
        del document["provenance"]["weights_name"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    notes: list[str] = []
    export_bundle(
        other(), tmp_path / "b", precision="int8", calibration=path, note=notes.append, **SIZE
    )
    notes = [text for text in notes if "old.json" in text]
    assert len(notes) == said
    assert all("someone's" in text and "--calibration" in text for text in notes)


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_ranges_know_the_shipped_weights(name):
    weights, ranges = shipped_weights(name), shipped_calibration(name)
    if weights is None or ranges is None:
        pytest.skip(f"no weights of {name} are shipped")
    recorded = json.loads(ranges.read_text())["provenance"][WEIGHTS_SHA256]
    assert recorded == weights_sha256(load_network(name, weights))


def test_shipped_ranges_on_other_weights_exit_with_4(tmp_path, edgeseg):
    save_network(other(), tmp_path / "w.safetensors", {})
    code, out, err = edgeseg(
        "export", "midenet", "--weights", tmp_path / "w.safetensors", "--int8",
        "--calibration", shipped_calibration("midenet"), "--size", f"{HEIGHT}x{WIDTH}",
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert (code, out) == (4, "")
    assert err.count("\n") == 1
    assert "midenet.json" in err
    assert not (tmp_path / "b").exists()


def test_the_tool_for_shipped_ranges_writes_the_digest(pictures, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import make_shipped_ranges as tool

    monkeypatch.setattr(tool, "HEIGHT", HEIGHT)
    monkeypatch.setattr(tool, "WIDTH", WIDTH)
    weights = shipped_weights("midenet")
    if weights is None:
        pytest.skip("no weights of midenet are shipped")
    document = json.loads(tool.ranges_json("midenet", pictures, weights, 1, "frames", 0.0))
    digest = weights_sha256(load_network("midenet", weights))
    assert document["provenance"][WEIGHTS_SHA256] == digest


# --- options that go with frames


@pytest.mark.parametrize("widen", [7.0, 0.0, 0.5])
def test_ranges_from_a_file_cannot_be_widened(tmp_path, bundle, widen):
    with pytest.raises(UsageError, match=rf"--widen {widen:g} needs frames.*--calibration"):
        export_bundle(
            network("midenet"),
            tmp_path / "b",
            precision="int8",
            calibration=bundle.path / CALIBRATION,
            widen=widen,
            **SIZE,
        )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("percentile", [0, 50, 101, -1, float("nan")])
def test_a_percentile_that_cannot_be_is_refused_before_observing(percentile, monkeypatch):
    def never(*_, **__):
        raise AssertionError("observed")

    monkeypatch.setattr("edgeseg.export.observation.observe", never)
    with pytest.raises(UsageError, match="--percentile"):
        observe_frames(
            network("midenet"),
            body_of("midenet"),
            "x",
            frames(1),
            method="percentile",
            percentile=percentile,
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--int8", "--widen", "7"], "--widen 7 needs frames"),
        (["--int8", "--widen", "0"], "--widen 0 needs frames"),
        (["--widen", "0.5", "--calibration", "FRAMES"], "--int8"),
        (
            ["--int8", "--calibration", "FRAMES", "--calibration-method", "percentile",
             "--percentile", "0"],
            "--percentile 0",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_command_refuses_what_it_would_ignore(tmp_path, pictures, edgeseg, options, named):
    options = [pictures if o == "FRAMES" else o for o in options]
    code, out, err = edgeseg(
        "export", "midenet", "--size", f"{HEIGHT}x{WIDTH}", *options, "-o", tmp_path / "b"
    )
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b").exists()


# --- the same bundle again


def biases(bundle: Bundle) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(bundle.body_path).graph
    return {
        c.name: numpy_helper.to_array(c) for c in graph.initializer if c.name.endswith("_corrected")
    }


def test_no_bias_correction_travels_with_the_ranges(tmp_path, bundle, pictures):
    module, options = network("midenet"), {"precision": "int8", **SIZE}
    assert "bias_correction" not in (bundle.path / CALIBRATION).read_text()
    assert biases(bundle)
    plain = export_bundle(
        module, tmp_path / "a", calibration=pictures, correct_bias=False, **options
    )
    assert not biases(plain)
    assert plain.manifest.calibration["bias_correction"] is False
    ranges = plain.path / CALIBRATION
    again = export_bundle(module, tmp_path / "b", calibration=ranges, **options)
    assert not biases(again)
    first, second = (json.loads((b.path / CALIBRATION).read_text()) for b in (plain, again))
    for part in ("provenance", "tensors"):
        assert second[part] == first[part]
    # Who asks for it gets it, and the file that comes out no longer says otherwise.
    asked = export_bundle(module, tmp_path / "c", calibration=ranges, correct_bias=True, **options)
    assert biases(asked)
    assert "bias_correction" not in asked.manifest.calibration


# --- engines that disagree


def test_an_engine_that_disagrees_is_told(tmp_path, pictures, edgeseg, monkeypatch):
    save_network(network("midenet"), tmp_path / "w.safetensors", {})
    real = exporter.golden_of
    fake = {"equal_classes_percent": 61.5, "share_distance_percent": 9.0,
            "score_error_percent": 33.0, "passed": False}  # fmt: skip

    def golden(manifest, files):
        content, said = real(manifest, files)
        others = {"slanted": fake, "straight": {**fake, "passed": True}}
        return content, {**said, "others": others}

    monkeypatch.setattr(exporter, "golden_of", golden)
    call = ["export", "midenet", "--weights", tmp_path / "w.safetensors", "--calibration",
            pictures, "--size", f"{HEIGHT}x{WIDTH}", "-o", tmp_path / "b", "--json"]  # fmt: skip
    code, out, err = edgeseg(*call, "--int8")
    assert code == 0
    assert err.count("\n") == 1
    for word in ("edgeseg: slanted", "61.5%", "--backend onnxruntime", "calibrate"):
        assert word in err
    document = json.loads(out)
    assert document["golden"]["engine"] == "onnxruntime"
    assert document["golden"]["others"]["slanted"] == fake
    # A float bundle has nothing to calibrate.
    assert "calibrate" not in edgeseg(*call)[2]
