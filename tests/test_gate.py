"""The accuracy gate: what it looks at, what it leaves in float, and that failing writes nothing."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")
pytest.importorskip("cv2")

import cv2

from edgeseg import cli
from edgeseg.bundle import CALIBRATION, Bundle
from edgeseg.compression import gated, search, sensitivity
from edgeseg.compression.calibration import Ranges, observe
from edgeseg.compression.gate import Figure, Gate, Verdict
from edgeseg.compression.gate_data import Kept, open_gate_data, pictures
from edgeseg.compression.gate_options import GateOptions
from edgeseg.compression.gate_report import GATE, markdown
from edgeseg.compression.groups import Group, find_groups
from edgeseg.compression.int8_recovery import Recovered, RecoveryOptions
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.compression.sensitivity import GroupCost
from edgeseg.compression.timing import Comparison
from edgeseg.data import Dataset
from edgeseg.errors import GateFailedError, InputError, UsageError
from edgeseg.export.exporter import export_bundle
from edgeseg.runtime import backends
from edgeseg.scoring.scorers import SCORERS
from edgeseg.taxonomy import IGNORE
from tests.exported import HEIGHT, WIDTH, body_of, frames, network, torch_logits
from tests.test_sensitivity import broken, certain, manifest_of, workbench

SIZE = (HEIGHT, WIDTH)
QUIET = {"backend": "onnxruntime", "threads": 1}


def write(folder, name, image, label, masks):
    for kind, content in (("images", image), (masks, label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / kind / f"{name}.png"), content)


def anomaly_set(folder, count=3, seed=20):
    """Frames whose label says "anomaly" where the network's own score is high, and noise."""
    rng = np.random.default_rng(seed)
    for index, frame in enumerate(frames(count, seed=seed)):
        logits = torch_logits(network("midenet"), frame)
        score = -logits[:19].max(0) + rng.normal(0, 0.5, SIZE)
        label = (score > np.quantile(score, 0.9)).astype(np.uint8)
        label[:4] = IGNORE
        write(folder, str(index), frame, label, "labels_masks")
    return folder


def labelled_set(folder, count=2, seed=30):
    for index, frame in enumerate(frames(count, seed=seed)):
        label = torch_logits(network("midenet"), frame)[:19].argmax(0).astype(np.uint8)
        label[:4] = IGNORE
        write(folder, str(index), frame, label, "labels")
    return folder


@pytest.fixture(autouse=True)
def no_trial(monkeypatch):
    """Engines load graphs in this process at once: a child for each of many would take minutes."""
    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    anomaly_set(folder / "anomaly" / "Odd")
    labelled_set(folder / "Streets")
    (folder / "weights").mkdir()
    return folder


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    for index, frame in enumerate(frames(3, seed=4)):
        cv2.imwrite(str(folder / f"{index}.png"), frame)
    return folder


@pytest.fixture
def steady(monkeypatch):
    """Times that do not depend on the machine: integers are always faster, in groups too."""
    monkeypatch.setattr(sensitivity, "compare", lambda *_: certain(1.05))
    monkeypatch.setattr(gated, "medians_ms", lambda runs, _: [40.0, 20.0, 25.0][: len(runs)])


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

CHANGE = ScoreChange(0.5, 1.0)


def figure(drop, name="fpr95_percent", dataset="a"):
    sign = -1 if name == "fpr95_percent" else 1
    return Figure(dataset, None if "miou" in name else "msp", name, 50.0, 50.0 - sign * drop)


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


# --- the search, without a network


class Pretend:
    """A bench and gate in which the drop is what the integer groups cost together."""

    def __init__(self, costs, max_drop, refuse=()):
        self.costs, self.max_drop, self.refuse = costs, max_drop, refuse
        self.backend, self.compute_precision = "pretended", "f32"
        self.seen = []

    def int8(self, keep=()):
        return frozenset(g.name for g in keep)

    def open(self, names):
        from contextlib import nullcontext

        from edgeseg.errors import ArtefactError

        if names in self.refuse:
            raise ArtefactError("crashed")
        return nullcontext(names)

    def judge(self, names, *, stop_early=False):
        del stop_early
        self.seen.append(names)
        drop = sum(c for name, c in self.costs.items() if name not in names)
        return Verdict((figure(drop),), CHANGE, None, self.max_drop)


