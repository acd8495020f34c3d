"""Readers give the same numbering for every layout, and refuse what is broken by name."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeseg.data import (
    AnomalySet,
    CamVid,
    Cityscapes,
    PairedFolder,
    find_images,
    open_cityscapes,
    read_image,
    read_label,
    samples,
)
from edgeseg.data.transforms import resize_frame, resize_label
from edgeseg.errors import InputError, UsageError

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    """Write a picture in the format of the extension; colours are BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[:, :, ::-1] if array.ndim == 3 else array).save(path)
    return path


def labels(*values: int) -> np.ndarray:
    return np.resize(np.uint8(values), (6, 8))


def anomaly_folder(root: Path, name: str = "fs_static", mask: np.ndarray | None = None) -> Path:
    folder = root / name
    save(folder / "images" / "7.png", PHOTO)
    save(folder / "labels_masks" / "7.png", labels(0, 1, 255) if mask is None else mask)
    return folder


def test_anomaly_set_pairs_by_stem_and_ignores_dot_files(tmp_path: Path) -> None:
    folder = anomaly_folder(tmp_path)
    save(folder / "images" / "12.webp", PHOTO)
    save(folder / "labels_masks" / "12.png", labels(0))
    (folder / "images" / "._7.png").write_bytes(b"of the Finder")
    (folder / "labels_masks" / ".DS_Store").write_bytes(b"")
    frames = AnomalySet(folder)
    assert [sample.name for sample in frames] == ["12", "7"]
    np.testing.assert_array_equal(frames[1].load_image(), PHOTO)
    np.testing.assert_array_equal(frames[1].load_label(), labels(0, 1, 255))
    assert frames.kind == "anomaly"


def test_road_anomaly_masks_hold_two_for_an_anomaly(tmp_path: Path) -> None:
    folder = anomaly_folder(tmp_path, "RoadAnomaly", labels(0, 2))
    np.testing.assert_array_equal(AnomalySet(folder)[0].load_label(), labels(0, 1))


def test_a_mask_value_that_the_set_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = anomaly_folder(tmp_path, "other", labels(0, 2))
    with pytest.raises(InputError, match=r"7\.png' holds the value 2.*0, 1, 255"):
        AnomalySet(folder)[0].load_label()


def test_unpaired_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        AnomalySet(tmp_path / "nowhere")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="no folder 'labels_masks'"):
        AnomalySet(tmp_path / "empty")
    (tmp_path / "empty" / "labels_masks").mkdir()
    with pytest.raises(InputError, match="holds no frames"):
        AnomalySet(tmp_path / "empty")
    folder = anomaly_folder(tmp_path)
    save(folder / "images" / "8.png", PHOTO)
    with pytest.raises(InputError, match=r"8\.png' has no label map"):
        AnomalySet(folder)
    (folder / "images" / "8.png").rename(folder / "labels_masks" / "8.png")
    with pytest.raises(InputError, match=r"8\.png' has no image"):
        AnomalySet(folder)
    (folder / "labels_masks" / "8.png").rename(folder / "images" / "7.jpg")
    with pytest.raises(InputError, match="the same name"):
        AnomalySet(folder)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    folder = anomaly_folder(tmp_path)
    (folder / "images" / "7.png").write_bytes(b"not a picture")
    sample = AnomalySet(folder)[0]
    sample.load_label()
    with pytest.raises(InputError, match=r"7\.png' is damaged"):
        sample.load_image()


def test_cityscapes_prefers_train_ids_and_maps_label_ids(tmp_path: Path) -> None:
    for city, frame in (("aachen", "aachen_000000_000019"), ("ulm", "ulm_000001_000019")):
        save(tmp_path / "leftImg8bit" / "val" / city / f"{frame}_leftImg8bit.png", PHOTO)
        save(
            tmp_path / "gtFine" / "val" / city / f"{frame}_gtFine_labelIds.png",
            labels(0, 3, 7, 11, 26, 33),
        )
    save(
        tmp_path / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_labelTrainIds.png",
        labels(0, 18, 255),
    )
    data = open_cityscapes(tmp_path)
    assert isinstance(data, Cityscapes)
    assert [sample.name for sample in data] == ["aachen_000000_000019", "ulm_000001_000019"]
    np.testing.assert_array_equal(data[0].load_label(), labels(255, 255, 0, 2, 13, 18))
    np.testing.assert_array_equal(data[1].load_label(), labels(0, 18, 255))
    with pytest.raises(InputError, match=r"no split 'train' \(it has val"):
        open_cityscapes(tmp_path, "train")


