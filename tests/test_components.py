"""Component metrics against the definition written out pixel by pixel."""

import numpy as np
import pytest

from edgeseg.evaluation.components import ComponentMetric, MinimumSizes, minimum_sizes

pytest.importorskip("cv2")
NONE = MinimumSizes(0, 0)


def parts_of(mask: np.ndarray) -> list[np.ndarray]:
    """8-connected components by flood fill."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        stack, part = [left.pop()], np.zeros(mask.shape, bool)
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        found.append(part)
    return found


def by_definition(
    predicted: np.ndarray, label: np.ndarray, sizes: MinimumSizes
) -> tuple[list[float], list[float]]:
    guesses = [p for p in parts_of(predicted & (label < 2)) if p.sum() >= sizes.predicted]
    truths = parts_of(label == 1)
    inside = label < 2
    for small in (t for t in truths if t.sum() < sizes.labelled):
        inside &= ~small
    truths = [t for t in truths if t.sum() >= sizes.labelled]
    guesses = [p for g in guesses if (p := g & inside).any()]
    any_truth = np.any([np.zeros(label.shape, bool), *truths], axis=0)
    siou = []
    for k in truths:
        touching = np.any(
            [np.zeros(label.shape, bool), *(g for g in guesses if (g & k).any())], axis=0
        )
        siou.append((k & touching).sum() / ((k | touching) & ~(any_truth & ~k)).sum())
    return siou, [(g & any_truth).sum() / g.sum() for g in guesses]


@pytest.mark.parametrize("seed", range(25))
def test_siou_and_ppv_follow_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 7)) < 0.35
    label = np.kron(coarse, np.ones((4, 4))).astype(np.uint8)
    predicted = np.kron(coarse ^ (rng.random((6, 7)) < 0.25), np.ones((4, 4), bool)).astype(bool)
    predicted = np.roll(predicted, rng.integers(0, 3, 2), (0, 1)) & (rng.random(label.shape) < 0.9)
    label[rng.random(label.shape) < 0.05] = 255
    sizes = MinimumSizes(5, 12)
    metric = ComponentMetric()
    metric.update(predicted, label, sizes)
    siou, ppv = by_definition(predicted, label, sizes)
    assert sorted(metric.siou) == pytest.approx(sorted(siou))
    assert sorted(metric.ppv) == pytest.approx(sorted(ppv))


def test_a_prediction_over_two_objects_is_not_held_against_either() -> None:
    label = np.zeros((1, 9), np.uint8)
    label[0, [0, 1, 2, 6, 7, 8]] = 1
    metric = ComponentMetric()
    metric.update(np.ones((1, 9), bool), label, NONE)
    assert metric.siou == [3 / 6, 3 / 6]
    assert metric.ppv == [6 / 9]


def test_f1_counts_missed_objects_and_false_alarms() -> None:
    metric = ComponentMetric()
    metric.siou, metric.ppv = [0.9, 0.5, 0.0], [1.0, 0.1]
    assert metric.f1(0.5) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metric.f1(0.55) == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert metric.mean_f1() == pytest.approx((6 * 4 / 6 + 5 * 2 / 5) / 11)
    assert metric.mean_siou() == pytest.approx(1.4 / 3)
    assert metric.mean_ppv() == pytest.approx(0.55)


def test_perfect_prediction_scores_one_and_nothing_scores_none() -> None:
    label = np.zeros((20, 20), np.uint8)
    label[3:9, 3:9] = 1
    perfect = ComponentMetric()
    perfect.update(label == 1, label, NONE)
    assert (perfect.mean_siou(), perfect.mean_ppv(), perfect.mean_f1()) == (1.0, 1.0, 1.0)
    empty = ComponentMetric()
    empty.update(np.zeros((20, 20), bool), np.zeros((20, 20), np.uint8), NONE)
    assert (empty.mean_siou(), empty.mean_ppv(), empty.mean_f1()) == (None, None, None)


def test_merged_means_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    values = [rng.random(50).tolist() for _ in range(3)]

    def merged(order: tuple[int, ...]) -> ComponentMetric:
        total = ComponentMetric()
        for index in order:
            part = ComponentMetric()
            part.siou, part.ppv = list(values[index]), list(values[index])
            total.merge(part)
        return total

    assert merged((0, 1, 2)).mean_siou() == merged((2, 0, 1)).mean_siou()
    assert merged((0, 1, 2)).mean_f1() == merged((1, 2, 0)).mean_f1()


def test_minimum_sizes_are_those_of_the_benchmarks_tracks() -> None:
    assert minimum_sizes("RoadAnomaly21") == MinimumSizes(500, 100)
    assert minimum_sizes("RoadObsticle21") == MinimumSizes(50, 10)
    assert minimum_sizes("FS_LostFound_full") == MinimumSizes(50, 10)
    assert MinimumSizes(500, 100).scaled(0.5) == MinimumSizes(250, 50)
