"""``edgeseg report``: what it shows, refuses and leaves alone."""

import json
import os
import re

import cv2
import numpy as np
import pytest

from edgeseg.errors import MissingDependencyError
from edgeseg.reporting.page import MARK
from tests.report_files import evaluation, fill
from tests.report_pages import Reader, made_page, profile, put
from tests.test_cli import one_line, run_main


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
    return lambda folder, *options: made_page(program, folder, tmp_path / "page.html", *options)


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
