"""Names and folders that the system refuses, and pictures that nothing can resize."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgeseg.data.samples import find_images
from edgeseg.errors import InputError, UsageError
from edgeseg.runtime.cameras import check_size
from edgeseg.runtime.frames import BadFrame, Frame
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.signing_keys import make_keys
from edgeseg.runtime.sinks import open_sink
from edgeseg.runtime.sources import open_source
from edgeseg.taxonomy import PALETTE

cv2 = pytest.importorskip("cv2")
LONG = "x" * 300


@pytest.fixture
def denied(monkeypatch):
    """Makes folders that may not be listed, and what lies in them not be looked at."""
    folders = []
    scan, look, list_names = os.scandir, os.stat, os.listdir

    def check(path):
        if isinstance(path, int) or not any(str(path).startswith(str(f)) for f in folders):
            return
        raise PermissionError(13, "Permission denied", str(path))

    def checked(real):
        def call(path=".", *args, **kwargs):
            check(path)
            return real(path, *args, **kwargs)

        return call

    def inside(path, *args, **kwargs):
        if path not in folders and str(path) not in map(str, folders):
            check(path)
        return look(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", checked(scan))
    monkeypatch.setattr(os, "listdir", checked(list_names))
    monkeypatch.setattr(os, "stat", inside)
    return folders.append


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 16, 3), 90, np.uint8))


def test_a_frame_in_a_folder_that_may_not_be_entered_is_an_input_error(tmp_path, denied):
    picture(tmp_path / "locked" / "f_1.png")
    denied(tmp_path / "locked")
    for uri in ("f_1.png", "deeper/f_1.png", "f_%d.png"):
        with pytest.raises(InputError, match="Permission denied"):
            open_source(str(tmp_path / "locked" / uri))


def test_a_folder_below_that_cannot_be_read_is_not_left_out_without_a_word(tmp_path, denied):
    picture(tmp_path / "a.png")
    picture(tmp_path / "locked" / "b.png")
    denied(tmp_path / "locked")
    with pytest.raises(InputError, match=r"locked' cannot be read \(Permission denied\)"):
        open_source(str(tmp_path))
    with pytest.raises(InputError, match=r"locked' cannot be read \(Permission denied\)"):
        find_images(tmp_path, recursive=True)
    assert find_images(tmp_path) == [tmp_path / "a.png"]


def test_pictures_of_a_data_folder_are_found_as_ever(tmp_path):
    for name in ("b.png", "a/2.jpg", ".hidden.png", ".git/c.png", "a/.d/e.png", "f.txt"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.png").rename(tmp_path / name)
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "linked.png").symlink_to("b.png")
    top = [tmp_path / "b.png", tmp_path / "linked.png"]
    assert find_images(tmp_path) == top
    assert find_images(tmp_path, recursive=True) == [tmp_path / "a" / "2.jpg", *top]


def test_a_name_that_is_too_long_is_an_input_error(tmp_path):
    for uri in (LONG, f"{LONG}.png", f"{LONG}/f_%d.png"):
        with pytest.raises(InputError, match=r"cannot be read .*too long"):
            open_source(str(tmp_path / uri))


@pytest.mark.parametrize("name", [LONG, f"{LONG}.mp4", f"{LONG}/v.mp4"], ids="abc")
def test_an_output_whose_name_is_too_long_cannot_be_written(tmp_path, name):
    painter = Painter(PALETTE, HeatScale("void", 19, 0.3), "overlay")
    with pytest.raises(UsageError, match=r"cannot be written .*too long"):
        open_sink(tmp_path / name, painter, PALETTE, None)


@pytest.mark.parametrize("name", ["f_%0999999999999d.png", "f_%99999999999d.png"])
def test_a_pattern_of_more_digits_than_names_have_matches_nothing(tmp_path, name):
    with pytest.raises(InputError, match=r"f_%"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", [".", "", "/"])
def test_a_key_needs_a_name(monkeypatch, tmp_path, name):
    pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="names a folder"):
        make_keys(Path(name))
    assert list(tmp_path.iterdir()) == []


def test_one_picture_with_an_endless_side_is_a_bad_frame_and_the_rest_is_read(tmp_path):
    picture(tmp_path / "1.png")
    cv2.imwrite(str(tmp_path / "2.png"), np.zeros((4, 65537, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "3.png"), np.zeros((4, 65536, 3), np.uint8))
    source = open_source(str(tmp_path))
    items = list(source)
    source.close()
    assert [type(item) for item in items] == [Frame, BadFrame, Frame]
    assert "2.png' has 65537x4 pixels" in items[1].reason


def test_a_camera_or_video_with_an_endless_side_is_refused():
    class Wide:
        released = False

        def get(self, key):
            return {cv2.CAP_PROP_FRAME_WIDTH: 65537.0, cv2.CAP_PROP_FRAME_HEIGHT: 4.0}[key]

        def release(self):
            self.released = True

    wide = Wide()
    with pytest.raises(InputError, match="65537x4"):
        check_size(wide, "camera 0")
    assert wide.released
