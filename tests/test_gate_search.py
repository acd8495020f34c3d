"""Which groups the accuracy gate leaves in float: the search, without a network."""

import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")
pytest.importorskip("cv2")

from edgeseg.compression import search
from edgeseg.compression.gate import Verdict
from edgeseg.compression.timing import Comparison
from tests.gate_fakes import CHANGE, Pretend, cost_of, costs_of, figure, names

TABLE = {"a": (3.0, 2.0), "b": (2.0, 0.5), "c": (0.1, 1.0), "d": (4.0, 8.0), "e": (0.3, -0.5)}


def find(table, max_drop, budget_ms=1e9, **options):
    pretend = Pretend({k: c for k, (c, _) in table.items()}, max_drop, options.pop("refuse", ()))
    whole = pretend.judge(frozenset())
    pretend.seen.clear()
    costs = costs_of(table, max_drop)
    result = search.search(pretend, pretend, costs, whole, budget_ms=budget_ms, **options)
    return result, pretend


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
