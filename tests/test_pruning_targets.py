"""Targets: a share of the operations, milliseconds by a clock of our own."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pruning needs torch")
pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg.compression import targets  # noqa: E402
from edgeseg.compression.pruning import Request, prune  # noqa: E402
from edgeseg.compression.ranking import Planner, Rules  # noqa: E402
from edgeseg.compression.surgery import remove_classes  # noqa: E402
from edgeseg.compression.targets import MacsModel, Stopwatch, Timing, ladder  # noqa: E402
from edgeseg.errors import BudgetExceededError, UsageError  # noqa: E402
from edgeseg.networks import NETWORKS, build  # noqa: E402
from edgeseg.networks.counts import count  # noqa: E402
from tests.exported import HEIGHT, WIDTH, network  # noqa: E402

SIZE = (HEIGHT, WIDTH)


def machine(module, *, fixed=2.0, noise=0.0, round_to=1):
    """A machine whose time is linear in the operations: 20 ms for the whole, ``fixed`` of them
    whatever the network is.
    """
    whole = count(module, *SIZE).macs
    rng = np.random.default_rng(0)

    def measure(candidate):
        share = count(candidate, *SIZE).macs / whole
        ms = fixed + (20 - fixed) * share
        measure.seen.append(ms)
        return Timing(20.0, ms * (1 + noise * rng.standard_normal()), "fake")

    measure.seen = []
    return measure


# --- operations


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("name", NETWORKS)
def test_operations_of_plans_are_those_of_the_networks(name, ranking):
    module = network(name)
    planner = Planner(module, Rules(ranking, round_to=1))
    model = MacsModel(planner, SIZE)
    assert model(planner.whole()) == model.whole == count(module, *SIZE).macs
    for share in (0.2, 0.7):
        counts = planner.counts(share)
        small = remove_classes(module, planner.coupling, planner.keep(counts), planner.dead)
        assert model(counts) == pytest.approx(count(small, *SIZE).macs, rel=1e-12)


@pytest.mark.parametrize("round_to", [1, 16])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_share_of_the_operations_is_met_within_a_tenth(name, round_to):
    module = build(name).eval()
    for ranking, share in (("local", 0.5), ("global", 0.7)):
        request = Request(target_macs=share, rules=Rules(ranking, round_to), size=(64, 64))
        after = count(prune(module, request).network, 64, 64).macs
        assert after == pytest.approx(share * count(module, 64, 64).macs, rel=0.1)


def test_the_ladder_goes_down_one_width_at_a_time():
    planner = Planner(build("erfnet").eval())
    rungs = ladder(planner)
    assert rungs[0] == planner.whole()
    for above, below in itertools.pairwise(rungs):
        changed = [(a, b) for a, b in zip(above, below, strict=True) if a != b]
        assert len(changed) == 1
        assert changed[0][0] > changed[0][1]
        assert (changed[0][0] - changed[0][1]) % 16 == 0
    macs = [MacsModel(planner, (64, 64))(r) for r in (rungs[0], rungs[len(rungs) // 2], rungs[-1])]
    assert macs == sorted(macs, reverse=True)


def test_protected_layers_count_but_stay():
    module = build("erfnet").eval()
    rules = Rules(protect=("encoder.layers.8.conv3x1_1",))
    pruned = prune(module, Request(target_macs=0.5, rules=rules, size=(64, 64))).network
    assert pruned.structure.stage2_inner[1][0] == 128
    assert count(pruned, 64, 64).macs == pytest.approx(0.5 * count(module, 64, 64).macs, rel=0.1)


def test_operations_that_cannot_be_reached():
    module = build("enet").eval()
    with pytest.raises(BudgetExceededError, match=r"--round-to 16 leaves 0\.45; give a smaller"):
        prune(module, Request(target_macs=0.2, size=(64, 64)))
    rules = Rules(protect=("down1", "down2", "stage2", "stage3"))
    with pytest.raises(BudgetExceededError, match="protect fewer layers"):
        prune(module, Request(target_macs=0.2, rules=rules, size=(64, 64)))


def test_an_error_and_not_a_network_that_misses_by_more_than_a_tenth(monkeypatch):
    planner = Planner(network("midenet"))
    rungs = ladder(planner)
    monkeypatch.setattr(targets, "ladder", lambda _: [rungs[0], rungs[-1]])
    with pytest.raises(BudgetExceededError, match="within a tenth, the nearest"):
        targets.for_macs(planner, 0.7, SIZE)


# --- milliseconds


@pytest.mark.parametrize("target", [6.0, 10.0, 14.5])
@pytest.mark.parametrize("name", ["erfnet", "midenet"])
def test_milliseconds_are_met_within_a_tenth(name, target):
    module = network(name)
    measure = machine(module, noise=0.01)
    told = []
    pruned = prune(
        module,
        Request(target_ms=target, rules=Rules(round_to=1), size=SIZE),
        measure=measure,
        progress=told.append,
    )
    exact = 2 + 18 * count(pruned.network, *SIZE).macs / count(module, *SIZE).macs
    assert exact == pytest.approx(target, rel=0.1)
    assert pruned.timing.ms == pytest.approx(exact, rel=0.05)
    assert (pruned.timing.reference_ms, pruned.timing.backend) == (20.0, "fake")
    assert len(told) == len(measure.seen) <= 10
    assert told[-1].endswith(" ms")


def test_time_that_is_not_linear_in_the_operations_is_found_too():
    module = network("erfnet")
    whole = count(module, *SIZE).macs

    def measure(candidate):
        share = count(candidate, *SIZE).macs / whole
        return Timing(20.0, 20.0 if share > 0.6 else 4 + 10 * share**2)  # a step, then a curve

    request = Request(target_ms=5.0, rules=Rules(round_to=1), size=SIZE)
    assert prune(module, request, measure=measure).timing.ms == pytest.approx(5.0, rel=0.1)


def test_milliseconds_that_cannot_be_met():
    module = network("erfnet")
    with pytest.raises(BudgetExceededError, match=r"3 ms cannot be met.* takes 20\.00 ms"):
        prune(
            module,
            Request(target_ms=3.0, size=SIZE),
            measure=machine(module, fixed=8.0),
        )
    # Nothing in between: the steps of time are larger than the tolerance.
    halves = iter([20.0, *[5.0] * 9])
    with pytest.raises(BudgetExceededError, match="when the machine is quiet"):
        prune(
            module,
            Request(target_ms=10.0, size=SIZE),
            measure=lambda _: Timing(20.0, next(halves)),
        )


def test_a_network_that_is_quick_enough_loses_its_dead_filters_alone():
    module = network("midenet")
    measure = machine(module)
    pruned = prune(module, Request(target_ms=30.0, size=SIZE), measure=measure)
    assert len(measure.seen) == 1
    assert pruned.removed_percent == 0
    assert pruned.timing.ms == 20.0


def test_milliseconds_need_something_that_measures():
    with pytest.raises(UsageError, match="needs something that measures"):
        prune(network("midenet"), Request(target_ms=3.0, size=SIZE))


class Clock:
    """Time passes only where somebody runs a network: by its parameters, slower and slower."""

    def __init__(self):
        self.now, self.load = 0, 1.0

    def __call__(self):
        return self.now


def test_the_stopwatch_cancels_what_slows_the_machine_down(monkeypatch):
    clock = Clock()

    class Engine:
        backend_name = "fake"

        def __init__(self, module):
            self.params = count(module, *SIZE).params

        def run(self, frame):
            assert frame.shape == (*SIZE, 3)
            clock.load *= 1.01
            clock.now += round(self.params * clock.load)

    monkeypatch.setattr(Stopwatch, "_open", lambda self, stack, module, backend: Engine(module))
    module = network("midenet")
    small = prune(module, Request(amount=0.5, rules=Rules(round_to=1), size=SIZE)).network
    with Stopwatch(module, SIZE, rounds=9, clock=clock) as measure:
        first = measure(small)
        clock.load *= 3  # a neighbour wakes up
        second = measure(small)
    quotient = count(small, *SIZE).params / count(module, *SIZE).params
    for timing in (first, second):
        assert timing.ms / timing.reference_ms == pytest.approx(quotient, rel=0.02)
    assert first.reference_ms == second.reference_ms
    assert first.backend == "fake"


def test_the_stopwatch_runs_bundles(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    module = network("midenet")
    with Stopwatch(module, SIZE, backend="onnxruntime", threads=1, rounds=3) as measure:
        timing = measure(module)
        assert list(tmp_path.glob("edgeseg-*/2/body.onnx"))
    assert 0 < timing.ms < 20 * timing.reference_ms
    assert timing.backend == "onnxruntime"
    assert not list(tmp_path.glob("edgeseg-*"))