def cost_of(name, drop, time, max_drop):
    """What a group costs and buys where the allowed drop is ``max_drop``."""
    alone = Verdict((figure(drop),), CHANGE, None, max_drop)
    return GroupCost(Group(name, (f"/{name}",)), alone, time)


def costs_of(table, max_drop=10.0):
    """``name: (cost, ms)`` as group costs."""
    return [
        cost_of(name, drop, certain(1 + ms / 20), max_drop) for name, (drop, ms) in table.items()
    ]


TABLE = {"a": (3.0, 2.0), "b": (2.0, 0.5), "c": (0.1, 1.0), "d": (4.0, 8.0), "e": (0.3, -0.5)}


def find(table, max_drop, budget_ms=1e9, **options):
    pretend = Pretend({k: c for k, (c, _) in table.items()}, max_drop, options.pop("refuse", ()))
    whole = pretend.judge(frozenset())
    pretend.seen.clear()
    costs = costs_of(table, max_drop)
    result = search.search(pretend, pretend, costs, whole, budget_ms=budget_ms, **options)
    return result, pretend


def names(result):
    return {g.name for g in result.keep}


def test_the_order_is_what_is_brought_back_per_millisecond():
    def ranked(costs, budget_ms=1e9):
        return "".join(c.group.name for c in search.order(costs, budget_ms))

    assert ranked(costs_of(TABLE)) == "badc"  # e is slower in INT8: no choice to make
    assert ranked(costs_of(TABLE), 4.0) == "bac"
    # What breaks the gate by itself comes first, whatever it takes.
    assert ranked(costs_of(TABLE, max_drop=2.5)) == "adbc"
    assert ranked(costs_of({**TABLE, "a": (-1.0, 2.0)})) == "bdc"


@pytest.mark.parametrize(
    ("max_drop", "expected"),
    [
        (99, {"e"}),
        (9.2, {"e"}),
        (7.2, {"b", "e"}),
        (4.2, {"a", "b", "e"}),
        (2.2, {"a", "d", "e"}),  # b became superfluous, and is dropped though it was best
        (0.11, {"a", "b", "d", "e"}),
    ],
)
def test_the_fewest_and_cheapest_groups_stay_in_float(max_drop, expected):
    result, pretend = find(TABLE, max_drop)
    assert result.holds
    assert names(result) == expected
    assert result.looks <= search.MAX_LOOKS
    assert len(set(pretend.seen)) == len(pretend.seen)  # nothing is measured twice


def test_what_cannot_be_held_is_said_with_the_nearest():
    result, _ = find(TABLE, 0.05, budget_ms=3.0)
    assert not result.holds
    assert names(result) == {"a", "b", "e"}
    assert result.verdict.excess == pytest.approx(4.1 / 0.05)
    result, _ = find({"a": (3.0, -1.0), "b": (0.5, 1.0)}, 1.0)
    assert result.holds
    assert names(result) == {"a"}


def test_what_may_be_slower_is_not_float_by_chance():
    unsure = Comparison(0.98, 0.9, 1.1, 20.0)
    for max_drop, expected in ((4.0, set()), (1.0, {"a"})):
        pretend = Pretend({"a": 3.0, "b": 0.0}, max_drop)
        costs = [cost_of(n, c, unsure, max_drop) for n, c in pretend.costs.items()]
        whole = pretend.judge(frozenset())
        result = search.search(pretend, pretend, costs, whole, budget_ms=0.0)
        assert names(result) == expected


def test_groups_that_spoil_the_same_figure_are_found_together():
    """Leaving either in float alone brings nothing back; both together bring back all."""

    class Saturated(Pretend):
        def judge(self, names, *, stop_early=False):
            del stop_early
            self.seen.append(names)
            drop = 0.1 if {"a", "b"} <= names else 1.5
            return Verdict((figure(drop),), CHANGE, None, 1.0)

    table = {"c": (0.4, 0.1), "a": (1.5, 9.0), "d": (0.3, 0.1), "b": (1.5, 7.0)}
    pretend = Saturated({}, 1.0)
    whole = pretend.judge(frozenset())
    result = search.search(pretend, pretend, costs_of(table, 1.0), whole, budget_ms=1e9)
    assert result.holds
    assert names(result) == {"a", "b"}


