import json
import threading

import numpy as np
import pytest

from edgeseg.errors import UsageError
from edgeseg.runtime.overlay import VIEWS, HeatScale, Painter
from edgeseg.runtime.regions import MAX_REGIONS, analyse
from edgeseg.runtime.sink_thread import SinkThread
from edgeseg.runtime.sinks import FolderSink, LinesSink, Shot, VideoSink, open_sink
from edgeseg.scoring.scorers import SCORERS
from edgeseg.taxonomy import PALETTE

cv2 = pytest.importorskip("cv2")


def painter(view="overlay", scorer="void", threshold=0.3, caption="net int8 | w"):
    return Painter(PALETTE, HeatScale(scorer, 19, threshold), view, caption)


def shot(stem="a", seed=0, size=(90, 120)):
    rng = np.random.default_rng(seed)
    return Shot(
        stem,
        rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        rng.integers(0, 19, (32, 64), dtype=np.uint8),
        rng.random((32, 64)).astype(np.float16),
        "3 ms",
    )


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_gets_picture_classes_and_score(tmp_path):
    sink = open_sink(tmp_path / "out", painter(), PALETTE, None)
    given = shot("sub/a")
    sink.write(given)
    sink.close()
    assert names(tmp_path / "out") == [
        "sub/a_classes.png",
        "sub/a_overlay.jpg",
        "sub/a_score.npy",
        "sub/a_score.png",
    ]
    score = np.load(tmp_path / "out/sub/a_score.npy")
    assert score.dtype == np.float16
    np.testing.assert_array_equal(score, given.score)
    image = pytest.importorskip("PIL.Image")
    with image.open(tmp_path / "out/sub/a_classes.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), given.class_map)
    with image.open(tmp_path / "out/sub/a_score.png") as opened:
        assert opened.text["Score"].startswith("0 = 0, 110 = threshold 0.3, 255 = 1")
        heat = np.asarray(opened)
    np.testing.assert_array_equal(heat >= 110, given.score.astype(float) >= 0.3)
    assert cv2.imread(str(tmp_path / "out/sub/a_overlay.jpg")).shape == (90, 120, 3)


def test_two_frames_of_one_name_do_not_overwrite_each_other(tmp_path):
    sink = FolderSink(tmp_path, painter(), PALETTE)
    sink.write(shot("a", 0))
    sink.write(shot("a", 1))
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_video_appears_under_its_name_when_it_is_finished(tmp_path):
    path = tmp_path / "out.mp4"
    sink = VideoSink(path, painter(), 20.0)
    for seed in range(8):
        sink.write(shot(seed=seed))
    assert not path.exists()
    sink.close()
    assert names(tmp_path) == ["out.mp4"]
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 8
    assert capture.get(cv2.CAP_PROP_FPS) == 20
    assert capture.read()[1].shape == (90, 120, 3)
    capture.release()


def test_frames_of_changing_size_go_into_one_video(tmp_path):
    sink = VideoSink(tmp_path / "out.mp4", painter(), None)
    sink.write(shot())
    sink.write(shot(size=(60, 100)))
    sink.close()
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    capture.release()


def test_a_video_without_frames_leaves_nothing_behind(tmp_path):
    sink = VideoSink(tmp_path / "out.mp4", painter(), 20.0)
    sink.close()
    assert names(tmp_path) == []
    assert sink.outputs == []


@pytest.mark.parametrize("name", ["clip.avi", "clip.gif", "file"])
def test_save_targets_that_are_neither_folder_nor_mp4(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=name):
        open_sink(tmp_path / name, painter(), PALETTE, None)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        open_sink(tmp_path / "file" / "deeper", painter(), PALETTE, None)
    with pytest.raises(UsageError, match="cannot be written"):
        open_sink(tmp_path / "file" / "x.mp4", painter(), PALETTE, None)
    with pytest.raises(UsageError, match="--jsonl"):
        LinesSink(tmp_path / "file" / "x.jsonl").write({})


def test_lines_can_be_followed_while_they_are_written(tmp_path):
    lines = LinesSink(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    lines.write({"frame": 0})
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"frame": 0}
    lines.write({"frame": 1})
    lines.close()
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


class Collecting:
    def __init__(self, fail_at=None):
        self.seen, self.fail_at, self.closed = [], fail_at, False
        self.gate = threading.Event()
        self.outputs = ["x"]

    def write(self, given):
        self.gate.wait(5)
        if len(self.seen) == self.fail_at:
            raise UsageError("disk full")
        self.seen.append(given.stem)
        return 1.0, 2.0

    def close(self):
        self.closed = True


def test_a_sink_thread_keeps_the_order_and_finishes_what_is_queued():
    sink = Collecting()
    sink.gate.set()
    thread = SinkThread(sink)
    for index in range(20):
        thread.put(shot(str(index), size=(8, 8)))
    assert thread.close() == ["x"]
    assert sink.seen == [str(index) for index in range(20)]
    assert sink.closed
    assert thread.take_timings() == [(1.0, 2.0)] * 20


def put_all(thread, shots):
    for given in shots:
        thread.put(given)


def test_an_error_in_the_sink_comes_out_and_the_sink_is_closed():
    sink = Collecting(fail_at=1)
    sink.gate.set()
    thread = SinkThread(sink)
    shots = [shot(str(index), size=(8, 8)) for index in range(10)]
    with pytest.raises(UsageError, match="disk full"):
        put_all(thread, shots)
    thread.close()
    assert sink.closed


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(90, 121), (1080, 1920)])
def test_pictures_have_even_sides_and_a_bounded_size(view, size):
    drawn = painter(view).draw(*[getattr(shot(size=size), k) for k in ("image", "class_map")],
                               shot().score)  # fmt: skip
    height, width = drawn.shape[:2]
    assert drawn.dtype == np.uint8
    assert height % 2 == width % 2 == 0
    assert max(height, width) <= (1920 if view == "both" else 1280)


