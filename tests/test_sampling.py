"""What a network is shown: which frames, in which order, and labels that lie on their frame."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from torch.utils.data import DataLoader  # noqa: E402

from edgeseg.errors import InputError, UsageError  # noqa: E402
from edgeseg.taxonomy import IGNORE, VOID  # noqa: E402
from edgeseg.training.recipe import Augment, Source, Stage  # noqa: E402
from edgeseg.training.sampling import Batches, Mixture  # noqa: E402
from tests.runs import scenes, tiny  # noqa: E402

STAGE = Stage(steps=8)
RICH = Augment(rotate=0.5, aspect=0.2, colour=0.6, blur=0.3, sharpen=0.3, noise=0.5, jpeg=0.5)


def photos(folder: Path, names: str, label: np.ndarray | None = None) -> Path:
    """One noisy frame and label map for every letter."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        rng = np.random.default_rng(ord(name))
        given = rng.integers(0, 19, (64, 128)) if label is None else label
        frame = rng.integers(0, 256, (*given.shape, 3))
        cv2.imwrite(str(folder / "images" / f"{name}.png"), frame.astype(np.uint8))
        cv2.imwrite(str(folder / "labels" / f"{name}.png"), given.astype(np.uint8))
    return folder


def folders(*sources: Source, **changes):
    return tiny(data={"source": sources}, **changes)


def names(mixture, numbers):
    return [mixture.item(number, STAGE)[2] for number in numbers]


def same(a, b):
    return a[2] == b[2] and all(np.array_equal(x, y) for x, y in zip(a[:2], b[:2], strict=True))


def same_batches(a, b):
    return len(a) == len(b) and all(
        x.names == y.names
        and np.array_equal(x.frames, y.frames)
        and np.array_equal(x.labels, y.labels)
        for x, y in zip(a, b, strict=True)
    )


# --- an item is a function of the recipe and its number


@pytest.mark.parametrize("rare", [0.0, 0.5])
def test_an_item_depends_on_its_number_and_not_on_what_was_drawn_before(tmp_path, rare):
    photos(tmp_path / "a", "pqrst")
    recipe = folders(
        Source("a", scale=(0.4, 2.0), rare=rare),
        scenes(scales=(0.5, 1.0, 2.0)),
        augment=replace(RICH, paste_unknown=0.5),
    )
    forwards, backwards = Mixture(recipe, tmp_path), Mixture(recipe, tmp_path)
    numbers = [*range(12), 999, 1000, 12345]
    once = {n: forwards.item(n, STAGE) for n in numbers}
    for number in reversed(numbers):
        frame, label, _ = once[number]
        assert (frame.dtype, frame.shape) == (np.uint8, (64, 128, 3))
        assert (label.dtype, label.shape) == (np.uint8, (64, 128))
        assert same(backwards.item(number, STAGE), once[number])


def test_another_seed_gives_other_crops_in_another_order():
    one, two = (Mixture(tiny(seed=seed, augment=RICH), None) for seed in (1, 2))
    assert names(one, range(8)) != names(two, range(8))
    assert not same(one.item(0, STAGE), two.item(0, STAGE))