def test_something_stays_integer():
    result, pretend = find({"a": (3.0, 1.0), "b": (3.0, 2.0)}, 1.0)
    assert not result.holds
    assert all(len(seen) < 2 for seen in pretend.seen)


def test_looks_are_bounded():
    table = {str(i): (1.0, 1.0 + 0.01 * i) for i in range(40)}
    result, pretend = find(table, 20.5, max_looks=7)
    assert result.holds
    assert len(pretend.seen) <= 7
    assert len(result.keep) >= 20


def test_a_combination_that_the_engine_refuses_is_not_taken():
    result, _ = find(TABLE, 0.11, refuse=[frozenset("abde")])
    assert not result.holds
    result, _ = find(TABLE, 4.2, refuse=[frozenset({"e"})])
    assert result.holds
    assert "e" not in names(result)


# --- whole exports


def export(destination, data, calibration, max_drop, **options):
    gate = GateOptions(
        max_drop,
        open_gate_data([data]),
        **{"max_noise": None, "compute_precision": "f32", **QUIET, **options},
    )
    return export_bundle(
        network("midenet"),
        destination,
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=calibration,
        gate=gate,
    )


def test_a_wide_gate_changes_nothing(data, pictures_folder, tmp_path, steady):
    plain = export_bundle(
        network("midenet"),
        tmp_path / "plain",
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=pictures_folder,
    )
    other = open_gate_data([anomaly_set(tmp_path / "Held", count=1)])
    bundle = export(tmp_path / "b", data, pictures_folder, 100, held_out=other)
    assert bundle.body_sha256 == plain.body_sha256
    assert bundle.manifest.compute_precision == "f32"
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == []
    assert document["given_back_percent"] == pytest.approx(25)
    assert [g["group"] for g in document["groups"]] == [
        g.name for g in find_groups(body_of("midenet"))
    ]
    for group in document["groups"]:
        assert group["bought_ms"] == pytest.approx(1.0)
        assert not group["kept_float"]
    figures = {(f["dataset"], f["scorer"], f["figure"]): f for f in document["figures"]}
    assert len(figures) == 11
    for f in figures.values():
        assert f["int8_percent"] == f["bundle_percent"]
        sign = -1 if f["figure"] == "fpr95_percent" else 1
        drop = sign * (f["float32_percent"] - f["bundle_percent"])
        assert f["drop_points"] == pytest.approx(drop)
        assert set(f["noise_drop_points"]) == {"1", "2", "4"}
    assert {f["dataset"] for f in document["held_out"]} == {"Held"}
    assert {tuple(f["noise_drop_points"]) for f in document["held_out"]} == {("1", "2", "4")}
    free = document["label_free"]
    assert free["int8"] == free["bundle"] == free["int8_with_bias_correction"]
    assert free["int8_without_bias_correction"] != free["int8"]
    assert free["frames"] == 3
    assert bundle.manifest.accuracy["gate"]["figures"] == document["figures"]
    assert "float_parity" in bundle.manifest.accuracy
    text = markdown(document, "title")
    assert text.startswith("# title\n")
    assert all(g["group"] in text for g in document["groups"])
    assert "Streets" in text
    assert "Held out" in text


@pytest.fixture(scope="module")
def broken_ranges(tmp_path_factory):
    """A range of one block is a hundredth of what it should be."""
    body = body_of("midenet")
    block = next(g for g in find_groups(body) if g.name == "bottleneck1/bottleneck1.1")
    node = next(n for n in body.graph.node if n.name == block.convolutions[1])
    ranges = broken(observe(body, frames(3, seed=4)), node.input[0])
    path = tmp_path_factory.mktemp("ranges") / "broken.json"
    path.write_text(ranges.to_json())
    return path, block


