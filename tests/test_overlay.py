import numpy as np
import pytest

from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.taxonomy import PALETTE

pytest.importorskip("cv2")


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 1.0, 1.5])
def test_heat_reaches_the_thresholds_level_exactly_where_the_score_passes(threshold):
    scale = HeatScale("msp", 19, threshold)
    score = np.linspace(0, 1, 500).astype(np.float16)
    heat = scale.apply(score)
    np.testing.assert_array_equal(heat >= 110, score.astype(float) >= threshold)
    assert (np.diff(heat.astype(int)) >= 0).all()


@pytest.mark.parametrize("threshold", [-30.0, -2.0, 5.0])
def test_a_threshold_outside_an_unbounded_score_still_divides_it(threshold):
    score = np.linspace(-20, -2, 1000).astype(np.float16)
    heat = HeatScale("maxlogit", 19, threshold).apply(score)
    np.testing.assert_array_equal(heat >= 110, score.astype(float) >= threshold)


@pytest.mark.parametrize(
    ("threshold", "text", "value", "heat"),
    [
        (0.5, "0 = 0, 110 = threshold 0.5, 255 = 1, linear between", 1.0, 255),
        (1.5, "0 = 0, 110 = threshold 1.5, linear; 255 = more", 0.75, 55),
        (-1.0, "110 = 0, 255 = 1, linear; less is below threshold -1", 0.0, 110),
    ],
)
def test_the_pictures_describe_their_own_mapping(threshold, text, value, heat):
    scale = HeatScale("msp", 19, threshold)
    assert scale.describe() == text
    assert scale.apply(np.float16([value])).tolist() == [heat]


@pytest.mark.parametrize(("threshold", "painted"), [(1.5, False), (-1.0, True)])
def test_the_overlay_paints_what_the_lines_count(threshold, painted):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)
    classes = rng.integers(0, 19, (64, 128), dtype=np.uint8)
    score = np.full((64, 128), 0.9, np.float16)
    score[:, :64] = 0.1
    pictures = [
        Painter(PALETTE, HeatScale("msp", 19, threshold), view).draw(image, classes, score)
        for view in ("overlay", "classes")
    ]
    changed = (pictures[0] != pictures[1]).any(axis=2)
    # An outline of the whole picture is white, as some pixels are in any case.
    assert changed.mean() > 0.95 if painted else not changed.any()
