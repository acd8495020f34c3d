"""What the README says is what the program does."""

import re
import shlex
import sys

import pytest
import tomllib
import typer

from edgeseg.cli import app
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import make_readme

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "calibration_data" / "README.md"]
SPEED = {
    "machine": {"cpu": "a processor", "kernels": "avx2", "versions": "numpy 2"},
    "threads": 2,
    "networks": {
        "erfnet": {
            "rows": {"torch": {"ms": 300.0, "ratio": 10.0}, "ours": {"ms": 30.0, "ratio": 1.0}},
            "stages_ms": {"body": 25.0, "head": 5.0},
            "weights": "erfnet_void20.pth",
        }
    },
}


def figure(name: str, data: str, kind: str, measured: float, published: float) -> dict[str, object]:
    return {
        "checkpoint": name,
        "scorer": "-" if kind == "miou_percent" else "void",
        "set": data,
        "figure": kind,
        "measured": measured,
        "published": published,
    }


def commands() -> list[str]:
    lines = []
    for path in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            joined = block.replace("\\\n", " ").splitlines()
            lines += [line for line in joined if line.startswith("edgeseg ")]
    return lines


def test_tables_are_up_to_date() -> None:
    assert make_readme.fill(README, make_readme.tables()) == README


def test_commands_are_there_to_be_checked() -> None:
    assert len(commands()) >= 6


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert command.make_context(name, arguments).params


def test_all_commands_are_listed_and_no_others() -> None:
    group = typer.main.get_command(app)
    listed = set(re.findall(r"^\| `edgeseg ([a-z-]+)", README, re.MULTILINE))
    assert listed == set(group.commands)  # type: ignore[attr-defined]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", README, re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def test_speed_table_names_the_machine_and_the_times() -> None:
    text = make_readme.speed_table(SPEED)
    assert "| torch eager float32, torch scoring | 300.0 (10.0x) |" in text
    assert "| **edgeseg INT8 on OpenVINO** | **30.0** |" in text
    assert "| of ours, body + head | 25.0 + 5.0 |" in text
    assert "a processor, 2 threads" in text
    assert "ONNX Runtime" not in text


def test_accuracy_tables_show_both_figures_and_the_distance() -> None:
    rows = [
        figure("erfnet_void20", "RoadAnomaly21", "auprc_percent", 19.17, 19.16),
        figure("erfnet_void20", "RoadAnomaly21", "fpr95_percent", 78.0, 78.05),
        figure("erfnet_void20", "cityscapes", "miou_percent", 66.34, 66.4),
    ]
    text = make_readme.accuracy_tables({"float32": {"rows": rows}, "int8": {"rows": rows[:2]}})
    assert "| erfnet_void20 | void | 19.17 / 78.00 | - / - | - / - |" in text
    assert "INT8 bundle: AuPRC / FPR95 %" in text
    assert "| erfnet_void20 | 66.3 |" in text
    assert "2 anomaly figures at most 0.05 points, 1 mIoU figures at most 0.06 points" in text


def test_a_missing_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 blocks 'speed'"):
        make_readme.fill("# nothing\n", {"speed": "x"})


def test_the_profile_is_of_the_form_that_its_readme_describes() -> None:
    described = (ROOT / "profiles" / "README.md").read_text(encoding="utf-8")
    keys = set(re.findall(r"^\| `([a-z_]+)`", described, re.MULTILINE))
    for path in (ROOT / "profiles").glob("*.toml"):
        profile = tomllib.loads(path.read_text(encoding="utf-8"))
        assert keys <= set(profile)
        assert profile["name"] == path.stem