def test_every_frame_comes_once_an_epoch_and_epochs_have_orders_of_their_own(tmp_path):
    photos(tmp_path, "abcdefg")
    mixture = Mixture(folders(Source()), tmp_path)
    epochs = [names(mixture, range(7 * e, 7 * e + 7)) for e in range(20)]
    assert all(sorted(epoch) == list("abcdefg") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15


def test_the_sources_of_a_mixture_come_by_their_shares_and_evenly(tmp_path):
    for name, letters in (("x", "ab"), ("y", "cde"), ("z", "f")):
        photos(tmp_path / name, letters, np.zeros((16, 32)))
    shares = {"x": 3.0, "y": 1.0, "z": 0.5}
    recipe = folders(*(Source(n, share=s) for n, s in shares.items()))
    mixture = Mixture(recipe, tmp_path)
    drawn = names(mixture, range(1000))
    for letters, share in (("ab", 3.0), ("cde", 1.0), ("f", 0.5)):
        hits = np.array([name in letters for name in drawn])
        assert hits.sum() == pytest.approx(1000 * share / 4.5, abs=1.5)
        windows = np.convolve(hits, np.ones(45), "valid")
        assert np.abs(windows - 10 * share).max() <= 2
    # Within a source no frame is favoured, across the ends of the cycle as well.
    drawn = names(mixture, range(3000))
    counts = [drawn.count(name) for name in "cde"]
    assert max(counts) - min(counts) <= 1


# --- held-out frames


def test_held_out_frames_are_the_last_by_name_and_never_trained_on(tmp_path):
    photos(tmp_path, "abcdefgh", np.zeros((16, 32)))
    mixture = Mixture(folders(Source(hold_out=3, rare=0.5)), tmp_path)
    assert [s.name for s in mixture.held_out] == ["f", "g", "h"]
    assert set(names(mixture, range(100))) == set("abcde")
    assert len(mixture) == 5


def test_a_photo_that_another_source_trains_on_is_not_held_out(tmp_path):
    photos(tmp_path / "large", "abcd", np.zeros((16, 32)))
    photos(tmp_path / "small", "cxyz", np.zeros((16, 32)))
    mixture = Mixture(folders(Source("large", hold_out=2), Source("small", hold_out=1)), tmp_path)
    assert [s.name for s in mixture.held_out] == ["d", "z"]
    trained = set(names(mixture, range(60)))
    assert trained == set("abcxy")


# --- the stream of batches


def stream(recipe, start=0, rank=0, world=1, count=6, workers=None):
    batches = Batches(Mixture(recipe, None), STAGE, start, rank, world)
    if workers is None:
        return list(islice(batches, count))
    context = "fork" if workers else None
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    return list(islice(loader, count))


def test_two_processes_see_what_one_sees_in_two_micro_batches():
    alone = stream(tiny(augment=RICH, data={"accumulate": 2}), count=8)
    first, second = (stream(tiny(augment=RICH), 0, rank, 2, count=4) for rank in (0, 1))
    together = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert same_batches(alone, together)
    assert not same_batches(first, second)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stream_that_begins_later_goes_on_with_the_same_batches(accumulate):
    recipe = tiny(augment=RICH, data={"accumulate": accumulate})
    whole = stream(recipe, count=8 * accumulate)
    assert same_batches(stream(recipe, start=5, count=3 * accumulate), whole[5 * accumulate :])


# From Python 3.12 on, forking while torch has threads warns; the workers do not use torch.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_neither_batches_nor_their_order(workers):
    recipe = tiny(augment=RICH, data={"accumulate": 2})
    assert same_batches(stream(recipe, start=3, workers=workers), stream(recipe, start=3))


# --- what the labels become


def striped_label():
    """Road with an unlabelled block and an unlabelled strip of three pixels."""
    label = np.zeros((64, 128), np.uint8)
    label[10:40, 20:60] = IGNORE
    label[50:53] = IGNORE
    return label


@pytest.mark.parametrize("void", ["ignore", "all", "eroded"])
def test_what_unlabelled_pixels_become(tmp_path, void):
    photos(tmp_path, "a", striped_label())
    recipe = folders(Source(void=void, erosion=2), augment=Augment(flip=False))
    label = Mixture(recipe, tmp_path).item(0, STAGE)[1]
    expected = striped_label()
    if void == "all":
        expected[expected == IGNORE] = VOID
    elif void == "eroded":
        expected[12:38, 22:58] = VOID
    np.testing.assert_array_equal(label, expected)


def test_crops_around_a_rare_class_contain_it(tmp_path):
    label = np.zeros((256, 512), np.uint8)
    label[3:10, 500:510] = 5
    photos(tmp_path, "a", label)
    photos(tmp_path, "bcd", np.zeros((256, 512)))

    def share(rare):
        mixture = Mixture(folders(Source(rare=rare, scale=(0.9, 2.0))), tmp_path)
        return np.mean([5 in mixture.item(number, STAGE)[1] for number in range(60)])

    assert share(1.0) == 1.0
    assert share(0.0) < 0.2


# --- refusals


def test_a_missing_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere' does not exist"):
        Mixture(folders(Source("nowhere")), tmp_path)


@pytest.mark.parametrize("count", [3, 4])
def test_more_held_out_than_there_is(tmp_path, count):
    photos(tmp_path / "few", "abc", np.zeros((16, 32)))
    with pytest.raises(InputError, match=f"'few' has 3 frames and {count} are to be held out"):
        Mixture(folders(Source("few", hold_out=count)), tmp_path)


def test_a_label_map_of_another_size(tmp_path):
    photos(tmp_path, "a")
    cv2.imwrite(str(tmp_path / "labels" / "a.png"), np.zeros((32, 128), np.uint8))
    with pytest.raises(InputError, match="'a' is 128x64 and its label map 128x32 pixels"):
        Mixture(folders(Source()), tmp_path)


def test_a_recipe_that_needs_data():
    with pytest.raises(UsageError, match="reads 'cityscapes', so it needs --data"):
        Mixture(folders(Source("cityscapes")), None)


def test_without_data_scenes_are_drawn():
    mixture = Mixture(folders(Source(count=3, size="64x128")), None)
    assert mixture.names == [f"./synthetic-0-00000{k}" for k in range(3)]