def test_the_overlay_marks_what_passes_the_threshold_and_nothing_else():
    given = shot(size=(32, 64))
    score = np.zeros((32, 64), np.float16)
    calm = painter(caption="").draw(given.image, given.class_map, score)
    classes = painter("classes", caption="").draw(given.image, given.class_map, score)
    np.testing.assert_array_equal(calm, classes)
    score[8:24, 16:32] = 0.9
    marked = painter(caption="").draw(given.image, given.class_map, score)
    changed = (marked != classes).any(axis=2)
    assert changed[10:22, 18:30].all()
    assert not changed[:, 40:].any()


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_heat_grows_with_the_score(scorer, threshold):
    scale = HeatScale(scorer, 19, threshold)
    values = np.linspace(-20, 20, 500).astype(np.float16)
    heat = scale.apply(values).astype(int)
    assert (np.diff(heat) >= 0).all()
    assert heat[-1] == 255
    assert heat[0] == 0
    if threshold is not None:
        assert (heat[values >= threshold] >= 110).all()
        assert (heat[values < threshold - 0.01] <= 110).all()


def test_the_scale_of_an_unbounded_score_only_widens():
    scale = HeatScale("maxlogit", 19, None)
    scale.apply(np.linspace(-10, -1, 100).astype(np.float16))
    before = scale.low, scale.high
    scale.apply(np.linspace(-5, -4, 100).astype(np.float16))
    assert (scale.low, scale.high) == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("threshold", [-3.0, -0.25, 0.0, 1e-4, 0.3, 0.9, 5.0, 1e6, -1e6])
def test_fraction_and_peak_are_those_of_a_plain_comparison(dtype, threshold):
    rng = np.random.default_rng(0)
    score = rng.normal(0, 1.5, (40, 60)).astype(dtype)
    score[0, :4] = [0.0, -0.0, 65504.0, -65504.0]
    found = analyse(score, threshold)
    wide = score.astype(np.float64)
    assert found.fraction == (wide >= threshold).mean()
    assert found.peak == wide.max()
    assert sum(region.area for region in found.regions) <= (wide >= threshold).sum()


def test_regions_are_boxes_in_the_sources_pixels_largest_first():
    score = np.zeros((32, 64), np.float16)
    score[4:8, 10:20] = 0.5
    score[20:21, 3:5] = 0.75
    score[21, 5] = 0.875  # touches the corner: the same region
    found = analyse(score, 0.5, source_size=(64, 256))
    assert [(r.box, r.area, r.peak) for r in found.regions] == [
        ((40, 8, 40, 8), 320, 0.5),
        ((12, 40, 12, 4), 24, 0.875),
    ]
    assert found.fraction == 43 / (32 * 64)


def test_the_region_of_interest_is_all_that_counts():
    score = np.zeros((32, 64), np.float16)
    score[4:8, 10:20] = 0.5
    score[20:24, 10:20] = 0.9
    roi = np.zeros((32, 64), bool)
    roi[:16] = True
    found = analyse(score, 0.4, roi=roi)
    assert found.peak == 0.5
    assert found.fraction == 40 / (16 * 64)
    assert [region.box for region in found.regions] == [(10, 4, 10, 4)]


def test_a_noisy_frame_gives_a_bounded_number_of_regions():
    score = np.zeros((64, 64), np.float16)
    score[::2, ::2] = 1.0
    assert len(analyse(score, 0.5).regions) == MAX_REGIONS


def test_without_a_threshold_there_is_a_peak_alone():
    found = analyse(np.full((8, 8), 0.5, np.float16), None)
    assert (found.peak, found.fraction, found.regions) == (0.5, None, ())


@pytest.mark.parametrize("fill", [0.05, 0.6])
def test_regions_are_the_same_for_few_and_for_many_pixels(fill):
    """Labels have 16 bits where few pixels count and 32 where many do."""
    rng = np.random.default_rng(0)
    score = np.where(rng.random((300, 500)) < fill, 0.75, 0.0).astype(np.float16)
    score[0, 0] = 0.875
    found = analyse(score, 0.5)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((score > 0).view(np.uint8))
    areas = sorted(stats[1:, cv2.CC_STAT_AREA].tolist(), reverse=True)
    assert [region.area for region in found.regions] == areas[:MAX_REGIONS]
    assert set(labels[score > 0]) == set(range(1, count))
    assert {region.peak for region in found.regions} <= {0.75, 0.875}
