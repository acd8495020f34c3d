"""What ``edgeseg report`` puts into one chart: the same frames, and what is really one artefact."""

import json

import pytest

from edgeseg.reporting.accuracy import pareto_section, points
from edgeseg.reporting.files import search
from tests.report_files import evaluation
from tests.report_pages import profile

SAME = {"network": "enet", "artefact": "a" * 64}


@pytest.fixture
def paired(tmp_path):
    """The points of documents that are given."""

    def pair(*documents):
        for i, document in enumerate(documents):
            (tmp_path / f"{i}.json").write_text(json.dumps(document), encoding="utf-8")
        found = search(tmp_path, tmp_path / "none")
        assert len(found.profiles) + len(found.evaluations) == len(documents)
        return points(found.profiles, found.evaluations, [])

    return pair


def test_protocols_are_charts_of_their_own(paired):
    found = paired(
        profile(artefact="a" * 64),
        evaluation(auprc=30.0, **SAME),
        evaluation(auprc=20.0, protocol="all", **SAME),
    )
    panels = {p.panel[0]: p.percent for p in found}
    assert panels == {"street": 30.0, "street, protocol all": 20.0}
    page = pareto_section(found, judged=True, timed=True)
    assert "<figcaption>street on cpu</figcaption>" in page
    assert "<figcaption>street, protocol all on cpu</figcaption>" in page


def test_labelled_sets_have_the_same_frames_under_each_protocol(paired):
    labelled = {"kind": "semantic", "scorers": (), "dataset": "city", **SAME}
    found = paired(
        profile(artefact="a" * 64),
        *(evaluation(protocol=p, **labelled) | {"miou_percent": 40.0} for p in ("paper", "all")),
    )
    assert [(p.panel[0], p.percent) for p in found] == [("city", 40.0)]


def test_what_torch_fx_quantized_is_not_as_quick_as_the_bundle(paired):
    bundle, fx = profile(artefact="a" * 64), profile(backend="torch-fx")
    fx["results"][0]["latency_ms"]["p50"] = 90.0
    of_fx = {"network": "enet", "artefact": "f" * 64, "backend": "torch-fx"}
    assert paired(bundle, evaluation(auprc=30.0, **of_fx)) == []
    found = paired(bundle, evaluation(auprc=30.0, **of_fx), fx, evaluation(auprc=35.0, **SAME))
    # Each with its own, and neither with the other's.
    assert sorted((p.ms, p.percent) for p in found) == [(10.0, 35.0), (90.0, 30.0)]
    assert {p.percent: p.matched for p in found}[35.0] == "same bundle"


def test_the_bundle_accuracy_does_not_go_with_fx_latency(paired):
    assert paired(profile(backend="torch-fx"), evaluation(auprc=30.0, network="enet")) == []


def test_a_network_in_torch_still_goes_with_its_bundle_by_name(paired):
    (point,) = paired(
        profile(precision="float32", artefact="a" * 64),
        evaluation(auprc=30.0, network="enet", precision="float32", backend="torch"),
    )
    assert point.matched.startswith("by name")
