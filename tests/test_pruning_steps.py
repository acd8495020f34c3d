"""Pruning in several steps where some filters are dead."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="pruning needs torch")

from edgeseg.compression.pruning import Request, prune  # noqa: E402
from edgeseg.compression.ranking import Planner, Rules  # noqa: E402
from tests.exported import HEIGHT, WIDTH, network  # noqa: E402

LAYER = "encoder.layers.1.conv3x1_1"


def with_dead_filters(count):
    module = copy.deepcopy(network("erfnet"))
    conv = module.get_submodule(LAYER)
    with torch.no_grad():
        conv.weight[:count] = 0.0
        conv.bias[:count] = 0.0
    return module


def pruned(module, amount, steps, **rules):
    request = Request(amount=amount, rules=Rules(**rules), steps=steps, size=(HEIGHT, WIDTH))
    return prune(module, request)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize(("dead", "amount", "after"), [(34, 0.05, 32), (34, 0.5, 16), (60, 0, 16)])
def test_dead_filters_that_fill_up_a_width_stay_on_the_way(dead, amount, after, steps):
    module = with_dead_filters(dead)
    at_once, slowly = (pruned(module, amount, n) for n in (1, steps))
    for result in (at_once, slowly):
        assert result.network.get_submodule(LAYER).out_channels == after
        assert {g.name: g.after for g in result.groups}[LAYER] == after
    assert slowly.network.structure == at_once.network.structure
    assert slowly.dead["removed"] == at_once.dead["removed"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("round_to", [1, 16])
def test_no_plan_on_the_way_is_below_the_goal_or_above_what_there_is(share, round_to):
    planner = Planner(with_dead_filters(34), Rules(round_to=round_to))
    goal = planner.counts(0.05)
    way = planner.between(planner.alive(), goal, share)
    assert all(b <= n <= whole for b, n, whole in zip(goal, way, planner.whole(), strict=True))
    if share == 1.0:
        assert way == goal
