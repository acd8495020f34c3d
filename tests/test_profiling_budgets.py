"""Checks against budgets and baselines, and what CI gets to read."""

import copy
import json
from xml.etree import ElementTree

import numpy as np
import pytest

from edgeseg.errors import ArtefactError, InputError
from edgeseg.profiling.budgets import MISSING, band, judge, read_baseline, write_baseline
from edgeseg.profiling.ci_formats import benchmark_json, junit_xml
from edgeseg.profiling.state import BUSY, COMPARABLE, THROTTLED

COUNTS = {"params": 100, "macs": 5000, "weight_bytes": 400, "activation_peak_bytes": 9000}


def row(*, p99=10.0, fastest=8.0, verdict=COMPARABLE, ratio=2.0, file_bytes=1000, **counts):
    return {
        "network": "enet",
        "precision": "int8",
        "size": "512x1024",
        "scorer": "void",
        "backend": "openvino",
        "threads": 2,
        "kind": "measured",
        "params": 100,
        "macs": 5000,
        "file_bytes": file_bytes,
        "counts": {**COUNTS, **counts},
        "latency_ms": {"p50": 9.0, "p99": p99},
        "fastest_ms": fastest,
        "jitter_ms": 0.5,
        "budget_ms": 20.0,
        "verdict": verdict,
        "ratio": {
            "reference": "midenet-int8-abc",
            "median": ratio,
            "samples": [ratio * f for f in (0.99, 1.0, 1.01, 1.0, 0.995, 1.005)],
        },
    }


KEY = "enet int8 512x1024 void openvino 2 threads"


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "deep" / "baseline.json"
    write_baseline(path, [row()], "midenet-int8-abc")
    return read_baseline(path)


def states(findings):
    return {f.figure: f.state for f in findings}


def test_unchanged_is_ok(baseline):
    findings = judge([row()], baseline)
    assert {f.state for f in findings} == {"ok"}
    assert len(findings) == 7
    assert {f.row for f in findings} == {KEY}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_are_hard(baseline, name):
    findings = judge([row(**{name: COUNTS[name] + 1})], baseline)
    assert [f.figure for f in findings if f.exceeded] == [name]
    assert not any(f.exceeded for f in judge([row(**{name: 1})], baseline))


def test_another_precision_is_held_to_the_one_that_is_stored(baseline):
    floating = row(file_bytes=4000) | {"precision": "float32"}
    assert [f.figure for f in judge([floating], baseline) if f.exceeded] == ["file_bytes"]
    both = judge([row(), floating], baseline)  # what is stored is the other row's
    assert [(f.row, f.state) for f in both if f.exceeded] == [
        (KEY.replace("int8", "float32"), MISSING)
    ]
    baseline["rows"][KEY.replace("int8", "float16")] = baseline["rows"][KEY]
    with pytest.raises(InputError, match="holds none"):  # which of two is not known
        judge([floating], baseline)


def test_files_have_a_little_slack(baseline):
    assert states(judge([row(file_bytes=1010)], baseline))["file_bytes"] == "ok"
    (bad,) = [f for f in judge([row(file_bytes=4000)], baseline) if f.exceeded]
    assert (bad.figure, bad.excess_percent) == ("file_bytes", 300.0)


def test_latency_is_a_ratio_on_shared_machines(baseline):
    assert states(judge([row(ratio=2.1)], baseline))["latency ratio"] == "ok"
    assert states(judge([row(ratio=2.6)], baseline))["latency ratio"] == "exceeded"
    assert states(judge([row(ratio=1.0)], baseline))["latency ratio"] == "ok"
    # The same ratio at any speed of the machine.
    assert not any(f.exceeded for f in judge([row(p99=19.9, fastest=19.0)], baseline))
    other = row()
    other["ratio"]["reference"] = "midenet-int8-def"
    assert states(judge([other], baseline))["latency ratio"].startswith("not judged")


