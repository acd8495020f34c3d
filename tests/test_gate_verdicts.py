"""What a verdict says where no limit of the change of scores is set."""

import pytest

pytest.importorskip("onnx", reason="the gate judges exported graphs")

from edgeseg.compression.gate import Figure, Verdict
from edgeseg.compression.label_free import ScoreChange

CHANGE = ScoreChange(0.5, 1.0)
BETTER = Figure("s", "msp", "auprc_percent", 50.0, 51.0)


def test_figures_that_all_improved_are_named_without_a_limit():
    verdict = Verdict((BETTER,), CHANGE, None, 1.0)
    assert verdict.holds
    assert verdict.worst == ("s msp AuPRC 50.00 -> 51.00 (-1.00 points worse, allowed are 1)")


def test_the_change_of_scores_is_named_where_it_has_a_limit():
    assert "on calibration frames" in Verdict((BETTER,), CHANGE, CHANGE, 1.0).worst


def test_nothing_is_named_where_nothing_was_measured():
    assert Verdict((), CHANGE, None, 1.0).worst == "nothing was measured"
