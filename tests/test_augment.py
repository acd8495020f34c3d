"""Crops: labels stay on their frame, nothing is shifted, and light changes leave the geometry."""

import itertools
import math

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV")
pytest.importorskip("torch", reason="training needs torch")

from edgeseg.taxonomy import IGNORE, VOID  # noqa: E402
from edgeseg.training.augment import (  # noqa: E402
    Levels,
    crop,
    paste_unknown,
    photometric,
    void_where_sure,
)
from edgeseg.training.recipe import Augment  # noqa: E402

STILL = Augment(flip=False)
TURNING = Augment(rotate=1.0, aspect=0.3)
OUTSIDE = (90, 100, 90)


def blocks(height=96, width=192, side=12, seed=0):
    """A label map of blocks, and a frame in which every label has a colour of its own."""
    coarse = np.random.default_rng(seed).integers(0, 19, (height // side, width // side))
    label = np.kron(coarse, np.ones((side, side))).astype(np.uint8)
    return colours(label), label


def colours(label):
    """The colour of each label; 255 has that of what lies beyond the frame."""
    table = np.stack([np.arange(256) * 13 % 256, np.arange(256) * 7, np.arange(256)], 1)
    table = (table % 256).astype(np.uint8)
    table[IGNORE] = OUTSIDE
    return table[label]


def inner(label, distance):
    """Where the label is the same as all around it, away from the rim."""
    size = (2 * distance + 1,) * 2
    same = cv2.erode(label, np.ones(size)) == cv2.dilate(label, np.ones(size))
    same[:distance] = same[-distance:] = False
    same[:, :distance] = same[:, -distance:] = False
    return same


@pytest.mark.parametrize("stretch", [(1.0, 1.0), (1.0, 2.0)], ids=str)
@pytest.mark.parametrize("scale", [0.45, 0.75, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("augment", [Augment(), TURNING], ids=["flips", "turns"])
def test_labels_stay_on_their_frame(augment, scale, stretch):
    levels = Levels(*blocks(), smallest_scale=scale)
    checked = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        frame, label = crop(rng, levels, (64, 128), scale, stretch, augment)
        # An enlarged edge is as wide as a pixel was made.
        sure = inner(label, math.ceil(1.25 * scale * max(stretch)))
        off = np.abs(frame.astype(int) - colours(label)).max(2)
        assert off[sure].max() <= 1
        checked += sure.mean()
    assert checked / 20 > 0.2


@pytest.mark.parametrize("stretch", [(1.0, 1.0), (1.0, 2.0)], ids=str)
@pytest.mark.parametrize("scale", [0.75, 1.0, 1.5, 2.0])
def test_the_edge_of_a_label_is_the_edge_in_the_frame(scale, stretch):
    for column, seed in itertools.product((30, 31, 47), range(4)):
        label = np.zeros((64, 96), np.uint8)
        label[:, column:] = 1
        levels = Levels(np.repeat(label[..., None] * 255, 3, 2), label, scale)
        rng = np.random.default_rng(seed)
        frame, marks = crop(rng, levels, (32, 160), scale, stretch, Augment())
        seen = marks != IGNORE
        seen &= cv2.erode(seen.astype(np.uint8), np.ones((3, 3)), borderValue=1) > 0
        # Pixels half way between are counted for either side.
        wrong = seen & ((frame[..., 0] > 140) & (marks == 0) | (frame[..., 0] < 115) & (marks == 1))
        assert not wrong.any()


def test_a_crop_of_the_whole_unscaled_frame_is_the_frame():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 128, 3)).astype(np.uint8)
    label = rng.integers(0, 19, (64, 128)).astype(np.uint8)
    mirrored = 0
    for seed in range(10):
        augment = STILL if seed < 2 else Augment()
        out, marks = crop(
            np.random.default_rng(seed), Levels(frame, label, 1.0), (64, 128), 1.0, (1, 1), augment
        )
        if not np.array_equal(out, frame):
            mirrored += 1
            out, marks = out[:, ::-1], marks[:, ::-1]
        np.testing.assert_array_equal(out, frame)
        np.testing.assert_array_equal(marks, label)
        assert seed >= 2 or not mirrored
    assert 0 < mirrored < 8


def test_a_window_of_an_unscaled_frame_is_cut_out_of_it_between_pixels():
    frame, label = blocks()
    for seed in range(10):
        _, marks = crop(
            np.random.default_rng(seed), Levels(frame, label, 1.0), (32, 64), 1.0, (1, 1), STILL
        )
        windows = np.lib.stride_tricks.sliding_window_view(label, (32, 64))
        assert (windows == marks).all((2, 3)).any()


@pytest.mark.parametrize(("scale", "stretch"), [(2.0, (1, 1)), (1.0, (1, 2)), (1.5, (2, 1))])
def test_scaling_is_that_of_resize(scale, stretch):
    frame, label = blocks(side=8)
    size = (round(96 * scale * stretch[0]), round(192 * scale * stretch[1]))
    out, marks = crop(
        np.random.default_rng(0), Levels(frame, label, scale), size, scale, stretch, STILL
    )
    resized = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
    middle = slice(2, -2), slice(2, -2)  # at the rim, the outside is mixed in
    # warpAffine rounds positions to a 32nd of a pixel.
    assert np.abs(out[middle].astype(int) - resized[middle]).max() <= 256 / 32 + 1
    rows = ((np.arange(size[0]) + 0.5) * 96 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 192 / size[1]).astype(int)
    assert (marks == label[np.ix_(rows, columns)]).mean() > 0.999


def test_strong_shrinking_averages_instead_of_skipping_pixels():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (128, 256, 3)).astype(np.uint8)
    label = np.zeros((128, 256), np.uint8)
    out, marks = crop(rng, Levels(frame, label, 0.25), (32, 64), 0.25, (1, 1), STILL)
    expected = cv2.resize(frame, (64, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(out.astype(int) - expected).max() <= 1
    assert not marks.any()


def test_beyond_the_frame_there_is_no_label():
    frame, label = blocks(32, 64, 8)
    out, marks = crop(np.random.default_rng(3), Levels(frame, label, 1.0), (96, 192), 1.0, (1, 1),
                      STILL)  # fmt: skip
    assert (marks != IGNORE).sum() == 32 * 64
    assert (out[0, 0] == OUTSIDE).all()
    ys, xs = np.nonzero(marks != IGNORE)
    assert (ys.min(), xs.min()) == (32, 64)  # in the middle


@pytest.mark.parametrize("anchor", [(0.0, 0.0), (0.999, 0.999), (0.5, 0.1), (0.02, 0.98)])
@pytest.mark.parametrize("scale", [0.8, 1.0, 2.0])
def test_a_window_contains_its_anchor(scale, anchor):
    label = np.zeros((128, 256), np.uint8)
    y, x = int(anchor[0] * 128), int(anchor[1] * 256)
    label[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 7
    levels = Levels(np.zeros((128, 256, 3), np.uint8), label, scale)
    point = ((y + 0.5) / 128, (x + 0.5) / 256)
    places = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        _, marks = crop(rng, levels, (64, 96), scale, (1, 1), Augment(), point)
        assert (marks == 7).any()
        places.add(tuple(np.argwhere(marks == 7)[0]))
    assert len(places) > 1


# --- light and sensor


EVERYTHING = Augment(colour=0.8, blur=1.0, sharpen=1.0, noise=1.0, jpeg=1.0)


@pytest.mark.parametrize(
    "augment",
    [
        EVERYTHING,
        Augment(colour=1.0),
        Augment(blur=1.0),
        Augment(sharpen=1.0),
        Augment(noise=1.0),
        Augment(jpeg=1.0),
    ],
    ids=["all", "colour", "blur", "sharpen", "noise", "jpeg"],
)
def test_light_and_sensor_change_values_alone_and_by_the_generator(augment):
    frame, _ = blocks()
    before = frame.copy()
    out = photometric(np.random.default_rng(1), frame, augment)
    assert (out.dtype, out.shape) == (np.uint8, frame.shape)
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(photometric(np.random.default_rng(1), frame, augment), out)
    assert not np.array_equal(out, frame)
    assert not np.array_equal(photometric(np.random.default_rng(2), frame, augment), out)


def test_without_augmentation_a_frame_stays_as_it_is():
    frame, _ = blocks()
    np.testing.assert_array_equal(photometric(np.random.default_rng(0), frame, STILL), frame)


def test_light_does_not_move_edges():
    frame, label = blocks()
    for seed in range(20):
        out = photometric(np.random.default_rng(seed), frame, Augment(colour=0.5))
        for value in np.unique(label):
            assert np.ptp(out[label == value], axis=0).max() == 0


# --- void


def test_only_the_cores_of_unlabelled_areas_become_void():
    label = np.zeros((40, 60), np.uint8)
    label[5:8] = IGNORE  # a doubtful edge
    label[20:40, 10:30] = IGNORE
    out = void_where_sure(label, 2)
    expected = label.copy()
    expected[22:40, 12:28] = VOID  # what lies at the rim of the frame goes on beyond it
    np.testing.assert_array_equal(out, expected)
    everything = void_where_sure(label, 0)
    np.testing.assert_array_equal(everything == VOID, label == IGNORE)
    assert (label == VOID).sum() == 0


def test_pasted_objects_are_void_and_the_rest_stays():
    pasted = 0
    for seed in range(20):
        frame, label = blocks(128, 256, 16)
        whole, before = frame.copy(), label.copy()
        paste_unknown(np.random.default_rng(seed), frame, label)
        changed = label != before
        assert (label[changed] == VOID).all()
        pasted += bool(changed.any())
        near = cv2.dilate(changed.astype(np.uint8), np.ones((13, 13))) > 0
        np.testing.assert_array_equal(frame[~near], whole[~near])
        if changed.sum() > 50:
            assert (frame[changed] != whole[changed]).any(1).mean() > 0.7
    assert pasted >= 18