def test_band_follows_the_noise():
    rng = np.random.default_rng(0)
    quiet, noisy = 2 + 0.01 * rng.normal(size=20), 2 + 0.6 * rng.normal(size=20)
    assert band(quiet, quiet) == 0.10
    assert band(quiet, noisy) > 0.2
    # One bad turn of many moves nothing.
    assert band(quiet, [*quiet[:-1], 50.0]) == 0.10


def test_budget_is_judged_where_that_is_fair():
    assert states(judge([row(p99=19)], None)) == {"p99 latency": "ok"}
    assert states(judge([row(p99=21)], None)) == {"p99 latency": "exceeded"}
    for verdict in (BUSY, THROTTLED):
        state = states(judge([row(p99=50, verdict=verdict)], None))["p99 latency"]
        assert state.startswith("not judged")
        # Even its fastest frame is too slow: that is no neighbour's doing.
        late = row(p99=50, fastest=30, verdict=verdict)
        assert states(judge([late], None)) == {"p99 latency": "exceeded"}
    estimated = row(p99=21, verdict="estimated") | {"kind": "estimated"}
    assert states(judge([estimated], None)) == {"p99 latency": "exceeded"}


def test_a_baseline_of_something_else_is_refused(baseline):
    with pytest.raises(InputError, match="none of what was profiled"):
        judge([row() | {"network": "erfnet"}], baseline)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema="other/1"),
        lambda d: d.pop("rows"),
        lambda d: d["rows"][KEY].pop("macs"),
        lambda d: d["rows"][KEY].update(macs="many"),
        lambda d: d["rows"][KEY]["ratio"].update(samples=[]),
        lambda d: d["rows"][KEY]["ratio"].update(samples=[0]),
        lambda d: d.update(rows=[1]),
    ],
)
def test_damaged_baselines(tmp_path, baseline, change):
    document = copy.deepcopy(baseline)
    change(document)
    path = tmp_path / "b.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match="is not one"):
        read_baseline(path)


def test_missing_and_unwritable_files(tmp_path):
    with pytest.raises(InputError, match="--save-baseline"):
        read_baseline(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_baseline(tmp_path / "file" / "b.json", [row()], None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_junit(baseline):
    findings = judge([row(macs=6000, p99=50, verdict=BUSY)], baseline)
    suite = ElementTree.fromstring(junit_xml(findings, "cpu")).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("7", "1", "1")
    failed = [case for case in suite if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["macs"]
    assert "+20.0%" in failed[0].find("failure").get("message")


def test_benchmark_json_is_what_the_action_reads():
    entries = json.loads(benchmark_json([row()]))
    assert all({"name", "unit", "value"} <= set(e) for e in entries)
    assert {e["unit"] for e in entries} == {"ms", "x", "count", "bytes"}
    assert len({e["name"] for e in entries}) == len(entries)
    assert all(isinstance(e["value"], int | float) for e in entries)


def test_the_projects_own_baseline_is_of_the_ready_bundle():
    from edgeseg.bundle import Bundle
    from edgeseg.errors import UsageError
    from edgeseg.profiling.subjects import from_bundle
    from edgeseg.runtime.ready import ready_bundle
    from tests.conftest import ROOT

    try:
        bundle = Bundle.open(ready_bundle())
    except UsageError:
        pytest.skip("this checkout has no ready bundle (make ranges)")
    stored = read_baseline(ROOT / "tools" / "ci" / "baseline.json")
    (told,) = stored["rows"].values()
    now = from_bundle(bundle).counts("void").to_document()
    again = (
        "run: edgeseg profile midenet --backend onnxruntime --threads 1 "
        "--save-baseline tools/ci/baseline.json"
    )
    for name in ("params", "macs", "weight_bytes", "activation_peak_bytes"):
        assert now[name] == told[name], again
    assert stored["reference"].endswith(bundle.body_sha256[:12]), again
