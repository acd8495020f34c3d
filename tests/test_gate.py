"""The accuracy gate: the data that it looks at, and its verdicts."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")
pytest.importorskip("cv2")

from edgeseg.compression.gate import Gate, Verdict
from edgeseg.compression.gate_data import Kept, open_gate_data, pictures
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.data import Dataset
from edgeseg.errors import InputError, UsageError
from edgeseg.runtime import backends
from edgeseg.scoring.scorers import SCORERS
from tests.exported import HEIGHT, WIDTH, frames, network
from tests.gate_fakes import CHANGE, SIZE, anomaly_set, figure, fill, labelled_set, write
from tests.test_sensitivity import manifest_of, workbench


@pytest.fixture(autouse=True)
def no_trial(monkeypatch):
    """Engines load graphs in this process at once: a child for each of many would take minutes."""
    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("gate"))


# --- data


def test_gate_data_is_found_in_every_form(data, tmp_path):
    found = {d.name: d for d in open_gate_data([data])}
    assert set(found) == {"Odd", "Streets"}
    assert {k: (d.kind, len(d)) for k, d in found.items()} == {
        "Odd": ("anomaly", 3),
        "Streets": ("semantic", 2),
    }
    assert [d.name for d in open_gate_data([data / "anomaly" / "Odd"])] == ["Odd"]
    assert [d.name for d in open_gate_data([data / "anomaly"])] == ["Odd"]
    assert [d.name for d in open_gate_data([data / "Streets", data / "anomaly"])] == [
        "Streets",
        "Odd",
    ]
    labelled_set(tmp_path / "set" / "val")
    assert [d.name for d in open_gate_data([tmp_path])] == ["set/val"]
    labelled_set(tmp_path / "set" / "train")
    assert [d.name for d in open_gate_data([tmp_path])] == ["set/train"]
    assert [d.name for d in open_gate_data([tmp_path], splits=["val"])] == ["set/val"]
    with pytest.raises(InputError, match="test"):
        open_gate_data([tmp_path], splits=["test"])


def test_gate_data_is_taken_by_the_names_that_eval_knows(data, tmp_path):
    labelled_set(tmp_path / "cityscapes" / "val")
    labelled_set(tmp_path / "cityscapes" / "train")
    anomaly_set(tmp_path / "Even", count=1)

    def taken(*names, **options):
        return [d.name for d in open_gate_data([data, tmp_path], names, **options)]

    assert taken("anomaly:Odd") == ["Odd"]
    assert taken("anomaly:Even", "cityscapes") == ["Even", "cityscapes/train"]
    assert taken("cityscapes", splits=["val", "train"]) == ["cityscapes/val"]
    assert [d.name for d in open_gate_data([tmp_path / "Even"], ["anomaly:Even"])] == ["Even"]
    with pytest.raises(InputError, match="camvid"):
        taken("camvid")
    with pytest.raises(UsageError, match="Odd"):
        taken("Odd")


def test_gate_data_that_cannot_be_is_one_sentence(data, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_gate_data([tmp_path / "absent"])
    with pytest.raises(InputError, match="labels_masks"):
        open_gate_data([data / "weights"])
    with pytest.raises(UsageError, match="Odd"):
        open_gate_data([data, data / "anomaly"])
    (tmp_path / "e" / "images").mkdir(parents=True)
    (tmp_path / "e" / "labels_masks").mkdir()
    with pytest.raises(InputError, match="no frames"):
        open_gate_data([tmp_path / "e"])


def test_kept_samples_are_read_once_and_are_the_same(data):
    (dataset,) = open_gate_data([data / "anomaly"])
    half = (HEIGHT // 2, WIDTH // 2)
    kept = Kept(dataset, 2, half, budget=4 * half[0] * half[1])
    assert [s.name for s in kept] == ["0", "2"]
    assert kept.kept_bytes == 4 * half[0] * half[1]
    first, second = kept
    assert first.load_image().shape == (*half, 3)
    assert first.load_label().shape == half
    assert first.load_image() is first.load_image()
    assert set(np.unique(first.load_label())) <= {0, 1, 255}
    assert second.load_image().shape == (HEIGHT, WIDTH, 3)  # beyond the budget: as it is on disk
    assert len(pictures([dataset], 2, half)) == 2
    assert pictures([dataset], 9, half)[0].shape == (*half, 3)
    many = Dataset("many", dataset.folder, "anomaly", list(dataset) * 100)
    assert len(Kept(many, None, half)) == 100
    assert len(Kept(many, 1, half)) == 300


# --- verdicts


@pytest.mark.parametrize("name", ["auprc_percent", "fpr95_percent", "miou_percent"])
def test_worse_is_positive_for_every_figure(name):
    assert figure(1.5, name).drop == pytest.approx(1.5)
    assert figure(-1.5, name).drop == pytest.approx(-1.5)
    assert Verdict((figure(0.9, name),), CHANGE, None, 1.0).holds
    verdict = Verdict((figure(0.1), figure(1.1, name)), CHANGE, None, 1.0)
    assert not verdict.holds
    assert verdict.excess == pytest.approx(1.1)
    assert {"auprc": "AuPRC", "fpr95": "FPR95", "miou": "mIoU"}[name[:5].rstrip("_")] in (
        verdict.worst
    )


def test_scores_must_not_change_more_than_the_limit():
    fine = Verdict((figure(0.5),), CHANGE, ScoreChange(0.5, 1.0), 1.0)
    assert fine.holds
    beyond = Verdict((figure(0.5),), CHANGE, ScoreChange(0.6, 0.5), 1.0)
    assert not beyond.holds
    assert beyond.excess == pytest.approx(2)
    assert "void log odds" in beyond.worst
    assert Verdict((), CHANGE, None, 1.0).holds
    assert "max logit" in Verdict((), CHANGE, ScoreChange(0.4, 1.1), 1.0).worst


# --- the gate on engines


def opened(bench, data, max_drop=1.0, limit=None):
    head, _ = manifest_of(network("midenet"))
    probe = ScoreProbe(head, HEIGHT, WIDTH, 1)
    with bench.open(bench.float32()) as session:
        reference = Reference(probe, frames(2, seed=4), session.features)
        kept = [Kept(d, 1, SIZE) for d in open_gate_data([data])]
        return Gate(session, kept, reference, max_drop, limit), kept


def test_the_gate_looks_at_every_scorer_and_at_miou(data):
    with workbench() as bench:
        gate, _ = opened(bench, data)
        with bench.open(bench.float32()) as session:
            same = gate.judge(session)
            noisy = gate.noise_drops(session, [4])
        with bench.open(bench.int8()) as session:
            whole = gate.judge(session)
    expected = {("Odd", s, f) for s in SCORERS for f in ("auprc_percent", "fpr95_percent")}
    expected |= {("Streets", None, "miou_percent")}
    for verdict in (same, whole):
        assert {(f.dataset, f.scorer, f.name) for f in verdict.figures} == expected
        assert len(verdict.figures) == len(expected)
        assert verdict.complete
    assert gate.frames == {"Odd": 3, "Streets": 2}
    assert same.holds
    assert same.change == ScoreChange(0, 0)
    assert all(f.drop == 0 for f in same.figures)
    # The labels are the float network's own classes.
    assert next(f for f in whole.figures if f.scorer is None).before == 100
    assert next(f for f in whole.figures if f.scorer is None).drop > 0
    assert whole.change.max_logit > 0
    assert next(f for f in noisy[4] if f.scorer is None).drop > 0


def test_a_set_without_an_anomaly_is_no_gate(tmp_path):
    (frame,) = frames(1)
    write(tmp_path / "Empty", "0", frame, np.zeros(SIZE, np.uint8), "labels_masks")
    with workbench() as bench, pytest.raises(InputError, match="Empty"):
        opened(bench, tmp_path)


def test_a_search_stops_at_the_set_that_fails_and_looks_there_first(data):
    with workbench() as bench:
        gate, _ = opened(bench, data, max_drop=-1e9)
        with bench.open(bench.int8()) as session:
            first = gate.judge(session, stop_early=True)
            assert {f.dataset for f in first.figures} == {"Streets"}
            assert not first.complete
        gate, _ = opened(bench, data, limit=ScoreChange(0, 0))
        with bench.open(bench.int8()) as session:
            none = gate.judge(session, stop_early=True)
            assert (none.figures, none.complete, none.holds) == ((), False, False)
            assert gate.judge(session).complete
