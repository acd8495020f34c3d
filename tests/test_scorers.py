"""Every score against its closed form, and what must hold for any logits."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeseg.errors import UsageError
from edgeseg.scoring.scorers import (
    FLOAT16_MAX,
    SCORERS,
    anomaly_score,
    anomaly_scores,
    class_map,
    score_range,
    valid_scorers,
)

KNOWN, VOID = 19, 19
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (20, 6, 7)).astype(np.float32)


def score(logits, scorer, temperature=1.0, known=KNOWN, void=VOID):
    return anomaly_score(logits, scorer, num_known=known, void_index=void, temperature=temperature)


def by_hand(f, scorer, t):
    """One pixel, with Python's floats and no vector arithmetic."""
    f = [float(v) for v in f]
    weights = [math.exp(v / t) for v in f]
    known = sum(weights[:KNOWN])
    p = [w / known for w in weights[:KNOWN]]
    return {
        "msp": 1 - max(p),
        "maxlogit": -max(f[:KNOWN]),
        "entropy": -sum(q * math.log(q) for q in p),
        "void": weights[VOID] / (known + weights[VOID]),
        "energy": -t * math.log(known),
    }[scorer]


@pytest.mark.parametrize("temperature", [1.0, 2.15, 0.5])
@pytest.mark.parametrize("scorer", SCORERS)
def test_equal_to_the_formula(scorer, temperature):
    result = score(LOGITS, scorer, temperature)
    expected = [[by_hand(LOGITS[:, i, j], scorer, temperature) for j in range(7)] for i in range(6)]
    assert result.dtype == np.float32
    # Both in float64 inside; the result is rounded to float32 once.
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


def test_values_that_can_be_looked_up():
    even = np.zeros((20, 1), np.float32)
    assert score(even, "msp") == pytest.approx(18 / 19)
    assert score(even, "entropy") == pytest.approx(math.log(19))
    assert score(even, "void") == pytest.approx(1 / 20)
    assert score(even, "energy") == pytest.approx(-math.log(19))
    assert score(even, "maxlogit") == 0


def test_msp_of_a_sure_network_does_not_cancel_to_zero():
    f = np.full((20, 1), -20.0, np.float32)
    f[3] = 0
    assert score(f, "msp") == pytest.approx(18 * math.exp(-20), rel=1e-4)


@pytest.mark.parametrize("scorer", ["msp", "maxlogit", "entropy", "energy"])
def test_the_void_output_does_not_matter_to_the_others(scorer):
    loud = LOGITS.copy()
    loud[VOID] = 50
    np.testing.assert_array_equal(score(loud, scorer), score(LOGITS, scorer))


def test_maxlogit_does_not_depend_on_the_temperature():
    np.testing.assert_array_equal(score(LOGITS, "maxlogit", 3.0), score(LOGITS, "maxlogit"))


@pytest.mark.parametrize("scorer", SCORERS)
def test_an_object_nobody_knows_scores_higher_than_road(scorer):
    road = np.full((20, 1), -5.0, np.float32)
    road[0] = 9.0
    unknown = np.full((20, 1), 0.1, np.float32)
    unknown[VOID] = 3.0
    for temperature in (0.5, 1.0, 2.15):
        assert score(unknown, scorer, temperature) > score(road, scorer, temperature)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 7, VOID])
def test_logits_that_are_not_finite_look_as_anomalous_as_can_be(scorer, bad, channel):
    f = LOGITS.copy()
    f[channel, 2, 3] = bad
    result = score(f, scorer)
    assert result[2, 3] == np.float32(score_range(scorer, KNOWN)[1])
    assert result[2, 3] >= result.max()
    others = np.ones((6, 7), bool)
    others[2, 3] = False
    np.testing.assert_array_equal(result[others], score(LOGITS, scorer)[others])


LOGIT = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=100, deadline=None)
@given(
    logits=hnp.arrays(np.float32, (20, 3), elements=LOGIT),
    temperature=st.floats(0.01, 100),
    scorer=st.sampled_from(SCORERS),
)
def test_any_logits_give_a_score_within_its_range(logits, temperature, scorer):
    result = score(logits, scorer, temperature)
    low, high = score_range(scorer, KNOWN)
    assert np.isfinite(result).all()
    assert np.isfinite(result.astype(np.float16)).all()
    # log 19 as float32 is above log 19 by rounding.
    assert (result >= low - 1e-6).all()
    assert (result <= high + 1e-6).all()


def test_scores_fit_into_float16():
    f = np.full((20, 2), -1e30, np.float32)
    f[:, 1] = 1e30
    for scorer in ("maxlogit", "energy"):
        np.testing.assert_array_equal(score(f, scorer), [FLOAT16_MAX, -FLOAT16_MAX])


def test_several_scorers_at_once_are_the_single_ones():
    both = anomaly_scores(LOGITS, ("msp", "void"), num_known=KNOWN, void_index=VOID, temperature=2)
    assert list(both) == ["msp", "void"]
    np.testing.assert_array_equal(both["void"], score(LOGITS, "void", 2))


def test_class_map_takes_the_first_of_equals_and_never_void():
    f = np.zeros((20, 4), np.float32)
    f[VOID] = 100
    f[[4, 9], 1] = 2
    f[18, 2] = 1
    f[5, 3] = np.nan
    f[6, 3] = 1
    labels = class_map(f, num_known=KNOWN)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [0, 4, 18, 6])


def test_class_map_of_a_broken_pixel_is_a_class():
    f = np.full((20, 2), np.nan, np.float32)
    f[3, 1] = np.inf
    np.testing.assert_array_equal(class_map(f, num_known=KNOWN), [0, 3])


def test_a_network_without_void_has_no_void_scorer():
    assert "void" not in valid_scorers(None)
    assert valid_scorers(19) == SCORERS
    with pytest.raises(UsageError, match="void output"):
        score(LOGITS[:19], "void", void=None)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(UsageError, match="temperature"):
        score(LOGITS, "msp", temperature)


def test_an_unknown_scorer_is_refused_and_the_known_ones_named():
    with pytest.raises(UsageError, match=r"'magic'.*msp.*energy"):
        score(LOGITS, "magic")
    with pytest.raises(UsageError):
        score_range("magic", 19)