def test_paired_layout_is_read_as_cityscapes(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "a.jpg", PHOTO)
    save(tmp_path / "val" / "labels" / "a.png", labels(0, 18, 255))
    data = open_cityscapes(tmp_path, "val")
    assert (data.name, data.kind, len(data)) == ("cityscapes", "semantic", 1)
    assert isinstance(open_cityscapes(tmp_path / "val"), PairedFolder)
    save(tmp_path / "val" / "labels" / "a.png", labels(0, 19))
    with pytest.raises(InputError, match=r"value 19, .* has 0-18, 255"):
        data[0].load_label()
    with pytest.raises(InputError, match="is not a Cityscapes folder"):
        open_cityscapes(tmp_path / "val" / "images")


def test_camvid_classes_become_train_ids(tmp_path: Path) -> None:
    save(tmp_path / "train" / "0001.jpg", PHOTO)
    save(tmp_path / "trainannot" / "0001.png", labels(*range(12)))
    data = CamVid(tmp_path, "train")
    expected = labels(10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 18, 255)
    np.testing.assert_array_equal(data[0].load_label(), expected)
    with pytest.raises(InputError, match=r"no split 'val' \(it has train"):
        CamVid(tmp_path)


def test_content_decides_the_format_not_the_extension(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.fromarray(PHOTO).save(jpeg, "jpeg")
    (tmp_path / "a.png").write_bytes(jpeg.getvalue())
    decoded = np.asarray(Image.open(jpeg))[:, :, ::-1]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), decoded)


def test_grey_alpha_and_orientation(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", PHOTO[..., 0])
    np.testing.assert_array_equal(read_image(grey), np.repeat(PHOTO[..., :1], 3, axis=2))
    alpha = np.dstack([PHOTO[..., ::-1], labels(0)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), PHOTO)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == PHOTO.shape


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_truncated_pictures_are_refused(tmp_path: Path, extension: str) -> None:
    big = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / f"cut.{extension}", big)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match="is truncated"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_image(path)


