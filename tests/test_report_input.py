"""What ``edgeseg report`` takes: files by what they hold, broken, hostile, beyond the contract."""

import json

import cv2
import numpy as np
import pytest

from edgeseg.compression.gate_report import SCHEMA as GATE_SCHEMA
from edgeseg.reporting.files import search
from tests.report_files import evaluation
from tests.report_pages import HOSTILE, Reader, made_page, profile, put
from tests.test_cli import one_line, run_main


@pytest.fixture
def program(monkeypatch, capfd):
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    return lambda *options: run_main(monkeypatch, capfd, "report", *options)


@pytest.fixture
def report(program, tmp_path):
    """The page of a folder, and what was said on stderr."""
    return lambda folder, *options: made_page(program, folder, tmp_path / "page.html", *options)


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
