"""Which files the readers find, through links too, and the stored values of BMP and TIFF masks."""

import contextlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.cli.eval_targets import open_dataset
from edgeseg.data import AnomalySet, Cityscapes, LabelledFolder, find_images, open_labelled, samples
from edgeseg.data.bit_depths import declared_bits
from edgeseg.data.samples import read_label
from edgeseg.errors import InputError
from edgeseg.evaluation.evaluate import evaluate
from edgeseg.evaluation.state import ScorerSpec
from tests.test_eval_cli import Brightness
from tests.test_folder import PHOTO, labels, save

MASK = np.resize(np.uint8([0, 1, 1]), (4, 5))


def frames_of(root: Path, city: str) -> None:
    save(root / "leftImg8bit/val" / city / f"{city}_0_leftImg8bit.png", PHOTO)
    save(root / "gtFine/val" / city / f"{city}_0_gtFine_labelTrainIds.png", labels(0, 1))


def anomaly_set(folder: Path, anomaly: int = 1) -> Path:
    save(folder / "images" / "a.png", PHOTO)
    save(folder / "labels_masks" / "a.png", labels(0, anomaly))
    return folder


# --- links and folders that cannot be read


def test_linked_city_folders_are_read(tmp_path: Path) -> None:
    root, store = tmp_path / "set", tmp_path / "store"
    frames_of(root, "ulm")
    frames_of(store, "bonn")
    for kind in ("leftImg8bit/val", "gtFine/val"):
        (root / kind / "bonn").symlink_to(store / kind / "bonn")
    assert [s.name for s in Cityscapes(root)] == ["bonn_0", "ulm_0"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    save(tmp_path / "set" / "deep" / "a.png", PHOTO)
    (tmp_path / "set" / "deep" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "twin").symlink_to(tmp_path / "set" / "deep")
    (tmp_path / "set" / "z").symlink_to(tmp_path / "set" / "z")
    found = find_images(tmp_path / "set", recursive=True)
    assert found == [tmp_path / "set" / "deep" / "a.png"]


def test_a_folder_below_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "good" / "a.png", PHOTO)
    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.scandir

    def scandir(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="closed' cannot be read"):
        find_images(tmp_path, recursive=True)
    assert find_images(tmp_path / "good") == [tmp_path / "good" / "a.png"]


def test_a_folder_that_cannot_be_entered_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png", PHOTO)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may enter everything
    with pytest.raises(InputError, match="check its permissions"):
        find_images(tmp_path)


# --- names of linked sets


def test_a_linked_set_keeps_its_name_and_its_masks(tmp_path: Path) -> None:
    store = anomaly_set(tmp_path / "store" / "sha-1234", 2)
    link = tmp_path / "anomaly" / "RoadAnomaly"
    link.parent.mkdir()
    link.symlink_to(store)
    for found in (AnomalySet(link), open_dataset(tmp_path, "anomaly:RoadAnomaly", "val")):
        assert found.name == "RoadAnomaly"
        np.testing.assert_array_equal(found[0].load_label(), labels(0, 1))
    assert open_dataset(link, "anomaly:RoadAnomaly", "val").name == "RoadAnomaly"


def test_a_link_to_road_anomaly_has_its_masks_by_any_name(tmp_path: Path) -> None:
    link = tmp_path / "mine"
    link.symlink_to(anomaly_set(tmp_path / "RoadAnomaly", 2))
    np.testing.assert_array_equal(AnomalySet(link)[0].load_label(), labels(0, 1))
    assert open_dataset(link, "anomaly:RoadAnomaly", "val").name == "RoadAnomaly"


def test_a_linked_labelled_folder_keeps_its_name(tmp_path: Path) -> None:
    for kind in ("images", "labels", "train/images", "train/labels"):
        save(tmp_path / "store" / kind / "a.png", labels(0) if "labels" in kind else PHOTO)
    (tmp_path / "mine").symlink_to(tmp_path / "store")
    assert LabelledFolder(tmp_path / "mine").name == "mine"
    assert open_labelled(tmp_path / "mine").name == "mine"


# --- BMP and TIFF masks


