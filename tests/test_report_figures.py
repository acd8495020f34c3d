"""Figures of the report: accuracy beside latency, ticks, numbers, tags, and the curves of eval."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from edgeseg.compression.gate_report import SCHEMA as GATE_SCHEMA
from edgeseg.evaluation.curves import MAX_POINTS, curve_document
from edgeseg.evaluation.metrics import AnomalyMetric
from edgeseg.evaluation.report import SCHEMA as EVAL_SCHEMA
from edgeseg.reporting.accuracy import Point, front, points
from edgeseg.reporting.charts import Axis
from edgeseg.reporting.files import search
from edgeseg.reporting.markup import number, tag
from tests.report_files import evaluation, fill
from tests.report_pages import HOSTILE, profile, put
from tests.test_cli import one_line, run_main

# --- how it brings things together


def test_accuracy_goes_with_the_latency_of_the_same_bundle(tmp_path):
    put(tmp_path, "p.json", profile(artefact="a" * 64))
    put(tmp_path, "e.json", evaluation(network="enet", artefact="a" * 64, auprc=30.0))
    put(tmp_path, "other.json", evaluation(network="enet", artefact="b" * 64, auprc=99.0))
    put(tmp_path, "size.json", evaluation(network="enet", size="32x64", auprc=98.0))
    found = search(tmp_path, tmp_path / "none")
    (point,) = points(found.profiles, found.evaluations, [])
    assert (point.ms, point.percent, point.matched) == (10.0, 30.0, "same bundle")


def point(ms, percent, estimated=False):
    panel = ("set", "AuPRC % of void", "cpu")
    return Point(panel, "enet", "int8", "enet", ms, percent, estimated, None, "")


def test_the_front_is_what_nothing_beats_in_both():
    found = [point(1, 10), point(2, 30), point(3, 20), point(4, 40), point(4, 35), point(2, 30)]
    assert [(p.ms, p.percent) for p in front(found)] == [(1, 10), (2, 30), (4, 40)]
    assert front([point(5, 10), point(1, 90, estimated=True)]) == [point(5, 10)]
    assert front([point(1, 90, estimated=True)]) == [point(1, 90, estimated=True)]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("span", [(0.001, 0.0015), (3, 7), (23.5, 24.5), (1, 9e12), (5, 5)])
def test_ticks_are_written_as_the_numbers_that_they_are(log, span):
    axis = Axis.around("x", span, log=log)
    found = axis.ticks()
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    assert 1 <= len(found) <= 8
    for value, text in found:
        assert axis.low <= value <= axis.high * (1 + 1e-9)
        plain = text.replace(",", "")
        written = float(plain.rstrip("kMG")) * units.get(plain[-1], 1)
        assert written == pytest.approx(value, rel=1e-6, abs=1e-12)
    assert len({text for _, text in found}) == len(found)


def test_numbers_have_no_exponent():
    assert [number(v) for v in (None, 0.0, 0.5331, 12.34, 117.4, 4009.0, 1e-5, 1e9)] == [
        "\u2013", "0", "0.533", "12.3", "117", "4,009", "0.00001", "1,000,000,000",
    ]  # fmt: skip


def test_tags_escape_content_and_attributes():
    made = tag("p", HOSTILE, [tag("b", "x"), "<y>"], title=HOSTILE, hidden=True, id=None)
    assert made.count("<") == 4
    assert "<b>x</b>&lt;y&gt;" in made
    assert " hidden" in made
    assert "id=" not in made


# --- eval --curves


def test_curves_are_points_of_the_exact_ones():
    rng = np.random.default_rng(0)
    labels = (rng.random(50_000) < 0.05).astype(np.uint8)
    scores = (rng.normal(size=50_000) + 1.5 * labels).astype(np.float16)
    metric = AnomalyMetric()
    metric.update(scores, labels)
    found = curve_document(metric.curve())
    recall, rate, precision = (
        np.array(found[f"{name}_percent"]) for name in ("recall", "fpr", "precision")
    )
    assert len(recall) == len(found["threshold"]) <= MAX_POINTS
    assert (np.diff(recall) >= 0).all()
    assert (np.diff(rate) >= 0).all()
    for i in (0, 50, 120, -1):
        chosen = scores >= found["threshold"][i]
        hit = np.count_nonzero(chosen & (labels == 1))
        assert recall[i] == pytest.approx(100 * hit / found["positives"], rel=1e-5)
        assert precision[i] == pytest.approx(100 * hit / chosen.sum(), rel=1e-5)
    assert rate[np.argmax(recall >= 95)] == pytest.approx(100 * metric.fpr95(), rel=1e-5)
    # Few as they are, the areas under them are those of all thresholds.
    area = np.trapezoid(np.r_[0, recall, 100], np.r_[0, rate, 100]) / 1e4
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    steps = np.diff(recall, prepend=0) @ precision / 1e4
    assert steps == pytest.approx(average_precision_score(labels, scores), abs=2e-2)


def test_a_curve_without_both_classes_or_finite_thresholds():
    metric = AnomalyMetric()
    metric.update([0.5, 0.7], [0, 0])
    assert curve_document(metric.curve()) is None
    metric.update([np.nan, 0.1], [1, 1])
    found = curve_document(metric.curve())
    assert found["threshold"][0] is None
    json.dumps(found, allow_nan=False)


def test_eval_keeps_curves_where_asked_and_its_figures_as_they_are(tmp_path, monkeypatch, capfd):
    state = tmp_path / "state.npz"
    fill(tmp_path / "r", state=state)
    plain, curved = (
        json.loads(run_main(monkeypatch, capfd, "eval", "--merge", state, "--json", *more)[1])
        for more in ((), ("--curves",))
    )
    assert "curve" not in plain["results"][0]
    assert {"positives", "recall_percent"} <= set(curved["results"][0].pop("curve"))
    for row in curved["results"][1:]:
        row.pop("curve")
    assert curved == plain
    code, _, err = run_main(monkeypatch, capfd, "eval", "--merge", state, "--curves")
    assert code == 2
    assert "--json" in one_line(err)


def test_schemas_are_those_of_the_commands():
    assert (EVAL_SCHEMA, GATE_SCHEMA) == ("edgeseg.eval/1", "edgeseg.gate/1")
