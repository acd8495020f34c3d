"""Learning rates over the steps of a stage."""

from fractions import Fraction

import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
pytest.importorskip("torch", reason="training needs torch")

from edgeseg.training.recipe import Schedule, Stage, void_recipe
from edgeseg.training.schedules import rate
from edgeseg.training.step import Stepper
from tests.runs import run, tiny

BY_EPOCH = Schedule(per="epoch")
CITYSCAPES = 2975
"""Frames of its train split."""


def test_learning_rates_over_a_stage():
    poly, cosine = Schedule("poly"), Schedule("cosine")
    assert [rate(poly, s, 10, 4) for s in (0, 5)] == pytest.approx([1, 0.5**0.9])
    assert [rate(cosine, s, 10, 4) for s in (0, 5)] == pytest.approx([1, 0.5])
    warm = Schedule("constant", warmup=0.5)
    assert [rate(warm, s, 20, 4) for s in (0, 5, 10, 19)] == pytest.approx([0.02, 0.51, 1, 1])


def test_the_papers_rate_falls_by_the_epoch():
    """(1 - (t - 1) / T)^0.9 in epoch t of T."""
    schedule = void_recipe("enet").schedule
    seen = [rate(schedule, step, 30 * 7, 7) for step in range(30 * 7)]
    expected = [(1 - t / 30) ** 0.9 for t in range(30) for _ in range(7)]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epochs", "batch"), [(30, 8), (30, 20), (50, 6), (300, 16), (100, 6), (30, 7), (1, 8)]
)
def test_frames_that_fill_no_whole_number_of_batches_make_no_epoch_more(epochs, batch):
    length = Fraction(CITYSCAPES, batch)
    steps = round(epochs * CITYSCAPES / batch)
    seen = [rate(BY_EPOCH, step, steps, length) for step in range(steps)]
    expected = [(1 - t / epochs) ** 0.9 for t in range(epochs)]
    assert sorted(set(seen), reverse=True) == pytest.approx(expected, rel=1e-12)
    # Epoch t begins at the first step that no frame of the one before is in.
    for step in range(0, steps, 37):
        assert seen[step] == pytest.approx(expected[step * batch // CITYSCAPES], rel=1e-12)


def test_an_epoch_of_less_than_a_batch():
    seen = [rate(BY_EPOCH, step, 2, Fraction(1, 2)) for step in range(2)]
    assert seen == pytest.approx([1.0, 0.5**0.9])
    assert rate(BY_EPOCH, 0, 1, Fraction(7, 2)) == 1.0


def test_a_run_counts_its_epochs_exactly_and_goes_on_in_the_same_one(tmp_path, monkeypatch):
    """Seven frames in batches of two: an epoch is three steps and a half."""
    rates, step_of = {}, Stepper.run

    def recording(self, step, batches, lr):
        rates.setdefault(step, []).append(lr)
        return step_of(self, step, batches, lr)

    monkeypatch.setattr(Stepper, "run", recording)
    recipe = tiny(source={"count": 7}, stage=(Stage(epochs=4.0),), schedule=BY_EPOCH)
    run(recipe, tmp_path / "o", stop_after=5)
    run(recipe, tmp_path / "o", resume=True)
    peak = recipe.optimizer.lr
    expected = [peak * (1 - (2 * step // 7) / 4) ** 0.9 for step in range(14)]
    assert sorted(rates) == list(range(14))
    for step, seen in rates.items():
        assert seen == pytest.approx([expected[step]] * len(seen), rel=1e-12)
    assert len({lr for seen in rates.values() for lr in seen}) == 4
