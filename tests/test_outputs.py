"""Output files of long commands: a bad one is refused before the work, and costs no result."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.cli import eval as eval_module
from edgeseg.cli import outputs, profile_job
from edgeseg.cli.outputs import check_output, write_outputs
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.evaluation.evaluate import Prediction
from edgeseg.evaluation.state import EvaluationState

cv2 = pytest.importorskip("cv2")

SIZE = (16, 32)


class Grey:
    """A network that says the same of every frame."""

    network = "erfnet"
    artefact = "0" * 64
    precision = "float32"
    backend = "torch"
    score_dtype = "float32"
    scorers = ("msp",)

    def predict(self, frame: Any, scorers: Any) -> Prediction:
        return Prediction(np.zeros(SIZE, np.uint8), {s: np.zeros(SIZE, "f4") for s in scorers})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "sets" / "street"
    for name, value in (("images", 90), ("labels_masks", 1)):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "1.png"), np.full(SIZE, value, np.uint8))
    return tmp_path / "sets"


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch, data: Path) -> list[Any]:
    monkeypatch.setattr(eval_module, "open_target", lambda *_: (Grey(), SIZE, []))
    return ["eval", "erfnet", "--data", data, "--dataset", "anomaly:street"]


PROFILE = ["profile", "midenet", "--device", "orin-nano-8"]


@pytest.fixture(params=["folder", "below a file", "device"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where no file can be put."""
    (tmp_path / "file").write_text("")
    places = {"folder": tmp_path, "below a file": tmp_path / "file" / "x", "device": "/dev/null"}
    return Path(places[request.param])


def test_a_good_place_is_left_as_it_is(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deep" / "file.json", "--output")
    (tmp_path / "old").write_text("kept")
    (tmp_path / "link").symlink_to("old")
    for name in ("old", "link"):
        check_output(tmp_path / name, "--output")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "old"]
    assert (tmp_path / "old").read_text() == "kept"


def test_a_bad_place_is_named_with_its_option(bad: Path) -> None:
    with pytest.raises(UsageError, match=rf"^--junit '{bad}' .*; name"):
        check_output(bad, "--junit")


def test_a_place_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UsageError, match=f"nothing may be added to '{tmp_path}'"):
        check_output(tmp_path / "new" / "file", "--output")
    with pytest.raises(UsageError, match="File name too long"):
        check_output(tmp_path / ("x" * 300), "--output")


def test_every_file_is_tried_and_the_first_failure_is_kept() -> None:
    done = []

    def fail(error: Exception) -> None:
        done.append(error)
        raise error

    first = write_outputs(
        lambda: done.append(1),
        lambda: fail(InputError("full")),
        lambda: fail(ArtefactError("other")),
        lambda: done.append(2),
    )
    assert isinstance(first, UsageError)
    assert (str(first), len(done)) == ("full", 4)
    assert write_outputs() is None


def test_eval_refuses_a_bad_place_before_it_opens_anything(
    edgeseg: Any, evaluation: list[Any], bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_module, "open_target", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(eval_module, "merged", lambda *_: pytest.fail("merged"))
    for command in (evaluation, ["eval", "--merge", "a.npz"]):
        code, out, err = edgeseg(*command, "-o", bad)
        assert (code, out) == (2, "")
        assert f"--output '{bad}'" in err


def test_eval_prints_what_it_could_not_write(
    edgeseg: Any, evaluation: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UsageError("the disk is full")

    monkeypatch.setattr(EvaluationState, "save", full)
    code, out, err = edgeseg(*evaluation, "-o", tmp_path / "s.npz", "--json")
    assert code == 2
    assert "the disk is full" in err
    assert json.loads(out)["frames"] == 1
    assert "state_file" not in json.loads(out)
    code, out, err = edgeseg(*evaluation, "-o", tmp_path / "s.npz")
    assert code == 2
    assert "AuPRC" in out
    assert "wrote" not in err


@pytest.mark.parametrize("option", ["--save-baseline", "--junit", "--benchmark-json"])
def test_profile_refuses_a_bad_place_before_it_measures(
    edgeseg: Any, bad: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_job, "resolve", lambda *_: pytest.fail("measured"))
    code, out, err = edgeseg("profile", option, bad)
    assert (code, out) == (2, "")
    assert f"{option} '{bad}'" in err


@pytest.mark.parametrize("option", ["--save-baseline", "--junit", "--benchmark-json"])
def test_profile_prints_what_it_could_not_write(
    edgeseg: Any, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder vanishes, or the disk fills up, while it measures."""
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "bad.txt":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    good = [o for o in ("--save-baseline", "--junit", "--benchmark-json") if o != option]
    files = [x for o in good for x in (o, tmp_path / f"{o[2:]}.txt")]
    code, out, err = edgeseg(*PROFILE, option, tmp_path / "bad.txt", *files, "--json")
    assert code == 2
    assert "bad.txt' cannot be written (No space left on device)" in err
    assert json.loads(out)["results"][0]["network"] == "midenet"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{o[2:]}.txt" for o in good)


def test_report_refuses_a_bad_place_before_it_reads(edgeseg: Any, bad: Path, data: Path) -> None:
    code, out, err = edgeseg("report", data, "-o", bad)
    assert (code, out) == (2, "")
    assert f"--output '{bad}'" in err
