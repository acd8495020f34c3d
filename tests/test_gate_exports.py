"""Exports under the accuracy gate: what stays in float, what is not written, the options."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")
pytest.importorskip("cv2")

import cv2

from edgeseg import cli
from edgeseg.bundle import CALIBRATION, Bundle
from edgeseg.compression import gated, sensitivity
from edgeseg.compression.calibration import Ranges, observe
from edgeseg.compression.gate_data import open_gate_data
from edgeseg.compression.gate_options import GateOptions
from edgeseg.compression.gate_report import GATE, markdown
from edgeseg.compression.groups import find_groups
from edgeseg.compression.int8_recovery import Recovered, RecoveryOptions
from edgeseg.compression.label_free import ScoreChange
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.data import Dataset
from edgeseg.errors import GateFailedError, UsageError
from edgeseg.export.exporter import export_bundle
from edgeseg.runtime import backends
from tests.exported import HEIGHT, WIDTH, body_of, frames, network
from tests.gate_fakes import anomaly_set, export, fill
from tests.test_sensitivity import broken, certain


@pytest.fixture(autouse=True)
def no_trial(monkeypatch):
    """Engines load graphs in this process at once: a child for each of many would take minutes."""
    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("gate"))


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for index, frame in enumerate(frames(3, seed=4)):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    return folder


@pytest.fixture
def steady(monkeypatch):
    """Times that do not depend on the machine: integers are always faster, in groups too."""
    monkeypatch.setattr(sensitivity, "compare", lambda *_: certain(1.05))
    monkeypatch.setattr(gated, "medians_ms", lambda runs, _: [40.0, 20.0, 25.0][: len(runs)])


# --- whole exports


def test_a_wide_gate_changes_nothing(data, pictures_folder, tmp_path, steady):
    plain = export_bundle(
        network("midenet"),
        tmp_path / "plain",
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=pictures_folder,
    )
    other = open_gate_data([anomaly_set(tmp_path / "Held", count=1)])
    bundle = export(tmp_path / "b", data, pictures_folder, 100, held_out=other)
    assert bundle.body_sha256 == plain.body_sha256
    assert bundle.manifest.compute_precision == "f32"
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == []
    assert document["given_back_percent"] == pytest.approx(25)
    assert [g["group"] for g in document["groups"]] == [
        g.name for g in find_groups(body_of("midenet"))
    ]
    for group in document["groups"]:
        assert group["bought_ms"] == pytest.approx(1.0)
        assert not group["kept_float"]
    figures = {(f["dataset"], f["scorer"], f["figure"]): f for f in document["figures"]}
    assert len(figures) == 11
    for f in figures.values():
        assert f["int8_percent"] == f["bundle_percent"]
        sign = -1 if f["figure"] == "fpr95_percent" else 1
        drop = sign * (f["float32_percent"] - f["bundle_percent"])
        assert f["drop_points"] == pytest.approx(drop)
        assert set(f["noise_drop_points"]) == {"1", "2", "4"}
    assert {f["dataset"] for f in document["held_out"]} == {"Held"}
    assert {tuple(f["noise_drop_points"]) for f in document["held_out"]} == {("1", "2", "4")}
    free = document["label_free"]
    assert free["int8"] == free["bundle"] == free["int8_with_bias_correction"]
    assert free["int8_without_bias_correction"] != free["int8"]
    assert free["frames"] == 3
    assert bundle.manifest.accuracy["gate"]["figures"] == document["figures"]
    assert "float_parity" in bundle.manifest.accuracy
    text = markdown(document, "title")
    assert text.startswith("# title\n")
    assert all(g["group"] in text for g in document["groups"])
    assert "Streets" in text
    assert "Held out" in text


@pytest.fixture(scope="module")
def broken_ranges(tmp_path_factory):
    """A range of one block is a hundredth of what it should be."""
    body = body_of("midenet")
    block = next(g for g in find_groups(body) if g.name == "bottleneck1/bottleneck1.1")
    node = next(n for n in body.graph.node if n.name == block.convolutions[1])
    ranges = broken(observe(body, frames(3, seed=4)), node.input[0])
    path = tmp_path_factory.mktemp("ranges") / "broken.json"
    path.write_text(ranges.to_json())
    return path, block


def test_a_broken_layer_is_found_and_left_in_float(
    data, broken_ranges, pictures_folder, tmp_path, steady
):
    path, block = broken_ranges
    # Random weights lose more than trained ones; the broken layer must lose more than that.
    sound = export(tmp_path / "sound", data, pictures_folder, 100)
    usual = max(f["drop_points"] for f in json.loads((sound.path / GATE).read_bytes())["figures"])
    allowed = usual + 8
    bundle = export(tmp_path / "b", data, path, allowed)
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == [block.name]
    figures = document["figures"]
    assert max(f["drop_points"] for f in figures) <= allowed
    assert any(f["float32_percent"] - f["int8_percent"] > allowed for f in figures)
    dearest = max(document["groups"], key=lambda g: g["int8_alone"]["worst_drop_points"])
    assert dearest["group"] == block.name
    assert dearest["int8_alone"]["worst_drop_points"] > allowed
    ranges = Ranges.load(bundle.path / CALIBRATION)
    assert set(ranges.keep_float) == set(block.convolutions)
    # Its ranges make the same body again, without data.
    again = export_bundle(
        network("midenet"),
        tmp_path / "again",
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=bundle.path / CALIBRATION,
    )
    assert again.body_sha256 == bundle.body_sha256
    assert again.manifest.counts["integer_convolutions"] == (22 - len(block.convolutions))


def test_a_gate_that_cannot_hold_writes_nothing(data, broken_ranges, tmp_path, steady):
    path, _ = broken_ranges
    with pytest.raises(GateFailedError, match=r"Odd|Streets|logit") as caught:
        export(tmp_path / "b", data, path, 0.0, max_give_back=0)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert os.listdir(tmp_path) == []
    with pytest.raises(GateFailedError, match="log"):
        export(tmp_path / "b", data, path, 1e9, max_noise=1e-9, max_give_back=0)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def training(monkeypatch):
    """In place of training: a body with sound ranges, or nothing better."""

    def use(helps):
        seen = []

        def recover(body, int8, head, given, options, *, progress):
            seen.append((len(given), options.steps))
            model = int8
            if helps:
                model = quantize_body(body, observe(body, frames(3, seed=4))).model
            zero = ScoreChange(0.0, 0.0)
            return Recovered(model, zero, zero, int(helps), options.steps, 2, 1)

        monkeypatch.setattr(gated, "recover", recover)
        return seen

    return use


def test_training_that_suffices_leaves_nothing_in_float(
    data, broken_ranges, pictures_folder, tmp_path, steady, training
):
    path, _ = broken_ranges
    sound = export(tmp_path / "sound", data, pictures_folder, 100)
    usual = max(f["drop_points"] for f in json.loads((sound.path / GATE).read_bytes())["figures"])
    seen = training(helps=True)
    bundle = export(tmp_path / "b", data, path, usual + 8, recovery=RecoveryOptions(steps=7))
    assert [steps for _, steps in seen] == [7]
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == []
    assert document["recovery"]["steps"] == 7
    assert bundle.manifest.accuracy["gate"]["recovery"]["kept_step"] == 1
    # The body that was judged is the one in the bundle.
    model = quantize_body(
        body_of("midenet"), observe(body_of("midenet"), frames(3, seed=4))
    ).model.SerializeToString()
    assert bundle.body_path.read_bytes() == model


def test_training_that_does_not_suffice_writes_nothing(
    data, broken_ranges, tmp_path, steady, training
):
    path, _ = broken_ranges
    seen = training(helps=False)
    with pytest.raises(GateFailedError):
        export(tmp_path / "b", data, path, 0.0, max_give_back=0, recovery=RecoveryOptions(steps=7))
    assert seen
    assert os.listdir(tmp_path) == []


def test_training_is_left_out_where_the_gate_holds(
    data, pictures_folder, tmp_path, steady, training
):
    seen = training(helps=True)
    bundle = export(tmp_path / "b", data, pictures_folder, 100, recovery=RecoveryOptions(steps=7))
    assert seen == []
    assert json.loads((bundle.path / GATE).read_bytes())["recovery"] is None


def test_layers_that_int8_makes_slower_stay_in_float(
    data, pictures_folder, tmp_path, steady, monkeypatch
):
    # INT8 is slower in the second group; of the first the times do not tell.
    slow = iter([1.0, 0.9, *[1.1] * 20])
    monkeypatch.setattr(sensitivity, "compare", lambda *_: certain(next(slow)))
    bundle = export(tmp_path / "b", data, pictures_folder, 100)
    document = json.loads((bundle.path / GATE).read_bytes())
    first, second, *_ = find_groups(body_of("midenet"))
    assert document["kept_float"] == [second.name]
    assert {g["why_float"] for g in document["groups"]} == {None, "INT8 is slower here"}
    assert [g["faster"] for g in document["groups"]] == [None, False, *[True] * 6]
    assert document["groups"][0]["group"] == first.name


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": -1.0},
        {"max_drop": float("nan")},
        {"max_noise": -1.0},
        {"max_give_back": float("inf")},
        {"every": 0},
        {"compute_precision": "f8"},
        {"data": []},
        {"held_out": [Dataset("a", Path(), "semantic", [])]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_cannot_be_are_refused(options):
    base = GateOptions(1.0, [Dataset("a", Path(), "semantic", [])])
    base.check()
    with pytest.raises(UsageError, match=next(iter(options)).split("_")[-1]):
        replace(base, **options).check()


def test_a_gate_for_float_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--int8"):
        export_bundle(network("midenet"), tmp_path / "b", gate=GateOptions(1.0, []))


# --- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from edgeseg.networks.checkpoints import save_network

    path = tmp_path_factory.mktemp("weights") / "midenet.safetensors"
    save_network(network("midenet"), path, {})
    return path


def run_main(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["edgeseg", *map(str, arguments)])
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return caught.value.code or 0, out, err


def test_the_command_gates_and_reports(
    data, pictures_folder, weights, tmp_path, monkeypatch, capfd, steady
):
    call = ["export", "midenet", "--weights", weights, "--int8", "--size", f"{HEIGHT}x{WIDTH}"]
    call += ["--calibration", pictures_folder, "--backend", "onnxruntime", "--threads", 1]
    gate = ["--max-drop", 100, "--gate-data", data, "--max-noise", 0, "--gate-every", 2]
    report = tmp_path / "report.md"
    code, out, err = run_main(
        monkeypatch, capfd, *call, *gate, "--report", report, "-o", tmp_path / "b", "--json"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "edgeseg.export/1"
    assert document["gate"]["max_drop_points"] == 100
    assert document["gate"]["data"] == [
        {"dataset": "Streets", "frames": 1},
        {"dataset": "Odd", "frames": 2},
    ]
    assert "bottleneck1" in report.read_text()
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.accuracy["gate"]["max_drop_points"] == 100
    report.unlink()
    code, out, err = run_main(
        monkeypatch, capfd, *call, "--max-drop", 0, "--gate-data", data, "--max-give-back", 0,
        "--report", report, "-o", tmp_path / "c",
    )  # fmt: skip
    assert (code, out) == (5, "")
    assert err.startswith("edgeseg: the accuracy gate does not hold")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--int8", "--max-drop", 1], "--gate-data"),
        (["--int8", "--gate-data", "."], "--max-drop"),
        (["--max-drop", 1, "--gate-data", "."], "--int8"),
        (["--calibration-method", "mse"], "--int8"),
        (["--int8", "--report", "r.md"], "--report"),
        (["--int8", "--max-drop", 1, "--gate-data", ".", "--report", "no/such/r.md"], "--report"),
        (["--int8", "--max-drop", -1, "--gate-data", "GATE"], "--max-drop"),
        (["--int8", "--calibration-method", "mse", "--calibration", "RANGES"], "frames"),
        (["--int8", "--percentile", 99], "--percentile"),
        (["--recover", 5], "--int8"),
        (["--int8", "--recover", 5, "--calibration", "RANGES"], "frames"),
        (["--int8", "--gate-set", "camvid"], "--gate-set"),
        (["--int8", "--max-drop", 1, "--gate-data", "GATE", "--gate-set", "x"], "anomaly:"),
        (["--int8", "--max-drop", 1, "--gate-data", "GATE", "--held-out", "anomaly:Odd"], "Odd"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_usage_errors(
    data, weights, tmp_path, monkeypatch, capfd, options, named
):
    ranges = tmp_path / "ranges.json"
    ranges.write_text(observe(body_of("midenet"), frames(1)).to_json())
    options = [{"GATE": data, "RANGES": ranges}.get(o, o) for o in options]
    size = f"{HEIGHT}x{WIDTH}"
    code, out, err = run_main(
        monkeypatch, capfd, "export", "midenet", "--weights", weights, "--size", size, *options,
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b").exists()