def test_label_maps_keep_their_values(tmp_path: Path) -> None:
    palette = Image.fromarray(labels(0, 1, 2))
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label(tmp_path / "palette.png"), labels(0, 1, 2))
    spread = save(tmp_path / "spread.png", np.repeat(labels(0, 5)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_label(spread), labels(0, 5))
    with pytest.raises(InputError, match="not colours"):
        read_label(save(tmp_path / "colours.png", PHOTO))


def small_png(values: np.ndarray, bits: int, colour_type: int) -> bytes:
    """A PNG of 1, 2 or 4 bits a pixel, grey (0) or with a palette (3)."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(tag + data))
        return struct.pack(">I", len(data)) + tag + data + check

    height, width = values.shape
    each = np.unpackbits(values[..., None], axis=-1)[..., -bits:]
    rows = np.packbits(each.reshape(height, -1), axis=1)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # filter 0 begins each
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(100, 148))[: 3 << bits]) if colour_type == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize("colour_type", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, colour_type: int, opencv: bool
) -> None:
    monkeypatch.setattr(samples, "_has_opencv", lambda: opencv)
    values = labels(*range(1 << bits))
    path = tmp_path / "mask.png"
    path.write_bytes(small_png(values, bits, colour_type))
    label = read_label(path)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, values)


def test_an_anomaly_of_a_one_bit_mask_is_one(tmp_path: Path) -> None:
    folder = anomaly_folder(tmp_path)
    mask = folder / "labels_masks" / "7.png"
    Image.fromarray(labels(0, 1).astype(bool)).save(mask)
    assert mask.read_bytes()[24] == 1
    np.testing.assert_array_equal(AnomalySet(folder)[0].load_label(), labels(0, 1))


def test_values_that_no_stretch_explains_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(small_png(labels(0, 1), 1, 0))
    monkeypatch.setattr(samples, "_has_opencv", lambda: False)
    monkeypatch.setattr(samples, "_decode_with_pillow", lambda *_: labels(0, 1))
    with pytest.raises(InputError, match=r"mask\.png' has 1 bits a pixel.*save it with 8"):
        read_label(path)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "png"])
def test_what_follows_a_picture_is_no_part_of_it(tmp_path: Path, kind: str) -> None:
    big = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    exif = io.BytesIO()
    Image.fromarray(big[:16, :16]).save(exif, "jpeg")
    content = io.BytesIO()
    options = {"progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 2}}
    if kind == "png":
        Image.fromarray(big).save(content, "png")
    else:
        # The thumbnail has an end of its own, which is not that of the picture.
        thumbnail = b"Exif\0\0" + exif.getvalue()
        Image.fromarray(big).save(content, "jpeg", exif=thumbnail, **options.get(kind, {}))
    whole = content.getvalue()
    path = tmp_path / "photo"
    path.write_bytes(whole)
    expected = read_image(path)
    path.write_bytes(whole + bytes(range(256)) * 40)  # a phone appends a film
    np.testing.assert_array_equal(read_image(path), expected)
    for cut in (9, 10, 100, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:-cut])
        with pytest.raises(InputError, match="is truncated"):
            read_image(path)


def test_image_folders_are_searched_recursively_on_request(tmp_path: Path) -> None:
    for name in ("b.PNG", "sub/a.jpg", ".hidden/c.png"):
        save(tmp_path / name.replace("PNG", "png"), PHOTO)
    (tmp_path / "notes.txt").write_text("")
    names = [p.name for p in find_images(tmp_path, recursive=True)]
    assert names == ["b.png", "a.jpg"]
    assert [p.name for p in find_images(tmp_path)] == ["b.png"]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70))
def test_label_resize_equals_pillows_nearest(h: int, w: int, height: int, width: int) -> None:
    label = np.random.default_rng(h * w).integers(0, 256, (h, w)).astype(np.uint8)
    expected = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_label(label, (height, width)), np.asarray(expected))


@pytest.mark.parametrize("size", [(32, 64), (50, 50), (128, 200)])
def test_both_resizes_are_pillows_within_one_grey_level(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    expected = np.asarray(
        Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(resize_frame(frame, size, "pillow"), expected)
    off = np.abs(resize_frame(frame, size, "runtime").astype(int) - expected)
    assert off.max() <= 1


def test_an_unknown_resize_is_refused() -> None:
    with pytest.raises(UsageError, match="runtime, pillow"):
        resize_frame(PHOTO, (3, 4), "area")  # type: ignore[arg-type]


@pytest.mark.data
def test_shared_sets_are_whole(shared_data: Path) -> None:
    sizes = {name: len(AnomalySet(shared_data / "anomaly" / name)) for name in ANOMALY_FRAMES}
    assert sizes == ANOMALY_FRAMES
    assert len(open_cityscapes(shared_data / "cityscapes")) == 5
    assert len(open_cityscapes(shared_data / "cityscapes256", "train")) == 2975
    assert len(CamVid(shared_data / "camvid", "train")) == 367
    sample = AnomalySet(shared_data / "anomaly" / "RoadAnomaly21")[0]
    assert sample.load_image().shape == (720, 1280, 3)
    assert set(np.unique(sample.load_label())) == {0, 1, 255}


ANOMALY_FRAMES = {"RoadAnomaly21": 10, "RoadObsticle21": 30, "fs_static": 30}


def test_without_opencv_pillow_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = save(tmp_path / "photo.jpg", RNG.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    label = save(tmp_path / "label.png", labels(0, 1, 255))
    with_opencv = read_image(photo), read_label(label)
    monkeypatch.setattr(samples, "_has_opencv", lambda: False)
    np.testing.assert_array_equal(read_image(photo), with_opencv[0])
    np.testing.assert_array_equal(read_label(label), with_opencv[1])
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.png' is damaged"):
        read_image(tmp_path / "broken.png")