def test_a_broken_layer_is_found_and_left_in_float(
    data, broken_ranges, pictures_folder, tmp_path, steady
):
    path, block = broken_ranges
    # Random weights lose more than trained ones; the broken layer must lose more than that.
    sound = export(tmp_path / "sound", data, pictures_folder, 100)
    usual = max(f["drop_points"] for f in json.loads((sound.path / GATE).read_bytes())["figures"])
    allowed = usual + 8
    bundle = export(tmp_path / "b", data, path, allowed)
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == [block.name]
    figures = document["figures"]
    assert max(f["drop_points"] for f in figures) <= allowed
    assert any(f["float32_percent"] - f["int8_percent"] > allowed for f in figures)
    dearest = max(document["groups"], key=lambda g: g["int8_alone"]["worst_drop_points"])
    assert dearest["group"] == block.name
    assert dearest["int8_alone"]["worst_drop_points"] > allowed
    ranges = Ranges.load(bundle.path / CALIBRATION)
    assert set(ranges.keep_float) == set(block.convolutions)
    # Its ranges make the same body again, without data.
    again = export_bundle(
        network("midenet"),
        tmp_path / "again",
        height=HEIGHT,
        width=WIDTH,
        precision="int8",
        calibration=bundle.path / CALIBRATION,
    )
    assert again.body_sha256 == bundle.body_sha256
    assert again.manifest.counts["integer_convolutions"] == (22 - len(block.convolutions))


def test_a_gate_that_cannot_hold_writes_nothing(data, broken_ranges, tmp_path, steady):
    path, _ = broken_ranges
    with pytest.raises(GateFailedError, match=r"Odd|Streets|logit") as caught:
        export(tmp_path / "b", data, path, 0.0, max_give_back=0)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert os.listdir(tmp_path) == []
    with pytest.raises(GateFailedError, match="log"):
        export(tmp_path / "b", data, path, 1e9, max_noise=1e-9, max_give_back=0)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def training(monkeypatch):
    """In place of training: a body with sound ranges, or nothing better."""

    def use(helps):
        seen = []

        def recover(body, int8, head, given, options, *, progress):
            seen.append((len(given), options.steps))
            model = int8
            if helps:
                model = quantize_body(body, observe(body, frames(3, seed=4))).model
            zero = ScoreChange(0.0, 0.0)
            return Recovered(model, zero, zero, int(helps), options.steps, 2, 1)

        monkeypatch.setattr(gated, "recover", recover)
        return seen

    return use


def test_training_that_suffices_leaves_nothing_in_float(
    data, broken_ranges, pictures_folder, tmp_path, steady, training
):
    path, _ = broken_ranges
    sound = export(tmp_path / "sound", data, pictures_folder, 100)
    usual = max(f["drop_points"] for f in json.loads((sound.path / GATE).read_bytes())["figures"])
    seen = training(helps=True)
    bundle = export(tmp_path / "b", data, path, usual + 8, recovery=RecoveryOptions(steps=7))
    assert [steps for _, steps in seen] == [7]
    document = json.loads((bundle.path / GATE).read_bytes())
    assert document["kept_float"] == []
    assert document["recovery"]["steps"] == 7
    assert bundle.manifest.accuracy["gate"]["recovery"]["kept_step"] == 1
    # The body that was judged is the one in the bundle.
    model = quantize_body(
        body_of("midenet"), observe(body_of("midenet"), frames(3, seed=4))
    ).model.SerializeToString()
    assert bundle.body_path.read_bytes() == model


def test_training_that_does_not_suffice_writes_nothing(
    data, broken_ranges, tmp_path, steady, training
):
    path, _ = broken_ranges
    seen = training(helps=False)
    with pytest.raises(GateFailedError):
        export(tmp_path / "b", data, path, 0.0, max_give_back=0, recovery=RecoveryOptions(steps=7))
    assert seen
    assert os.listdir(tmp_path) == []


def test_training_is_left_out_where_the_gate_holds(
    data, pictures_folder, tmp_path, steady, training
):
    seen = training(helps=True)
    bundle = export(tmp_path / "b", data, pictures_folder, 100, recovery=RecoveryOptions(steps=7))
    assert seen == []
    assert json.loads((bundle.path / GATE).read_bytes())["recovery"] is None


def test_layers_that_int8_makes_slower_stay_in_float(
    data, pictures_folder, tmp_path, steady, monkeypatch
):
    # INT8 is slower in the second group; of the first the times do not tell.
    slow = iter([1.0, 0.9, *[1.1] * 20])
    monkeypatch.setattr(sensitivity, "compare", lambda *_: certain(next(slow)))
    bundle = export(tmp_path / "b", data, pictures_folder, 100)
    document = json.loads((bundle.path / GATE).read_bytes())
    first, second, *_ = find_groups(body_of("midenet"))
    assert document["kept_float"] == [second.name]
    assert {g["why_float"] for g in document["groups"]} == {None, "INT8 is slower here"}
    assert [g["faster"] for g in document["groups"]] == [None, False, *[True] * 6]
    assert document["groups"][0]["group"] == first.name


