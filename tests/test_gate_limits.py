"""What the accuracy gate refuses: sets that cannot be told apart, and INT8 that gains nothing."""

import os

import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")
pytest.importorskip("cv2")

from edgeseg.cli.export_gate import gate_options
from edgeseg.compression import gated, search, sensitivity
from edgeseg.compression.gate_data import open_gate_data
from edgeseg.compression.gate_options import GateOptions
from edgeseg.errors import GateFailedError, UsageError
from edgeseg.runtime import backends
from tests.exported import frames
from tests.gate_fakes import Pretend, anomaly_set, costs_of, export, names
from tests.test_sensitivity import certain

# --- sets of one name


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two folders with an anomaly set of the same name, one of them with another set too."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("A/RoadX", "A/RoadY", "B/RoadX"):
        anomaly_set(folder / name, count=1)
    return folder


def asked(places, held_out, sets=("anomaly:RoadY",)):
    return gate_options([places / "A"], list(sets), held_out, None, max_drop=1.0)


def test_held_out_sets_of_one_name_are_refused(places):
    elsewhere = str(places / "B" / "RoadX")
    with pytest.raises(UsageError, match="two sets called 'RoadX'") as caught:
        asked(places, [elsewhere, "anomaly:RoadX"])
    assert elsewhere in str(caught.value)
    assert str(places / "A" / "RoadX") in str(caught.value)
    for one in (elsewhere, "anomaly:RoadX"):
        assert [d.name for d in asked(places, [one]).held_out] == ["RoadX"]


def test_a_held_out_set_that_is_named_twice_is_refused(places):
    with pytest.raises(UsageError, match="--held-out takes 'RoadX' twice"):
        asked(places, [str(places / "A" / "RoadX"), "anomaly:RoadX"])


def test_a_set_of_the_same_name_elsewhere_may_be_held_out(places):
    options = asked(places, [str(places / "B" / "RoadX")], ["anomaly:RoadX"])
    assert [d.name for d in (*options.data, *options.held_out)] == ["RoadX", "RoadX"]


def test_sets_that_decide_are_told_apart_too(places):
    (first,) = open_gate_data([places / "A" / "RoadX"])
    (second,) = open_gate_data([places / "B" / "RoadX"])
    with pytest.raises(UsageError, match="--gate-data takes two sets called 'RoadX'"):
        GateOptions(1.0, [first, second]).check()
    with pytest.raises(UsageError, match="--gate-data takes 'RoadX' twice"):
        GateOptions(1.0, [first, first]).check()


# --- INT8 that is slower everywhere


def found(table, max_drop=10.0):
    pretend = Pretend({k: c for k, (c, _) in table.items()}, max_drop)
    whole = pretend.judge(frozenset())
    costs = costs_of(table, max_drop)
    return search.search(pretend, pretend, costs, whole, budget_ms=1e9)


@pytest.mark.parametrize("max_drop", [0.1, 100.0])
def test_int8_that_is_slower_in_every_group_is_said_and_not_made(max_drop):
    slower = {"a": (3.0, -1.0), "b": (0.5, -0.2)}
    with pytest.raises(GateFailedError, match=r"INT8 gains nothing here: on .* all 2 groups"):
        found(slower, max_drop)
    result = found({**slower, "c": (0.0, 0.1)}, max_drop)
    assert names(result) == {"a", "b"}


def test_no_bundle_is_written_where_int8_gains_nothing(tmp_path, monkeypatch):
    import cv2

    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)
    monkeypatch.setattr(sensitivity, "compare", lambda *_: certain(0.9))
    monkeypatch.setattr(gated, "medians_ms", lambda runs, _: [20.0, 40.0, 25.0][: len(runs)])
    data, calibration = anomaly_set(tmp_path / "in" / "Odd", count=1), tmp_path / "in" / "frames"
    calibration.mkdir()
    (frame,) = frames(1, seed=4)
    cv2.imwrite(str(calibration / "0.png"), frame)
    with pytest.raises(GateFailedError, match="onnxruntime, f32 is faster in all 8 groups"):
        export(tmp_path / "b", data, calibration, 100)
    assert os.listdir(tmp_path) == ["in"]
