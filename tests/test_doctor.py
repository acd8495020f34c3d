import json
import sys

import pytest
from typer.testing import CliRunner

from edgeseg.errors import MissingDependencyError
from edgeseg.runtime import doctor, library
from edgeseg.scoring import kernels


@pytest.fixture
def run_doctor():
    from edgeseg.cli import app

    return lambda *arguments: CliRunner().invoke(app, ["doctor", *arguments])


def test_it_says_what_is_here(run_doctor):
    result = run_doctor("--json")
    document = json.loads(result.stdout)
    assert document["schema"] == "edgeseg.doctor/1"
    assert document["can_run"] is (result.exit_code == 0)
    assert set(document["backends"]) == {"onnxruntime", "openvino"}
    for engine in document["backends"].values():
        assert engine["usable"] is (engine["reason"] is None)
    assert document["cpu"]["cores"] >= 1
    assert document["kernels"]["native"] is kernels.available()


def test_it_says_which_engines_go_through_the_library(monkeypatch):
    found = doctor.examine().document["library"]
    assert found["built"] is library.available()
    assert set(found["engines"]) == {"onnxruntime", "openvino"}
    monkeypatch.setattr(library, "engine_library", lambda _: None)
    engine = doctor.examine().document["library"]["engines"]["openvino"]
    assert not engine["usable"]
    if library.available():
        assert "libopenvino_c.so" in engine["reason"]


def test_for_people_it_ends_with_the_verdict(run_doctor):
    result = run_doctor()
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split(maxsplit=1) == ["result", "edgeseg run works"]


def test_without_an_engine_it_exits_with_3_and_says_what_to_install(run_doctor, monkeypatch):
    monkeypatch.setattr(doctor, "why_not", lambda name: "not installed")
    result = run_doctor("--json")
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    assert not document["can_run"]
    assert "pip install onnxruntime" in document["problems"][0]


def test_an_engine_that_does_not_import_says_why_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "openvino").mkdir()
    broken = tmp_path / "openvino" / "__init__.py"
    broken.write_text("raise ImportError('libtbb.so: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    engine = doctor.examine().document["backends"]["openvino"]
    assert not engine["usable"]
    assert engine["reason"] == "import fails: libtbb.so: cannot open shared object file"


def test_without_opencv_it_says_so(run_doctor, monkeypatch):
    def missing():
        raise MissingDependencyError("OpenCV cannot be imported")

    monkeypatch.setattr(doctor, "opencv", missing)
    result = run_doctor()
    assert result.exit_code == 3
    assert "OpenCV cannot be imported" in result.stdout


def test_a_jetson_is_recognised_by_its_release_file(monkeypatch):
    answers = {"nvpmodel": "NV Power Mode: MAXN_SUPER\n2\n", "dpkg-query": "6.2+b77\n"}
    monkeypatch.setattr(doctor, "_ask", lambda program, *_: answers.get(program))
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
    monkeypatch.setattr(
        doctor, "_first_line", lambda path: release if path == "/etc/nv_tegra_release" else None
    )
    found = doctor.examine().document["jetson"]
    assert (found["l4t"], found["jetpack"], found["power_mode"]) == (
        "36.4.3",
        "6.2+b77",
        "MAXN_SUPER",
    )


def test_a_gpu_is_told_with_its_driver(monkeypatch):
    monkeypatch.setattr(
        doctor, "_ask", lambda *_: "NVIDIA H100, 570.1, 81559 MiB, 345 MHz, 700.00 W\n"
    )
    found = doctor._gpu()
    assert found["present"]
    assert found["devices"][0]["name"] == "NVIDIA H100"
    assert found["devices"][0]["driver"] == "570.1"


def test_a_tool_that_hangs_is_left_alone(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "_TOOL_SECONDS", 0.2)
    assert doctor._gpu() == {
        "present": False,
        "devices": [],
        "reason": "nvidia-smi gives no answer",
    }