def bmp(bits: int, palette: bytes, values: np.ndarray) -> bytes:
    """A BMP of 1, 4 or 8 bits."""
    rows = b""
    for row in values[::-1]:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 32)
        rows += int(text, 2).to_bytes(len(text) // 8, "big")
    height, width = values.shape
    start = 54 + len(palette)
    info = (40, width, height, 1, bits, 0, len(rows), 0, 0, len(palette) // 4, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    return head + struct.pack("<IiiHHIIiiII", *info) + palette + rows


def tiff(bits: int, values: np.ndarray, order: str = "<") -> bytes:
    """A grey TIFF of 1, 2, 4 or 8 bits, black is 0."""
    rows = b""
    for row in values:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows += int(text, 2).to_bytes(len(text) // 8, "big")
    height, width = values.shape
    short = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}
    tags = {**dict.fromkeys(short, "HH"), 273: "II", 279: "II"}
    start = 8 + 2 + 12 * len(tags) + 4
    numbers = {**short, 273: start, 279: len(rows)}
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag in sorted(tags):
        kind = 3 if tags[tag] == "HH" else 4
        out += struct.pack(f"{order}HHI", tag, kind, 1)
        out += struct.pack(f"{order}HH" if kind == 3 else f"{order}I",
                           *((numbers[tag], 0) if kind == 3 else (numbers[tag],)))  # fmt: skip
    return out + bytes(4) + rows


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["bmp", "tif"])
@pytest.mark.parametrize("opencv", [True, False])
def test_masks_of_one_bit_are_zeros_and_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, opencv: bool
) -> None:
    monkeypatch.setattr(samples, "_has_opencv", lambda: opencv)
    path = tmp_path / f"mask.{kind}"
    Image.fromarray(MASK.astype(bool)).save(path)
    label = read_label(path)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, MASK)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("order", "<>")
def test_grey_tiffs_keep_what_is_stored(tmp_path: Path, bits: int, order: str) -> None:
    values = np.resize(np.arange(min(1 << bits, 20), dtype=np.uint8), (5, 7))
    path = written(tmp_path / "mask.tif", tiff(bits, values, order))
    assert declared_bits(path.read_bytes()) == bits
    np.testing.assert_array_equal(read_label(path), values)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_palettes_of_bmps_give_their_indices(tmp_path: Path, bits: int) -> None:
    count = 1 << bits
    values = np.resize(np.arange(min(count, 20), dtype=np.uint8), (5, 7))
    palette = b"".join(bytes([255 - i, i, 7, 0]) for i in range(count))
    path = written(tmp_path / "mask.bmp", bmp(bits, palette, values))
    np.testing.assert_array_equal(read_label(path), values)


@pytest.mark.parametrize("kind", ["bmp", "tif"])
def test_without_pillow_few_bits_are_refused_and_eight_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("cv2")
    one, eight = (tmp_path / f"{name}.{kind}" for name in ("one", "eight"))
    Image.fromarray(MASK.astype(bool)).save(one)
    Image.fromarray(MASK).save(eight)
    monkeypatch.setattr(samples, "_has_pillow", lambda: False)
    np.testing.assert_array_equal(read_label(eight), MASK)
    with pytest.raises(InputError, match=r"fewer than 8 bits a pixel.*pip install pillow"):
        read_label(one)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says more than that
def test_damaged_masks_are_one_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "mask"
    for whole in (tiff(4, MASK), bmp(1, bytes(8), MASK)):
        for _ in range(150):
            changed = bytearray(whole[: int(rng.integers(2, len(whole) + 1))])
            for at in rng.integers(2, max(3, len(changed)), 3):
                if at < len(changed):
                    changed[at] = int(rng.integers(256))
            with contextlib.suppress(InputError):  # a changed byte may leave a valid picture
                read_label(written(path, bytes(changed)))


def test_masks_that_are_too_large_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "mask.tif", tiff(1, MASK))
    monkeypatch.setattr(samples, "MAX_PIXELS", MASK.size - 1)
    with pytest.raises(InputError, match="has 5x4 pixels; pictures up to"):
        read_label(path)


# --- maps of another size than their photo


def test_a_label_map_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = anomaly_set(tmp_path / "street")
    save(folder / "labels_masks" / "a.png", np.zeros((8, 10), np.uint8))
    with pytest.raises(InputError, match=r"a\.png' is 5x4 and its label map 10x8 pixels"):
        evaluate(Brightness(), AnomalySet(folder), [ScorerSpec("msp")], size=(16, 32))