@pytest.mark.parametrize(
    "options",
    [
        {"max_drop": -1.0},
        {"max_drop": float("nan")},
        {"max_noise": -1.0},
        {"max_give_back": float("inf")},
        {"every": 0},
        {"compute_precision": "f8"},
        {"data": []},
        {"held_out": [Dataset("a", Path(), "semantic", [])]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_cannot_be_are_refused(options):
    base = GateOptions(1.0, [Dataset("a", Path(), "semantic", [])])
    base.check()
    with pytest.raises(UsageError, match=next(iter(options)).split("_")[-1]):
        replace(base, **options).check()


def test_a_gate_for_float_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--int8"):
        export_bundle(network("midenet"), tmp_path / "b", gate=GateOptions(1.0, []))


# --- the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from edgeseg.networks.checkpoints import save_network

    path = tmp_path_factory.mktemp("weights") / "midenet.safetensors"
    save_network(network("midenet"), path, {})
    return path


def run_main(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["edgeseg", *map(str, arguments)])
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return caught.value.code or 0, out, err


def test_the_command_gates_and_reports(
    data, pictures_folder, weights, tmp_path, monkeypatch, capfd, steady
):
    call = ["export", "midenet", "--weights", weights, "--int8", "--size", f"{HEIGHT}x{WIDTH}"]
    call += ["--calibration", pictures_folder, "--backend", "onnxruntime", "--threads", 1]
    gate = ["--max-drop", 100, "--gate-data", data, "--max-noise", 0, "--gate-every", 2]
    report = tmp_path / "report.md"
    code, out, err = run_main(
        monkeypatch, capfd, *call, *gate, "--report", report, "-o", tmp_path / "b", "--json"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "edgeseg.export/1"
    assert document["gate"]["max_drop_points"] == 100
    assert document["gate"]["data"] == [
        {"dataset": "Streets", "frames": 1},
        {"dataset": "Odd", "frames": 2},
    ]
    assert "bottleneck1" in report.read_text()
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.manifest.accuracy["gate"]["max_drop_points"] == 100
    report.unlink()
    code, out, err = run_main(
        monkeypatch, capfd, *call, "--max-drop", 0, "--gate-data", data, "--max-give-back", 0,
        "--report", report, "-o", tmp_path / "c",
    )  # fmt: skip
    assert (code, out) == (5, "")
    assert err.startswith("edgeseg: the accuracy gate does not hold")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--int8", "--max-drop", 1], "--gate-data"),
        (["--int8", "--gate-data", "."], "--max-drop"),
        (["--max-drop", 1, "--gate-data", "."], "--int8"),
        (["--calibration-method", "mse"], "--int8"),
        (["--int8", "--report", "r.md"], "--report"),
        (["--int8", "--max-drop", 1, "--gate-data", ".", "--report", "no/such/r.md"], "--report"),
        (["--int8", "--max-drop", -1, "--gate-data", "GATE"], "--max-drop"),
        (["--int8", "--calibration-method", "mse", "--calibration", "RANGES"], "frames"),
        (["--int8", "--percentile", 99], "--percentile"),
        (["--recover", 5], "--int8"),
        (["--int8", "--recover", 5, "--calibration", "RANGES"], "frames"),
        (["--int8", "--gate-set", "camvid"], "--gate-set"),
        (["--int8", "--max-drop", 1, "--gate-data", "GATE", "--gate-set", "x"], "anomaly:"),
        (["--int8", "--max-drop", 1, "--gate-data", "GATE", "--held-out", "anomaly:Odd"], "Odd"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_usage_errors(
    data, weights, tmp_path, monkeypatch, capfd, options, named
):
    ranges = tmp_path / "ranges.json"
    ranges.write_text(observe(body_of("midenet"), frames(1)).to_json())
    options = [{"GATE": data, "RANGES": ranges}.get(o, o) for o in options]
    size = f"{HEIGHT}x{WIDTH}"
    code, out, err = run_main(
        monkeypatch, capfd, "export", "midenet", "--weights", weights, "--size", size, *options,
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "b").exists()
