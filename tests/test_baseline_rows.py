"""Which row of a baseline a row of ``edgeseg profile`` is held to, and rows that have none."""

import json
from xml.etree import ElementTree

import pytest

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.profiling.budgets import (
    MISSING,
    check_distinct,
    excess,
    judge,
    not_profiled,
    read_baseline,
    write_baseline,
)
from edgeseg.profiling.ci_formats import benchmark_json, junit_xml
from edgeseg.profiling.rows import names_of
from tests.bundles import make_bundle
from tests.test_cli import one_line, run_main
from tests.test_profiling_budgets import KEY, row

OTHER = KEY.replace("enet", "erfnet")
MEASURE = ("--backend", "onnxruntime", "--threads", "1", "--seconds", "0.1")


def of(network, **more):
    return row() | {"network": network} | more


@pytest.fixture
def baseline(tmp_path):
    write_baseline(tmp_path / "baseline.json", [row()], "midenet-int8-abc")
    return read_baseline(tmp_path / "baseline.json")


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """A small reference bundle in place of the ready one."""
    from edgeseg.runtime import ready as module

    reference = make_bundle(tmp_path / "reference", seed=5)
    monkeypatch.setattr(module, "ready_bundle", lambda: reference)


@pytest.fixture
def program(monkeypatch, capfd):
    """``edgeseg profile`` with these options: exit code, stdout, stderr."""
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    return lambda *options: run_main(monkeypatch, capfd, "profile", *options)


def test_a_row_that_the_baseline_lacks_breaks_the_check(baseline):
    findings = judge([row(), of("erfnet")], baseline)
    (missing,) = [f for f in findings if f.exceeded]
    assert (missing.row, missing.state) == (OTHER, MISSING)
    assert excess(findings) == f"the baseline does not hold {OTHER}; store it with --save-baseline"
    both = excess([*findings, *judge([row(p99=30.0)], baseline)])
    assert "1 of 15 figures exceed their limit, the worst p99 latency" in both
    assert both.endswith("--save-baseline")


def test_junit_fails_a_row_that_the_baseline_lacks(baseline):
    xml = junit_xml(judge([row(), of("erfnet")], baseline), "cpu")
    suite = ElementTree.fromstring(xml).find("testsuite")
    assert suite.get("failures") == "1"
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert case.get("classname") == OTHER
    assert "--save-baseline" in case.find("failure").get("message")


def test_rows_that_nobody_profiled_are_only_told(tmp_path):
    path = tmp_path / "baseline.json"
    write_baseline(path, [row(), of("erfnet")], None)
    baseline = read_baseline(path)
    assert not_profiled([row()], baseline) == [OTHER]
    assert not any(f.exceeded for f in judge([row()], baseline))
    # Another precision is held to what is stored, so that was profiled.
    assert not_profiled([row() | {"precision": "float32"}], baseline) == [OTHER]


def test_rows_of_one_key_are_refused_and_told_apart():
    rows = [row() | {"bundle": f"old/{name}"} for name in ("a", "b")]
    with pytest.raises(UsageError, match="'old/a' and 'old/b' are all 'enet int8"):
        check_distinct(rows)
    assert names_of(rows) == [f"{KEY} a", f"{KEY} b"]
    assert names_of([row() | {"bundle": "old/a"}]) == [KEY]
    same = [row() | {"bundle": f"{folder}/a"} for folder in ("old", "new")]
    assert names_of([*same, row()]) == [f"{KEY} a #1", f"{KEY} a #2", KEY]
    assert names_of([row(), row()]) == [f"{KEY} #1", f"{KEY} #2"]
    entries = [entry["name"] for entry in json.loads(benchmark_json(same))]
    assert len(set(entries)) == len(entries)
    assert {f.row for f in judge(rows, None)} == {f"{KEY} a", f"{KEY} b"}


@pytest.mark.parametrize("ratio", [{"samples": [1.0]}, {"samples": [1.0], "median": 0}])
def test_a_ratio_without_a_median_is_no_baseline(tmp_path, baseline, ratio):
    baseline["rows"][KEY]["ratio"] = ratio
    path = tmp_path / "other.json"
    path.write_text(json.dumps(baseline))
    with pytest.raises(ArtefactError, match="is not one"):
        read_baseline(path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": ' * 100_000])
def test_a_deeply_nested_baseline_is_refused(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text)
    with pytest.raises(ArtefactError, match="is not one"):
        read_baseline(path)


def test_what_the_baseline_lacks_exits_with_6(program, ready, tmp_path):
    stored, new = (make_bundle(tmp_path / n, void=n == "stored") for n in ("stored", "new"))
    path = tmp_path / "baseline.json"
    # Without a void output the scorer, and so the key, is another.
    assert program(stored, *MEASURE, "--save-baseline", path)[0] == 0
    options = (*MEASURE, "--check", "--baseline", path, "--budget-ms", "100000")
    code, out, err = program(stored, new, *options, "--json")
    assert code == 6
    assert "store it with --save-baseline" in err
    assert [f["state"] for f in json.loads(out)["check"]].count(MISSING) == 1
    assert program(stored, *options)[0] == 0
    assert program(stored, new, *options, "--save-baseline", path)[0] == 6
    code, out, err = program(stored, *options, "--json")
    assert code == 0
    (idle,) = json.loads(out)["not_profiled"]
    assert "msp" in idle
    assert f"not profiled: {idle}" in err


def test_two_bundles_of_one_key_exit_with_2(program, ready, tmp_path):
    pair = [make_bundle(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    path = tmp_path / "baseline.json"
    code, _, err = program(*pair, *MEASURE, "--save-baseline", path)
    assert (code, "baseline has one row" in one_line(err)) == (2, True)
    assert not path.exists()


def test_one_file_for_two_outputs_is_refused(program, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    paths = (tmp_path / "same.json", tmp_path / "link" / "same.json")
    options = ("enet", "--device", "jetson", "--save-baseline", paths[0], "--junit", paths[1])
    code, out, err = program(*options)
    assert (code, out) == (2, "")
    assert "--save-baseline and --junit both name" in one_line(err)


@pytest.mark.parametrize("budget", ["inf", "1e999"])
def test_a_budget_that_is_no_number_is_refused(program, budget):
    code, out, err = program("enet", "--device", "jetson", "--budget-ms", budget)
    assert (code, out) == (2, "")
    assert "--budget-ms" in one_line(err)
