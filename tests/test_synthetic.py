"""Synthetic scenes: what training, the demo and the tests rely on."""

import itertools

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the generator draws with OpenCV")

from edgeseg.data.synthetic import Options, SyntheticClip, scene, void_cutout  # noqa: E402
from edgeseg.errors import UsageError  # noqa: E402
from edgeseg.taxonomy import IGNORE, NUM_KNOWN, VOID  # noqa: E402


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = scene(11, 96, 192), scene(11, 96, 192)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()


def test_other_seeds_give_other_scenes() -> None:
    labels = {scene(seed, 64, 128)[1].tobytes() for seed in range(12)}
    assert len(labels) == 12


def test_bytes_do_not_depend_on_opencv_threads() -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = scene(5, 256, 512)
        cv2.setNumThreads(4)
        four = scene(5, 256, 512)
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(one[0], four[0])
    assert np.array_equal(one[1], four[1])


def test_numpy_global_random_state_is_left_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    scene(1, 32, 64)
    assert np.array_equal(before, np.random.get_state()[1])


def test_all_classes_and_void_occur_within_40_seeds() -> None:
    pixels = np.zeros(256, np.int64)
    for seed in range(40):
        pixels += np.bincount(scene(seed, 128, 256)[1].ravel(), minlength=256)
    assert (pixels[: VOID + 1] > 0).all(), np.flatnonzero(pixels[: VOID + 1] == 0)
    assert pixels[VOID + 1 : IGNORE].sum() == 0
    # A road scene: road, building, sky and vegetation are the bulk of it.
    assert pixels[[0, 2, 8, 10]].sum() > 0.6 * pixels[:NUM_KNOWN].sum()


def test_unknown_objects_are_there_when_asked_for_and_never_otherwise() -> None:
    some = Options(unknown=1.0)
    none = Options(unknown=0.0)
    with_void = sum(bool((scene(s, 128, 256, options=some)[1] == VOID).any()) for s in range(12))
    assert with_void >= 10  # one may hide behind a car or lie outside of the picture
    assert not any((scene(s, 128, 256, options=none)[1] == VOID).any() for s in range(12))


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (64, 300), (300, 64), (121, 242)])
def test_any_size(size: tuple[int, int]) -> None:
    for seed in range(3):
        frame, label = scene(seed, *size)
        assert frame.shape == (*size, 3)
        assert label.shape == size
        assert frame.dtype == label.dtype == np.uint8
        assert frame.flags.c_contiguous
        assert label.flags.c_contiguous


def test_the_layout_does_not_depend_on_the_size() -> None:
    small = scene(8, 128, 256, options=Options(bonnet=False))[1]
    large = scene(8, 256, 512, options=Options(bonnet=False))[1]
    # Edges move by a pixel; the rest is the same street.
    assert (large[1::2, 1::2] == small).mean() > 0.9


def test_what_options_fix_shows() -> None:
    clear = scene(2, 128, 256, options=Options(fog=0, rain=0, dusk=0, noise=0, jpeg=0))
    night = scene(2, 128, 256, options=Options(fog=0, rain=0, dusk=1, noise=0, jpeg=0))
    noisy = scene(2, 128, 256, options=Options(fog=0, rain=0, dusk=0, noise=10, jpeg=0))
    assert night[0].mean() < 0.6 * clear[0].mean()
    assert 6 < np.std(noisy[0].astype(float) - clear[0].astype(float)) < 12
    assert np.array_equal(clear[1], night[1])
    assert np.array_equal(clear[1], noisy[1])


def test_fog_takes_contrast_from_the_distance() -> None:
    plain = {"rain": 0.0, "dusk": 0.0, "noise": 0.0, "jpeg": 0}
    clear = scene(1, 128, 256, options=Options(fog=0, **plain))
    foggy = scene(1, 128, 256, options=Options(fog=20, **plain))
    band = slice(40, 70)
    assert foggy[0][band].std() < 0.8 * clear[0][band].std()


def test_the_bonnet_is_ignored_and_at_the_lower_edge() -> None:
    with_bonnet = scene(4, 128, 256, options=Options(bonnet=True))[1]
    assert (with_bonnet[-1] == IGNORE).mean() > 0.5
    assert not (with_bonnet[:64] == IGNORE).any()
    assert not (scene(4, 128, 256, options=Options(bonnet=False))[1] == IGNORE).any()


def test_a_clip_can_be_read_in_any_order() -> None:
    clip = SyntheticClip(seed=3, height=64, width=128, frames=4)
    frames = list(clip)
    assert len(frames) == len(clip) == 4
    assert np.array_equal(clip[2][0], frames[2][0])
    assert np.array_equal(clip[-1][1], frames[3][1])
    with pytest.raises(IndexError):
        clip[4]


def test_a_clip_moves_smoothly() -> None:
    clip = SyntheticClip(seed=6, height=128, width=256, frames=40)
    labels = [label for _, label in clip]
    after_one = np.mean([(a == b).mean() for a, b in itertools.pairwise(labels)])
    after_all = (labels[0] == labels[-1]).mean()
    assert after_one > 0.9
    assert after_all < after_one - 0.02


def test_an_object_grows_as_the_camera_nears_it() -> None:
    for seed in range(30):
        clip = SyntheticClip(seed, 128, 256, frames=30, options=Options(unknown=1.0))
        first = int((clip[0][1] == VOID).sum())
        later = int((clip[12][1] == VOID).sum())
        if first > 60 and later > 1.3 * first:
            return
    pytest.fail("no unknown object came nearer in 30 clips")


def test_cutouts_have_a_picture_and_a_mask() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        picture, mask = void_cutout(rng, 24, 40)
        assert picture.shape == (24, 40, 3)
        assert picture.dtype == mask.dtype == np.uint8
        assert mask.shape == (24, 40)
        assert set(np.unique(mask)) <= {0, 1}
        assert mask.sum() > 30


@pytest.mark.parametrize("size", [(0, 64), (64, -1), (8, 8)])
def test_a_size_that_is_too_small_is_one_sentence(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="too small"):
        scene(0, *size)


def test_a_negative_seed_and_an_empty_clip_are_refused() -> None:
    with pytest.raises(UsageError, match="seed -1"):
        scene(-1)
    with pytest.raises(UsageError, match="clip of 0 frames"):
        SyntheticClip(0, frames=0)


@pytest.mark.parametrize(
    "value", [{"unknown": 1.5}, {"fog": -1.0}, {"jpeg": 101}, {"noise": float("nan")}]
)
def test_an_option_out_of_range_is_named(value: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(value))):
        Options(**value)
