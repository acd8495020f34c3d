"""What INT8 costs and buys by group: the groups, what stays in float, the measures."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")

from dataclasses import replace

import onnx
from onnx import numpy_helper

from edgeseg.bundle import Manifest, ScorerDefaults, head_to_files
from edgeseg.compression import timing
from edgeseg.compression.calibration import Ranges, observe
from edgeseg.compression.gate import Gate
from edgeseg.compression.groups import find_groups
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.compression.noise import (
    LEVELS,
    add_noise,
    noise_cost_at,
    noise_equivalent,
    noise_ladder,
)
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.compression.sensitivity import GroupCost, analyse
from edgeseg.compression.timing import Comparison, compare, medians_ms
from edgeseg.compression.workbench import Workbench, names_of
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.networks import NETWORKS
from edgeseg.runtime import backends
from edgeseg.scoring.head import Head
from edgeseg.scoring.scorers import valid_scorers
from edgeseg.taxonomy import CLASSES, PALETTE
from tests.exported import (
    HEIGHT,
    WIDTH,
    body_of,
    frames,
    network,
    on_openvino,
    relative_error,
    run,
    torch_logits,
)

MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(autouse=True)
def no_trial(monkeypatch):
    """Engines load graphs in this process at once: a child for each of many would take minutes."""
    monkeypatch.setattr(backends, "try_in_child", lambda *_, **__: None)


def manifest_of(module):
    head = replace(module.head_spec(), layout="nhwc")
    return head, Manifest(
        network=module.structure.network,
        structure=module.structure.to_dict(),
        classes=list(CLASSES),
        palette=[list(c) for c in PALETTE],
        height=HEIGHT,
        width=WIDTH,
        head=head_to_files(head)[0],
        scorers={name: ScorerDefaults() for name in valid_scorers(head.void_index)},
        precision="float32",
    )


def workbench(ranges=None, name="midenet", **options):
    head, manifest = manifest_of(network(name))
    body = body_of(name)
    return Workbench(
        body,
        head_to_files(head)[1],
        manifest,
        ranges or observe(body, frames(3, seed=4)),
        **{"backend": "onnxruntime", "threads": 1, **options},
    )


def certain(ratio, base_ms=20.0):
    """A comparison without noise."""
    return Comparison(ratio, ratio, ratio, base_ms)


def broken(ranges, tensor, factor=100):
    """Ranges in which one tensor is cut off to a hundredth of what it takes."""
    r = ranges.tensors[tensor]
    cut = replace(r, low=r.low / factor, high=r.high / factor)
    return Ranges({**ranges.tensors, tensor: cut}, ranges.frames, ranges.provenance)


# --- groups


@pytest.mark.parametrize("granularity", ["block", "convolution"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_that_is_quantized_is_in_one_group(name, granularity):
    body = body_of(name)
    groups = find_groups(body, granularity)
    members = [c for g in groups for c in g.convolutions]
    assert len(set(members)) == len(members)
    assert len({g.name for g in groups}) == len(groups)
    quantized = quantize_body(body, observe(body, frames(1)))
    assert quantized.convolutions == len(members)
    everything = quantize_body(body, observe(body, frames(1)), keep_float=names_of(groups))
    assert everything.convolutions == 0
    own = {n.name for n in body.graph.node}
    # ENet's poolings become convolutions and go with their neighbours.
    assert all(any(c in own for c in g.convolutions) for g in groups)
    if granularity == "convolution":
        assert all(sum(c in own for c in g.convolutions) == 1 for g in groups)


def test_erfnets_groups_are_its_blocks():
    groups = {g.name: len(g.convolutions) for g in find_groups(body_of("erfnet"))}
    assert groups["encoder/initial_block/conv"] == 1
    assert groups["encoder/layers/layers.0/conv"] == 1  # the first downsampler
    assert groups["decoder/layers/layers.0/conv"] == 1
    blocks = {k for k, v in groups.items() if v == 4}
    assert len(blocks) == 17
    assert len(groups) == 22


def test_an_unknown_granularity_is_refused():
    with pytest.raises(UsageError, match="block"):
        find_groups(body_of("midenet"), "network")


# --- what stays in float


# What INT8 throughout may cost in tests/test_quantize.py; of the two networks whose random weights
# are chaotic, that holds with a group in float too.
NEAR_FLOAT = {"enet": 0.4, "erfnet": 0.02, "bisenet": 0.02, "midenet": 0.01}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_in_float_is_the_float_body(name):
    body, batch = body_of(name), frames(1, seed=4)
    ranges = observe(body, batch)
    model = quantize_body(body, ranges, keep_float=names_of(find_groups(body))).model
    kinds = {n.op_type for n in model.graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"}
    assert relative_error(run(model, batch), run(body, batch)) < 1e-9


@pytest.mark.parametrize(
    ("name", "structure", "group"),
    [
        ("erfnet", {}, "encoder/initial_block/conv"),
        ("erfnet", {}, "encoder/layers/layers.0/conv"),
        ("midenet", {}, "initial/conv"),
        ("midenet", {"stem": "gains"}, "initial/conv"),
        ("midenet", {"stem": "gains"}, "bottleneck1/bottleneck1.0"),
        ("midenet", MEAN_STD, "initial/conv"),
        ("enet", {"stem": "slopes"}, "initial/conv"),
        ("enet", {}, "conv1 to conv3"),
        # Two convolutions take the frame: one integer, one float.
        ("bisenet", {}, "sp"),
        ("bisenet", {}, "cp/resnet/conv1"),
    ],
)
def test_a_front_in_float_is_near_float_on_every_engine(name, structure, group):
    body, batch = body_of(name, **structure), frames(2, seed=4)
    chosen = next(g for g in find_groups(body) if g.name == group)
    ranges = observe(body, frames(3, seed=4))
    model = quantize_body(body, ranges, keep_float=frozenset(chosen.convolutions)).model
    reference = run(body, batch)
    assert relative_error(run(model, batch), reference) < NEAR_FLOAT[name]
    assert relative_error(on_openvino(model, batch), reference) < NEAR_FLOAT[name]


def test_a_block_in_float_rounds_nothing_inside():
    body = body_of("erfnet")
    ranges = observe(body, frames(2))
    block = next(g for g in find_groups(body) if g.name == "encoder/layers/layers.9")
    model = quantize_body(body, ranges, keep_float=frozenset(block.convolutions)).model
    producer = {o: n for n in model.graph.node for o in n.output}
    inside = [n for n in model.graph.node if n.name in block.convolutions]
    inside += [n for n in model.graph.node if n.name == "/encoder/layers/layers.9/Add"]
    assert len(inside) == 5
    # What the integer block before it gives is rounded, or engines would not take that as integer.
    rounded = {
        i for n in inside for i in n.input if i in producer
        and producer[i].op_type == "DequantizeLinear"
    }  # fmt: skip
    assert len(rounded) == 1
    assert sum(i in rounded for n in inside for i in n.input) == 2  # first convolution, addition
    # The block behind it is integer as before.
    behind = next(n for n in model.graph.node if n.name == "/encoder/layers/layers.10/Add")
    assert {producer[i].op_type for i in behind.input} == {"DequantizeLinear"}


def test_weights_in_float_are_those_of_the_float_body():
    body = body_of("bisenet")
    ranges = observe(body, frames(2))
    stem = "/cp/resnet/conv1/Conv"
    model = quantize_body(
        body, ranges, keep_float=frozenset([stem]), balance=False, correct_bias=False
    ).model
    values = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    before = {c.name: numpy_helper.to_array(c) for c in body.graph.initializer}
    (node,) = [n for n in model.graph.node if n.name == stem]
    (old,) = [n for n in body.graph.node if n.name == stem]
    assert np.array_equal(values[node.input[1]], before[old.input[1]])


# --- the measure without labels

HEADS = [
    ("erfnet", {}),
    ("enet", {}),
    ("midenet", {}),
    ("bisenet", {}),
    ("erfnet", {"isomax": True}),
    ("midenet", {"num_outputs": 19}),
]


@pytest.mark.parametrize(("name", "structure"), HEADS, ids=str)
def test_the_probe_measures_what_the_logits_say(name, structure):
    module, body = network(name, **structure), body_of(name, **structure)
    head = replace(module.head_spec(), layout="nhwc")
    (frame,) = frames(1, seed=3)
    shape = (1, HEIGHT // head.factor, WIDTH // head.factor, head.channels_in)
    features = np.ascontiguousarray(run(body, [frame]).reshape(shape))
    with ScoreProbe(head, HEIGHT, WIDTH, 1) as probe:
        maps = {k: v.copy() for k, v in probe.measure(features).items()}
    logits = head.logits(head.channel_first(features)).astype(np.float64)
    known = logits[: head.num_known]
    np.testing.assert_allclose(maps["max_logit"], known.max(0), atol=1e-3, rtol=1e-4)
    if head.void_index is None:
        assert set(maps) == {"max_logit"}
        return
    peak = known.max(0)
    odds = logits[head.void_index] - peak - np.log(np.exp(known - peak).sum(0))
    np.testing.assert_allclose(maps["void_log_odds"], odds, atol=2e-3, rtol=1e-4)
    # Its logistic function is the void score.
    p = np.exp(torch_logits(module, frame).astype(np.float64))
    void = p[head.void_index] / p.sum(0)
    ours = 1 / (1 + np.exp(-maps["void_log_odds"]))
    assert np.quantile(np.abs(ours - void), 0.99) < 1e-3


def test_the_change_is_the_95th_percentile_over_all_frames():
    head = Head("identity", num_outputs=3, num_known=2, void_index=2, factor=1, layout="nhwc")
    rng = np.random.default_rng(0)
    batch = [np.full((8, 16, 3), i, np.uint8) for i in range(4)]
    before = {i: rng.normal(0, 2, (1, 8, 16, 3)).astype(np.float32) for i in range(4)}
    after = {i: f + rng.normal(0, 0.5, f.shape).astype(np.float32) for i, f in before.items()}

    def number(frame):
        return int(frame[0, 0, 0])

    with ScoreProbe(head, 8, 16, 1) as probe:
        reference = Reference(probe, batch, lambda f: before[number(f)])
        same = reference.change(lambda f: before[number(f)])
        change = reference.change(lambda f: after[number(f)])
    assert same == ScoreChange(0, 0)

    def direct(quantity):
        both = [quantity(after[i][0]) - quantity(before[i][0]) for i in range(4)]
        return np.percentile(np.abs(both), 95)

    assert change.max_logit == pytest.approx(direct(lambda f: f[..., :2].max(-1)), rel=1e-4)
    expected = direct(lambda f: f[..., 2] - np.log(np.exp(f[..., :2]).sum(-1)))
    assert change.void_log_odds == pytest.approx(expected, rel=1e-3)
    assert change.energy(change) == pytest.approx(2)
    third = ScoreChange(change.max_logit, change.void_log_odds / 3)
    assert change.energy(third) == pytest.approx(10)


# --- noise


def test_noise_is_uniform_and_the_same_every_time():
    frame = np.full((64, 128, 3), 100, np.uint8)
    noisy = add_noise(frame, 2, seed=1)
    values, counts = np.unique(noisy.astype(int) - 100, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert np.abs(counts / counts.sum() - 0.2).max() < 0.01
    assert np.array_equal(noisy, add_noise(frame, 2, seed=1))
    assert not np.array_equal(noisy, add_noise(frame, 2, seed=2))
    assert add_noise(np.full((4, 4, 3), 254, np.uint8), 8, 0).max() == 255
    assert add_noise(np.zeros((4, 4, 3), np.uint8), 8, 0).min() == 0


def test_the_noise_equivalent_is_monotone_and_interpolates():
    costs = {1: 0.2, 2: 0.5, 4: 0.4, 8: 1.0}
    asked = np.linspace(0, 1, 101)
    levels = [noise_equivalent(costs, c) for c in asked]
    assert (np.diff(levels) >= 0).all()
    assert noise_equivalent(costs, 0.1) == pytest.approx(0.5)
    assert noise_equivalent(costs, 0.35) == pytest.approx(1.5)
    assert noise_equivalent(costs, 0.5) == pytest.approx(2)  # the least noise that costs it
    assert noise_equivalent(costs, 0.75) == pytest.approx(6)
    assert noise_equivalent(costs, 1.01) is None
    assert noise_equivalent(costs, -0.3) == 0
    for level in (0, 0.5, 1.5, 6, 8):
        back = noise_equivalent(costs, noise_cost_at(costs, level))
        assert back == pytest.approx(level)
    assert noise_cost_at(costs, 16) > 1.0


def test_more_noise_costs_the_network_more():
    head, _ = manifest_of(network("midenet"))
    with (
        workbench() as bench,
        bench.open(bench.float32()) as floating,
        ScoreProbe(head, HEIGHT, WIDTH, 1) as probe,
    ):
        reference = Reference(probe, frames(2, seed=5), floating.features)
        with bench.open(bench.int8()) as whole:
            change = reference.change(whole.features)
        ladder = noise_ladder(reference, floating.features, [ScoreChange(9e9, 9e9)])
        short = noise_ladder(reference, floating.features, [ScoreChange(0, 0), change])
        longer = noise_ladder(reference, floating.features, [ScoreChange(0, 0)], least=3)
    assert list(ladder) == list(LEVELS)
    assert list(longer) == [1, 2, 3]
    costs = [c.max_logit for c in ladder.values()]
    assert costs == sorted(costs)
    assert costs[0] > 0
    last = list(short)[-1]
    assert short[last].max_logit >= change.max_logit
    assert short[last].void_log_odds >= change.void_log_odds
    for k, c in short.items():
        assert c == ladder[k]


# --- groups against each other


def ticking(base, variant):
    del base, variant
    return certain(1.1, 10.0)


def gate_of(bench, count=2):
    """A gate without labelled data."""
    head, _ = manifest_of(network("midenet"))
    probe = ScoreProbe(head, HEIGHT, WIDTH, 1)
    with bench.open(bench.float32()) as session:
        reference = Reference(probe, frames(count, seed=5), session.features)
        return Gate(session, [], reference, 1.0, ScoreChange(0.5, 0.5))


def test_a_layer_whose_range_is_wrong_stands_out():
    body = body_of("midenet")
    good = observe(body, frames(3, seed=4))
    groups = find_groups(body)
    bad = next(g for g in groups if g.name == "bottleneck2/bottleneck2.1")
    node = next(n for n in body.graph.node if n.name == bad.convolutions[1])
    with workbench(broken(good, node.input[0])) as bench:
        costs = analyse(bench, groups, gate_of(bench), timer=ticking)
    assert [c.group for c in costs] == groups
    first, second = sorted(costs, key=lambda c: c.excess, reverse=True)[:2]
    assert first.group == bad
    assert first.excess > 2 * second.excess
    assert all(c.alone.complete and c.excess > 0 for c in costs)
    assert all(c.bought_ms == pytest.approx(1.0) for c in costs)
    assert all(c.faster and c.usable for c in costs)


def test_a_group_that_the_engine_refuses_is_left_integer(monkeypatch):
    body = body_of("midenet")
    groups = find_groups(body)[1:4]
    with workbench() as bench:
        made = bench.int8

        def refusing(keep=(), **options):
            if list(keep) in ([groups[1]], groups[:2]):
                raise ArtefactError("backend 'x' crashed (SIGSEGV)")
            return made(keep, **options)

        monkeypatch.setattr(bench, "int8", refusing)
        costs = analyse(bench, groups, gate_of(bench, 1), timer=ticking)
    assert [c.usable for c in costs] == [True, False, True]
    assert [c.alone is None for c in costs] == [False, False, True]
    assert costs[2].excess == 0


def test_a_workbench_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with workbench() as bench:
        variant = bench.int8()
        assert variant.bundle.path.is_dir()
        assert variant.bundle.manifest.precision == "int8"
        assert list(tmp_path.iterdir())
        kept = bench.int8(find_groups(bench.body)[:1], compute_precision="bf16")
        assert kept.bundle.manifest.compute_precision == "bf16"
        assert onnx.load(kept.bundle.body_path).graph.node
    assert not list(tmp_path.iterdir())


# --- time


class Machine:
    """Runs that take a known time on a machine whose speed changes and whose neighbours disturb."""

    def __init__(self, monkeypatch, disturb=lambda rng: 1.0, drift=9.0):
        self.calls = []
        rng = np.random.default_rng(0)
        speed = iter(np.linspace(1, drift, 4000))

        def milliseconds(run, frame):
            return run(frame) * next(speed) * disturb(rng)

        monkeypatch.setattr(timing, "_milliseconds", milliseconds)

    def taking(self, ms):
        def run(_):
            self.calls.append(ms)
            return ms

        return run


def test_times_are_compared_in_pairs(monkeypatch):
    machine = Machine(monkeypatch)
    (frame,) = frames(1)
    a, b, c = (machine.taking(ms) for ms in (10.0, 12.0, 5.0))
    result = compare(a, b, frame)
    # The machine became slower all the time; pairs in either order cancel that.
    assert result.ratio == pytest.approx(1.2, rel=0.01)
    assert result.difference_ms == pytest.approx(0.2 * result.base_ms, rel=0.05)
    assert result.slower is True
    assert compare(b, a, frame).slower is False
    assert machine.calls.count(10.0) == machine.calls.count(12.0)
    assert np.argsort(medians_ms([a, b, c], frame)).tolist() == [2, 0, 1]


def test_noise_decides_nothing(monkeypatch):
    def burst(rng):
        # A neighbour takes the processor for most of every third run.
        return 1 + 4 * rng.random() if rng.random() < 0.3 else rng.normal(1, 0.05)

    machine = Machine(monkeypatch, burst, drift=1.5)
    (frame,) = frames(1)
    equal = [compare(machine.taking(10.0), machine.taking(10.0), frame) for _ in range(10)]
    assert [c.slower for c in equal] == [None] * 10
    assert any(c.difference_ms < 0 for c in equal)
    assert all(c.least_ms <= c.difference_ms <= c.most_ms for c in equal)
    # It was tried longer than where the answer is plain.
    machine.calls.clear()
    assert compare(machine.taking(10.0), machine.taking(10.0), frame).slower is None
    undecided = len(machine.calls)
    machine.calls.clear()
    assert compare(machine.taking(10.0), machine.taking(20.0), frame).slower is True
    assert len(machine.calls) < undecided


def test_a_group_is_as_dear_as_its_time_may_be():
    group = find_groups(body_of("midenet"))[0]
    lucky = GroupCost(group, None, Comparison(0.99, 0.9, 1.2, 10.0))
    assert lucky.faster is None
    assert lucky.bought_ms < 0
    assert lucky.price_ms == pytest.approx(2.0)
    assert GroupCost(group, None, certain(1.1)).faster is True
    assert GroupCost(group, None, certain(0.9)).faster is False
    refused = GroupCost(group, None, None)
    assert not refused.usable
    assert refused.faster is None
