"""The compression table as it is printed: which promises are kept, the picture, the command."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compression_documents import SETS, document, row
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import compression_picture as picture
import compression_print
import compression_rows as rows
import compression_summary
import compression_table
import compression_verdicts
import make_readme

# --- tables


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_changes_stand_in_brackets() -> None:
    failed = {"form": "int8", "title": "INT8", "commands": [], "problem": "gate failed"}
    text = compression_print.to_markdown(
        document(row("float32"), row("pruned", 0.5, 20.0, bytes=2e6), failed)
    )
    assert cells(text, "float32")[1:] == [
        "60.00", "60.00", *["20.00 / 50.00"] * 3, "25.0", "25.0", "2.00", "0.00", "2,000,000",
        "8.00",
    ]  # fmt: skip
    pruned = cells(text, "pruned")
    assert pruned[1] == "59.50 (-0.50)"
    assert pruned[3] == "19.50 / 50.50 (-0.50 / +0.50)"
    assert pruned[6] == "50.0 (2.00x)"
    assert cells(text, "INT8")[1:3] == ["gate failed", "-"]
    assert "### ENet\n\nNo weights." in text
    assert text.count("| pruned | entropy |") == 1
    assert "steps: ERFNet 9" in text


def test_the_summary_names_what_a_form_costs_most() -> None:
    failed = {"form": "timed", "title": "timed", "commands": [], "problem": "not timed yet"}
    text = compression_summary.compression_summary(
        document(row("float32"), row("int8", 0.5, 20.0), failed), make_readme.markdown
    )
    floating, whole = (line.split(" | ") for line in text.splitlines()[2:4])
    assert floating[:5] == ["| ERFNet", "float32", "60.0", "60.0", "20.0 / 50.0"]
    assert floating[5] == ""
    assert whole[5].startswith("0.50 (")
    assert whole[6:8] == ["50.0 (2.00x)", "50.0 (2.00x)"]
    assert "timed" not in text


def test_figures_that_are_not_defined_are_dashes() -> None:
    given = row("int8")
    given["accuracy"]["fs_static"]["scorers"]["void"] = [None, None]
    del given["accuracy"]["cityscapes"], given["speed"]["openvino"]
    text = compression_print.to_markdown(document(row("float32"), given))
    assert [cells(text, "int8")[i] for i in (1, 5, 7)] == ["-", "-", "-"]


# --- promises


def kept(given: dict[str, Any]) -> dict[str, bool | None]:
    return {v.promise: v.kept for v in compression_verdicts.verdicts(given)}


@pytest.mark.parametrize(("lost", "held"), [(0.99, True), (1.01, False), (-3.0, True)])
def test_int8_may_lose_a_point(lost: float, held: bool) -> None:
    found = kept(document(row("float32"), row("int8", lost)))
    assert {found[f"INT8 loses at most, {name}"] for name in SETS} == {held}


def test_one_figure_is_enough_to_fail() -> None:
    given = row("int8")
    given["accuracy"]["RoadObsticle21"]["scorers"]["maxlogit"][1] += 5
    found = compression_verdicts.verdicts(document(row("float32"), given))
    bad = [v for v in found if v.kept is False]
    assert [v.promise for v in bad] == ["INT8 loses at most, RoadObsticle21"]
    assert bad[0].measured == "7 of 8 figures within; worst MaxLogit FPR95 +5.00"


def test_noise_widens_the_limit_of_its_set_only() -> None:
    given = document(row("float32"), row("int8", 1.5), noise_costs=2.0)
    found = kept(given)
    assert found["INT8 loses at most, fs_static"] is True
    assert found["INT8 loses at most, RoadAnomaly21"] is False
    less = compression_verdicts.verdicts(document(row("float32"), row("int8", 0.5)))
    text = next(v for v in less if "fs_static" in v.promise)
    assert text.kept is True
    assert text.measured.endswith("8 cost more than noise")


def test_promises_about_pruning() -> None:
    good = document(
        row("float32"),
        row("pruned", 1.9, 28.0, macs=1.2e9, bytes=4e6),
        row("int8", ms=20.0),
        row("pruned-int8", ms=15.0, bytes=1.5e6),
        timed={"target_ms": 28.0, "engine": "openvino", "claimed_ms": 28.4, "ms": 30.0},
    )
    assert all(v.kept for v in compression_verdicts.verdicts(good))
    bad = document(
        row("float32"),
        row("pruned", 2.1, 29.0, macs=1.21e9, bytes=8e6),
        row("int8", ms=20.0),
        row("pruned-int8", ms=20.0, bytes=1.51e6),
        timed={"target_ms": 28.0, "engine": "openvino", "claimed_ms": 28.4, "ms": 31.0},
    )
    found = [v for v in compression_verdicts.verdicts(bad) if "INT8 loses" not in v.promise]
    assert len(found) == 10
    assert not any(v.kept for v in found)
    assert all(v.kept is not None for v in found)


@pytest.mark.parametrize(("gated", "held"), [(22.9, True), (23.1, False)])
def test_gate_may_give_back_a_share_of_the_speed_up(gated: float, held: bool) -> None:
    found = kept(document(row("float32"), row("int8-plain", ms=20.0), row("int8", ms=gated)))
    assert found["gate gives back, OpenVINO"] is held


def test_what_was_not_measured_is_no_verdict() -> None:
    found = kept(document(row("float32")))
    assert set(found.values()) == {None}
    assert "not measured" in compression_verdicts.to_markdown(
        compression_verdicts.verdicts(document(row("float32")))
    )


# --- picture


def test_front_is_what_nothing_beats() -> None:
    given = document(row("float32"), row("int8", 0.5, 20.0), row("pruned", 2.0, 30.0))
    found = picture.points(given, "fs_static", "void")
    assert [(p.form, p.ms, p.auprc) for p in found] == [
        ("float32", 40.0, 20.0), ("int8", 20.0, 19.5), ("pruned", 30.0, 18.0),
    ]  # fmt: skip
    assert [p.form for p in picture.front(found)] == ["int8", "float32"]


def test_picture_is_written(tmp_path: Path) -> None:
    given = document(*(row(f.key, i / 3, 50.0 - 3 * i) for i, f in enumerate(rows.FORMS)))
    picture.draw(given, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to draw"):
        picture.draw(document(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_every_form_has_a_marker_and_a_name() -> None:
    assert set(picture.MARKERS) == set(picture.SHORT) == set(rows.KEYS)


# --- the command


@pytest.mark.parametrize(
    ("entries", "erfnet", "enet"),
    [([], 0, 0), (["60"], 60, 60), (["60", "erfnet=100"], 100, 60), (["erfnet=100"], 100, 0)],
)
def test_steps_of_single_networks(entries: list[str], erfnet: int, enet: int) -> None:
    steps = compression_table._steps(compression_table._parser(), entries)
    assert (steps["erfnet"], steps["enet"]) == (erfnet, enet)


@pytest.mark.parametrize("entry", ["-1", "many", "erfnet=", "resnet=5"])
def test_steps_that_are_none(entry: str) -> None:
    with pytest.raises(SystemExit):
        compression_table._steps(compression_table._parser(), [entry])


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compression_table.py", *arguments])
    return compression_table.main()


def test_table_comes_from_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = document(row("float32"), row("int8", 2.0))
    file = tmp_path / "c.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    monkeypatch.setattr(compression_table, "measure_all", None)
    copy = tmp_path / "copy.json"
    assert call(monkeypatch, "--from-json", str(file), "--verdicts", "--json", str(copy)) == 0
    printed = capsys.readouterr().out
    assert compression_print.to_markdown(given) in printed
    assert "| erfnet | INT8 loses at most, fs_static |" in printed
    assert json.loads(copy.read_text(encoding="utf-8")) == given
    monkeypatch.setattr(sys, "argv", ["compression_verdicts.py", str(file)])
    assert compression_verdicts.main() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "segnet=x"], "is not NETWORK=VALUE"),
        (["--weights", "erfnet=/nowhere.pth"], "do not exist"),
        (["--sets", "Moon"], "there is no set Moon"),
        (["--every", "0"], "start at 1"),
        (["--from-json", "/nowhere.json"], "cannot be read"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
