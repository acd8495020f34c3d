"""Figures equal scikit-learn's, whatever the ties, and parts add up to the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_curve

from edgeseg.errors import ArtefactError
from edgeseg.evaluation import metrics as metrics_module
from edgeseg.evaluation.metrics import (
    AnomalyMetric,
    ConfusionMatrix,
    keys_from_scores,
    score_from_key,
)

FLOAT16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
PIXELS = st.lists(
    st.tuples(FLOAT16 | st.sampled_from([0.0, -0.0, 0.5, 1.0]), st.sampled_from([0, 1, 255])),
    min_size=1,
    max_size=60,
).map(
    lambda rows: (
        np.array([r[0] for r in rows], np.float16),
        np.array([r[1] for r in rows], np.uint8),
    )
)


def metric_of(score: np.ndarray, label: np.ndarray) -> AnomalyMetric:
    metric = AnomalyMetric(threads=2)
    metric.update(score, label)
    return metric


def fpr95_of_sklearn(label: np.ndarray, score: np.ndarray) -> float:
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= 0.95)])


@settings(max_examples=60, deadline=None)
@given(PIXELS)
def test_float16_scores_give_the_figures_of_sklearn(
    pixels: tuple[np.ndarray, np.ndarray],
) -> None:
    score, label = pixels
    metric = metric_of(score, label)
    kept = label != 255
    truth, value = label[kept], score[kept].astype(np.float64)
    if not truth.any():
        assert metric.auprc() is None
        assert metric.fpr95() is None
        return
    assert metric.auprc() == pytest.approx(average_precision_score(truth, value), abs=1e-12)
    if truth.all():
        assert metric.fpr95() is None
    else:
        assert metric.fpr95() == pytest.approx(fpr95_of_sklearn(truth, value), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(PIXELS, PIXELS)
def test_parts_merge_to_exactly_the_whole(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> None:
    whole = metric_of(*(np.concatenate(both) for both in zip(first, second, strict=True)))
    merged = metric_of(*first)
    merged.merge(metric_of(*second))
    assert merged.auprc() == whole.auprc()
    assert merged.fpr95() == whole.fpr95()
    for key, counts in whole.state().items():
        np.testing.assert_array_equal(merged.state()[key], counts)


@given(
    hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)).map(np.sort),
)
def test_keys_keep_the_order_and_thresholds_select_their_bin(score: np.ndarray) -> None:
    keys = keys_from_scores(score)
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    for key in keys:
        threshold = score_from_key(key)
        # Between -4e-43 and 0 all scores share the bin of zero.
        selected = (score >= threshold) | ((threshold == 0) & (score > -4e-43))
        np.testing.assert_array_equal(selected, keys >= key)


def test_float32_scores_within_a_bin_are_one_threshold() -> None:
    apart = np.float32(1 + 2**-15)
    inside = np.float32(1 + 2**-16)
    assert metric_of(np.float32([apart, 1]), np.uint8([1, 0])).auprc() == 1.0
    assert metric_of(np.float32([inside, 1]), np.uint8([1, 0])).auprc() == 0.5


def test_smooth_float32_scores_stay_within_a_hundredth_point_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(200_000) < 0.02).astype(np.uint8)
    score = (rng.normal(size=label.size) + label).astype(np.float32)
    metric = metric_of(score, label)
    assert metric.auprc() == pytest.approx(average_precision_score(label, score), abs=1e-4)
    assert metric.fpr95() == pytest.approx(fpr95_of_sklearn(label, score), abs=1e-4)


def test_nan_counts_as_the_most_anomalous_score() -> None:
    metric = metric_of(np.float32([np.nan, -np.nan, 3.0, 2.0]), np.uint8([1, 1, 0, 0]))
    assert metric.auprc() == 1.0
    assert np.isfinite([metric.auprc(), metric.fpr95()]).all()


def test_minus_zero_is_zero() -> None:
    assert metric_of(np.float32([-0.0, 0.0]), np.uint8([1, 0])).auprc() == 0.5


def test_no_pixel_gives_no_figure() -> None:
    metric = AnomalyMetric()
    assert (metric.auprc(), metric.fpr95(), metric.best_f1_threshold()) == (None, None, None)
    assert (metric.positives, metric.negatives) == (0, 0)


def test_the_numpy_counter_counts_as_the_native_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(size=(64, 100)).astype(np.float16)
    label = rng.choice(np.uint8([0, 1, 255]), score.shape)
    native = metric_of(score, label).state()
    monkeypatch.setattr(metrics_module, "_native_histogram", lambda: None)
    for key, counts in metric_of(score, label).state().items():
        np.testing.assert_array_equal(native[key], counts)


def test_counters_fold_before_32_bits_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_UINT32_MAX", 1000)
    metric = metric_of(np.full(2500, 0.5, np.float16), np.zeros(2500, np.uint8))
    metric.update(np.full(700, 0.5, np.float16), np.ones(700, np.uint8))
    assert (metric.positives, metric.negatives) == (700, 2500)


def test_best_f1_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(2)
    score = rng.integers(0, 12, 300).astype(np.float16)
    label = (rng.random(300) < score / 15).astype(np.uint8)
    chosen = metric_of(score, label).best_f1_threshold()

    def f1(threshold: float) -> float:
        hit = ((score >= threshold) & (label == 1)).sum()
        return 2 * hit / ((score >= threshold).sum() + label.sum())

    assert f1(chosen) == max(f1(t) for t in np.unique(score))


def test_state_survives_and_a_bad_one_is_refused() -> None:
    metric = metric_of(np.float16([0.1, 0.2, 0.2]), np.uint8([0, 1, 0]))
    state = metric.state()
    assert AnomalyMetric.from_state(state).auprc() == metric.auprc()
    for bad in (
        {**state, "keys": state["keys"][::-1]},
        {**state, "positive": -1 - state["positive"]},
        {**state, "negative": state["negative"][:1]},
        {**state, "keys": state["keys"] + np.uint32(1 << 24)},
        {"keys": state["keys"]},
    ):
        with pytest.raises(ArtefactError):
            AnomalyMetric.from_state(bad)


def test_scores_and_labels_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        AnomalyMetric().update(np.zeros((2, 3)), np.zeros((3, 2)))


def test_miou_is_the_mean_over_classes_in_the_labels() -> None:
    matrix = ConfusionMatrix(4)
    matrix.update(np.uint8([[0, 0, 1], [3, 1, 1]]), np.uint8([[0, 1, 1], [0, 255, 1]]))
    # Class 0: 1 of {1 hit, 1 missed, 1 false}; class 1: 2 of 3; 2 absent; 3 predicted only.
    assert matrix.iou() == [pytest.approx(1 / 3), pytest.approx(2 / 3), None, None]
    assert matrix.miou() == pytest.approx(0.5)


def test_confusion_matrices_merge() -> None:
    rng = np.random.default_rng(3)
    predicted, label = rng.integers(0, 3, (2, 5, 7)).astype(np.uint8)
    whole, part = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(predicted, label)
    part.update(predicted[:2], label[:2])
    rest = ConfusionMatrix(3)
    rest.update(predicted[2:], label[2:])
    part.merge(rest)
    np.testing.assert_array_equal(part.counts, whole.counts)
    assert ConfusionMatrix(3).miou() is None
    with pytest.raises(ArtefactError):
        part.merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="predicted class 9"):
        part.update(np.uint8([9]), np.uint8([0]))
