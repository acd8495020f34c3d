"""``edgeseg report``: what it takes, shows, refuses and leaves alone."""

import json
import os
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from edgeseg.compression.gate_report import SCHEMA as GATE_SCHEMA
from edgeseg.errors import MissingDependencyError
from edgeseg.evaluation.curves import MAX_POINTS, curve_document
from edgeseg.evaluation.metrics import AnomalyMetric
from edgeseg.evaluation.report import SCHEMA as EVAL_SCHEMA
from edgeseg.reporting.accuracy import Point, front, points
from edgeseg.reporting.charts import Axis
from edgeseg.reporting.files import search
from edgeseg.reporting.markup import number, tag
from edgeseg.reporting.page import MARK
from tests.report_files import evaluation, fill
from tests.test_cli import one_line, run_main

HOSTILE = "<script>alert(1)</script><img src=//x onerror=alert(2)>\"'&"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with something of every command, written by the commands' own code."""
    return fill(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture
def program(monkeypatch, capfd):
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    return lambda *options: run_main(monkeypatch, capfd, "report", *options)


@pytest.fixture
def report(program, tmp_path):
    """The page of a folder, and what was said on stderr."""

    def run(folder, *options):
        code, _, err = program(folder, "-o", tmp_path / "page.html", *options)
        assert code == 0, err
        return (tmp_path / "page.html").read_text(encoding="utf-8"), err

    return run


class Reader(HTMLParser):
    """Tags and attributes of a page, and its text by section."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sections, self.at, self.open = [], {}, None, []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "br", "img"):
            self.open.append(name)
        if name == "section":
            self.at = dict(attributes)["id"]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        if self.at is not None:
            self.sections[self.at] = self.sections.get(self.at, "") + text


def put(folder, name, document):
    folder.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / name).write_text(text, encoding="utf-8")


def profile(**row):
    """A document of one measured row."""
    plain = {
        "network": "enet", "precision": "int8", "size": "64x128", "scorer": "void",
        "kind": "measured", "backend": "openvino", "threads": 2, "params": 10, "macs": 1e9,
        "file_bytes": 100, "latency_ms": {"p50": 10.0, "p90": 11, "p99": 12, "max": 13},
        "stages_ms": {}, "fps": 99, "budget_ms": 20, "within_budget": True,
        "verdict": "comparable", "reasons": [],
    }  # fmt: skip
    return {
        "schema": "edgeseg.profile/1", "device": "cpu", "title": "a processor", "mode": None,
        "kind": "measured", "unconfirmed": [], "results": [plain | row],
    }  # fmt: skip


# --- what it shows


def test_every_section_has_what_its_command_wrote(results, report):
    page, err = report(results)
    text = Reader(page).sections
    assert err == ""
    assert "midenet int8 512x1024" in text["devices"]
    assert "orin-nano-8, 15W" in text["devices"]
    assert "erfnet float32 64x128" in text["devices"]
    assert "street on a processor, quickest engine" in text["pareto"]
    assert "5 points" in text["pareto"]
    assert "Run run.jsonl" in text["latency"]
    assert "bound by memory" in text["roofline"]
    assert "street, protocol paper" in text["accuracy"]
    assert "ROC: erfnet float32 64x128, street" in text["curves"]
    assert "street void AuPRC" in text["compression"]
    assert "3 of 3 frames" in text["frames"]
    assert page.count("data:image/jpeg") == 6
    for name in ("train.jsonl", "notes.txt", "doctor.json"):
        assert name in text["files"]


def test_the_page_asks_nothing_of_a_network(results, report):
    page, _ = report(results)
    reader = Reader(page)
    addresses = [a[k] for _, a in reader.tags for k in ("src", "href", "srcset", "data") if k in a]
    assert addresses
    assert all(a.startswith(("#", "data:image/jpeg;base64,")) for a in addresses)
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in reader.tags}
    assert "url(" not in page
    assert "@import" not in page
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_estimated_rows_say_so_and_measured_ones_do_not(results, report):
    page, _ = report(results)
    cells = re.findall(r'<div class="(measured|estimated)">(.*?)</div>', page)
    assert {kind for kind, _ in cells} == {"measured", "estimated"}
    for kind, text in cells:
        assert ("estimated" in text) == (kind == "estimated")
    rows = re.findall(r"<tr( class=\"estimated\")?><th scope=\"row\">midenet int8.*?</tr>", page)
    assert any(rows)


def test_charts_have_a_name_and_say_their_units(results, report):
    page, _ = report(results)
    charts = [a for name, a in Reader(page).tags if name == "svg" and a.get("class") == "chart"]
    assert len(charts) >= 6
    assert all(a["role"] == "img" and len(a["aria-label"]) > 30 for a in charts)
    for label in ("ms a frame", "operations per byte moved", "false positive rate, %", "recall, %"):
        assert f">{label}" in page


def test_a_measurement_that_one_should_not_trust_says_so(tmp_path, report):
    put(tmp_path / "r", "p.json", profile(verdict="throttled: not comparable", within_budget=False))
    page, _ = report(tmp_path / "r")
    assert "throttled: not comparable" in page
    assert "over the budget of 20 ms" in page


def test_sections_without_material_name_the_command(tmp_path, report):
    put(tmp_path / "r", "p.json", profile())
    text = Reader(report(tmp_path / "r")[0]).sections
    assert "edgeseg eval" in text["pareto"]
    assert "--layers" in text["roofline"]
    assert "--curves" in text["curves"]
    assert "--max-drop" in text["compression"]
    assert "edgeseg run" in text["frames"]


def test_the_size_that_the_page_states_is_its_size(results, report, tmp_path):
    page, _ = report(results)
    stated = re.search(r"This page takes (\d+\.\d\d) MB", page)
    assert float(stated[1]) == pytest.approx(
        (tmp_path / "page.html").stat().st_size / 1e6, abs=0.01
    )


def test_json_tells_what_was_used(results, program, tmp_path):
    code, out, _ = program(results, "-o", tmp_path / "x.html", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "edgeseg.report/1"
    assert found["bytes"] == (tmp_path / "x.html").stat().st_size
    assert found["used"] == {
        "profiles": 2, "evaluations": 2, "runs": 1, "gates": 1, "compression_tables": 1,
        "frames": 3,
    }  # fmt: skip
    assert "notes.txt" in {entry["file"] for entry in found["ignored"]}
    assert found["left_out"] == []


def test_as_many_frames_as_asked_for(results, report):
    assert report(results, "--max-frames", "2")[0].count("data:image/jpeg") == 4
    assert "data:image/jpeg" not in report(results, "--max-frames", "0")[0]


def test_of_many_results_the_page_draws_some_and_says_so(tmp_path, report):
    layer = {"name": "conv", "op": "Conv", "macs": 9, "operations": 0, "read_bytes": 1}
    layer |= {"written_bytes": 1, "estimated_ms": 1.0, "bound": "memory"}
    record = {"frame": 0, "latency_ms": 5.0, "age_ms": 9.0, "state": "ok", "regions": []}
    for i in range(30):
        device = {"device": f"device-{i}"}
        put(tmp_path / "r", f"p{i}.json", profile(network=f"n{i}", layers=[layer]) | device)
        identity = {"network": f"n{i}", "dataset": f"set {i}"}
        put(tmp_path / "r", f"e{i}.json", evaluation(curves=True, **identity))
        put(tmp_path / "r", f"run{i}.jsonl", json.dumps(record) + "\n")
    text = Reader(report(tmp_path / "r")[0]).sections
    assert "48 more charts left out" in text["latency"]
    assert "22 more networks left out" in text["roofline"]
    assert "18 more evaluations left out" in text["curves"]
    assert "6 more pairs" in text["pareto"]
    for i in range(30):
        assert f"device-{i}" in text["devices"]
        assert f"set {i}," in text["accuracy"]


def test_large_pictures_are_made_small(tmp_path, report):
    folder = tmp_path / "r"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 3000, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "a_overlay.jpg"), noise)
    page, _ = report(folder)
    shown = next(a for name, a in Reader(page).tags if name == "img")
    assert (shown["width"], shown["height"]) == ("640", "320")
    assert len(page) < 400_000


# --- what it recognises


def test_files_are_known_by_what_they_hold(tmp_path, report):
    put(tmp_path / "r" / "deep" / "er", "x.dat", profile())
    put(tmp_path / "r", "both.txt", json.dumps(profile()) + "\n" + json.dumps(evaluation()) + "\n")
    put(tmp_path / "r", "bom", "\ufeff" + json.dumps(profile(network="bisenet"), indent=2))
    found = search(tmp_path / "r", tmp_path / "none")
    assert (len(found.profiles), len(found.evaluations)) == (3, 1)
    assert found.ignored == found.broken == []


def test_hidden_files_and_the_last_report_are_passed_over(tmp_path, program):
    put(tmp_path, "p.json", profile())
    put(tmp_path / ".git", "q.json", profile())
    for _ in range(2):
        code, out, _ = program(tmp_path, "-o", tmp_path / "report.html", "--json")
        assert code == 0
        assert json.loads(out)["used"]["profiles"] == 1
        assert json.loads(out)["ignored"] == []


def test_links_in_a_circle_end(tmp_path):
    put(tmp_path / "r", "p.json", profile())
    (tmp_path / "r" / "again").symlink_to(tmp_path / "r")
    assert len(search(tmp_path / "r", tmp_path / "none").profiles) == 1


def test_another_version_is_ignored_by_name(tmp_path):
    put(tmp_path, "p.json", {**profile(), "schema": "edgeseg.profile/2"})
    assert search(tmp_path, tmp_path / "none").ignored == [("p.json", "schema edgeseg.profile/2")]


BROKEN = {
    "cut off": json.dumps(profile())[:200],
    "no object": '{"schema": "edgeseg.profile/1", "results": [7]}',
    "nothing": "",
    "not finite": json.dumps(profile(params=float("nan"))),
    "huge": json.dumps(profile(params=10**400)),
    "a text": json.dumps(profile(macs="1e9")),
    "no latency": json.dumps(profile(latency_ms={})),
    "tiny": json.dumps(profile(latency_ms={"p50": 1e-300, "max": 1e17})),
    "negative": json.dumps(profile(latency_ms={"p50": -1})),
    "deep": '{"a":' * 100_000,
    "uneven curve": json.dumps(
        evaluation(curve={"positives": 1, "negatives": 1, "threshold": [1], "recall_percent": []})
    ),
    "gate": json.dumps({"schema": GATE_SCHEMA, "figures": [[]]}),
    "compression": json.dumps({"schema": "edgeseg.compression-table/1", "networks": {"a": 1}}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_costs_a_sentence_and_stops_nothing(case, tmp_path, report):
    put(tmp_path / "r", "bad.json", BROKEN[case])
    put(tmp_path / "r", "good.json", profile(network="bisenet"))
    page, err = report(tmp_path / "r")
    assert "bad.json" in one_line(err)
    text = Reader(page).sections
    assert "bad.json" in text["files"]
    assert "bisenet" in text["devices"]


def test_a_run_whose_last_line_was_cut_keeps_the_others(tmp_path, report):
    record = {"frame": 0, "latency_ms": 5.0, "age_ms": 9.0, "state": "ok", "regions": []}
    lines = [json.dumps(record | {"frame": i, "latency_ms": 5.0 + i}) for i in range(9)]
    put(tmp_path / "r", "run.jsonl", "\n".join(lines) + '\n{"frame": 9, "lat')
    page, err = report(tmp_path / "r")
    assert "1 of its lines cannot be read" in one_line(err)
    assert "9 frames: 9 ok" in page
    assert "median 9 ms" in page


def test_a_broken_picture_is_left_out(tmp_path, report):
    put(tmp_path / "r", "p.json", profile())
    (tmp_path / "r" / "a_overlay.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    page, err = report(tmp_path / "r")
    assert "a_overlay.jpg" in one_line(err)
    assert "data:image" not in page


def test_names_from_files_are_text_and_nothing_else(tmp_path, report):
    folder = tmp_path / "r"
    row = dict.fromkeys(("network", "precision", "size", "scorer", "backend", "verdict"), HOSTILE)
    layer = {"name": HOSTILE, "op": HOSTILE, "macs": 9, "operations": 1, "read_bytes": 4}
    layer |= {"written_bytes": 4, "estimated_ms": 1.0, "bound": HOSTILE}
    document = profile(**row, reasons=[HOSTILE], layers=[layer, layer])
    put(folder, "p.json", document | {"device": HOSTILE, "title": HOSTILE, "mode": HOSTILE})
    judged = evaluation(curves=True)
    judged["results"][0]["scorer"] = HOSTILE
    put(
        folder,
        "e.json",
        judged | dict.fromkeys(("network", "dataset", "precision", "size"), HOSTILE),
    )
    put(folder, "<img src=x onerror=alert(1)>.json", {"schema": HOSTILE})
    record = {"frame": 0, "latency_ms": 5, "age_ms": 9, "state": HOSTILE, "regions": []}
    put(folder, "run.jsonl", json.dumps(record) + "\n")
    cv2.imwrite(str(folder / "<b onclick='x'>_overlay.jpg"), np.zeros((8, 8, 3), np.uint8))
    page, _ = report(folder)
    reader = Reader(page)
    assert not any(name in ("script", "b onclick") for name, _ in reader.tags)
    assert not any(key.startswith("on") for _, a in reader.tags for key in a)
    assert all(a["src"].startswith("data:image/jpeg") for n, a in reader.tags if n == "img")
    assert "alert(1)" in reader.sections["devices"]


def test_long_texts_and_control_characters_do_not_spoil_the_page(tmp_path, report):
    put(tmp_path / "r", "p.json", profile(network="x" * 10**6, scorer="a\u202eb\x00c"))
    page, _ = report(tmp_path / "r")
    assert "x" * 121 not in page
    assert "\u202e" not in page
    assert len(page) < 100_000


def test_a_large_file_is_left_out(tmp_path, report, monkeypatch):
    monkeypatch.setattr("edgeseg.reporting.files.MAX_DOCUMENT_BYTES", 5000)
    put(tmp_path / "r", "p.json", profile())
    put(tmp_path / "r", "large.json", json.dumps(profile(reasons=["y" * 90] * 100), indent=1))
    _, err = report(tmp_path / "r")
    assert "large.json" in one_line(err)


# --- what it refuses


def test_no_folder_and_an_empty_one_are_missing_input(tmp_path, program):
    code, _, err = program(tmp_path / "none", "-o", tmp_path / "x.html")
    assert code == 7
    assert "none" in one_line(err)
    (tmp_path / "empty").mkdir()
    code, _, err = program(tmp_path / "empty", "-o", tmp_path / "x.html")
    assert code == 7
    assert "edgeseg profile --json" in one_line(err)
    assert not (tmp_path / "x.html").exists()


def test_a_folder_of_other_things_is_a_bad_artefact(tmp_path, program):
    put(tmp_path / "r", "notes.txt", "hello")
    code, _, err = program(tmp_path / "r", "-o", tmp_path / "x.html")
    assert code == 4
    assert "none of the 1 files" in one_line(err)
    assert not (tmp_path / "x.html").exists()


def test_a_report_is_replaced_and_nothing_else_is(tmp_path, program):
    put(tmp_path / "r", "p.json", profile())
    page = tmp_path / "x.html"
    page.write_text("my thesis")
    code, _, err = program(tmp_path / "r", "-o", page)
    assert code == 2
    assert "is no edgeseg report" in one_line(err)
    assert page.read_text() == "my thesis"
    page.write_text("")
    assert program(tmp_path / "r", "-o", page)[0] == 0
    first = page.stat().st_ino
    assert program(tmp_path / "r", "-o", page)[0] == 0
    assert page.stat().st_ino != first
    assert MARK in page.read_text()
    assert set(os.listdir(tmp_path)) == {"r", "x.html"}


def test_a_folder_as_output_is_refused(tmp_path, program):
    put(tmp_path / "r", "p.json", profile())
    code, _, err = program(tmp_path / "r", "-o", tmp_path)
    assert code == 2
    assert "is a folder" in one_line(err)


def test_without_opencv_the_rest_is_shown(results, report, monkeypatch):
    def missing():
        raise MissingDependencyError("OpenCV cannot be imported")

    monkeypatch.setattr("edgeseg.reporting.pictures.opencv", missing)
    page, err = report(results)
    assert "OpenCV" in one_line(err)
    assert "3 frames are left out" in page
    assert "data:image" not in page


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


# --- what a profile may hold beyond its contract


def test_single_latencies_make_a_histogram(tmp_path, report):
    put(tmp_path / "r", "p.json", profile(samples_ms=[10.0, 11.0, 12.0, 30.0]))
    page, _ = report(tmp_path / "r")
    assert "enet int8 64x128 on cpu, 4 frames" in page
    assert "latency median 11.5 ms" in page


def test_the_roof_is_that_of_the_document(tmp_path, report):
    layer = {"name": "conv", "op": "Conv", "shape": "", "integer": True, "macs": 1e6}
    layer |= {"operations": 0, "read_bytes": 1e4, "written_bytes": 1e4}
    put(tmp_path / "r", "p.json", profile(layers=[layer]))
    page, _ = report(tmp_path / "r")
    assert "No roof is known for cpu" in page
    document = profile(layers=[layer]) | {"peaks": {"bandwidth_gbs": 7.5, "int8_tops": 2.0}}
    put(tmp_path / "r", "p.json", document)
    page, _ = report(tmp_path / "r")
    assert "7.5 GB/s" in page
    assert "int8: 2 T operations a second" in page
    assert "conv (Conv): 100 operations per byte, at the roof; its time is not known" in page


def test_a_host_is_a_device_of_its_own(tmp_path, report):
    there = {"host": {"name": "pi@shed", "processor": "Cortex-A76"}}
    put(tmp_path / "r", "here.json", profile())
    put(tmp_path / "r", "there.json", profile(host="pi@shed") | there)
    text = Reader(report(tmp_path / "r")[0]).sections["devices"]
    assert "cpu at pi@shedCortex-A76" in text
    assert "cpua processor" in text
