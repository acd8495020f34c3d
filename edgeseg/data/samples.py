"""What all readers share: samples that load lazily, decoding, and pairing of files by stem.

Pixels are decoded by OpenCV, or by Pillow where OpenCV is missing. Both come with libjpeg-turbo
and its default settings, so they give the same pixels. An EXIF orientation is ignored: label maps
carry none, and a turned photo would no longer lie under its labels.
"""

import errno
import importlib.util
import io
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from edgeseg.data.bit_depths import declared_bits, is_bmp_or_tiff
from edgeseg.errors import InputError, MissingDependencyError
from edgeseg.taxonomy import IGNORE, NUM_KNOWN

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "WRONG_DATASET",
    "Dataset",
    "Kind",
    "Sample",
    "find_images",
    "given_name",
    "image_size",
    "lookup_table",
    "pair_by_stem",
    "read_content",
    "read_image",
    "read_label",
    "train_id_table",
]

UInt8 = npt.NDArray[np.uint8]
Int16 = npt.NDArray[np.int16]
Kind = Literal["anomaly", "semantic"]

IMAGE_SUFFIXES: Final = frozenset(
    (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
)
MAX_BYTES: Final = 256 << 20
"""Largest file of a picture."""
MAX_PIXELS: Final = 1 << 26
"""Largest picture that is decoded: 67 million pixels, 200 MB."""
MAX_SIDE: Final = 1 << 16
"""Longest side of a picture that can be resized."""
_STRETCH: Final = {1: 255, 2: 85, 4: 17}
"""Bits a pixel -> by how much decoders multiply grey values, so that white is 255."""
WRONG_DATASET: Final = "check that --dataset fits the folder"

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
# Restarts (D0-D7) belong to the compressed data, where a byte FF is followed by 00.
_JPEG_MARKER: Final = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_START_OF_IMAGE: Final = 0xD8
_END_OF_IMAGE: Final = 0xD9
# Markers that start a frame header; C4, C8 and CC are tables.
_START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled frame; nothing is read before it is asked for."""

    name: str
    image_path: Path
    label_path: Path
    table: Int16 = field(repr=False)
    """``[256]``: raw label value -> value given out, -1 where the raw value is not allowed."""
    remedy: str = field(default=WRONG_DATASET, repr=False)
    """What to do about a raw value that is not allowed; ends the error's sentence."""

    def load(self) -> tuple[UInt8, UInt8]:
        """The photo and its label map."""
        return self.load_image(), self.load_label()

    def load_image(self) -> UInt8:
        """The photo, uint8 ``[h, w, 3]`` BGR; InputError where it cannot be read."""
        return read_image(self.image_path)

    def load_label(self) -> UInt8:
        """The label map, uint8 ``[h, w]``.

        InputError where it cannot be read or holds a value that the data set does not have.
        """
        raw = read_label(self.label_path)
        mapped = self.table[raw]
        wrong = mapped < 0
        if wrong.any():
            allowed = ", ".join(_ranges(np.flatnonzero(self.table >= 0)))
            raise InputError(
                f"label map '{self.label_path}' holds the value {int(raw[wrong][0])}, and this "
                f"kind of data set has {allowed}; {self.remedy}"
            )
        return mapped.astype(np.uint8)


class Dataset(Sequence[Sample]):
    """Samples of one data set, sorted by name.

    ``kind`` says what the labels mean: ``anomaly`` 0 in-distribution, 1 anomaly, 255 ignore;
    ``semantic`` Cityscapes trainIds 0-18, 255 ignore, and 19 where a set marks void.
    """

    def __init__(self, name: str, folder: Path, kind: Kind, samples: Iterable[Sample]) -> None:
        self.name = name
        self.folder = folder
        self.kind = kind
        self._samples = list(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)


def read_image(path: Path) -> UInt8:
    """Decode a photo by its content, whatever its extension says.

    Returns:
        uint8 ``[h, w, 3]`` BGR. Grey pictures are spread over the three channels, alpha is
        dropped, the EXIF orientation is ignored.

    Raises:
        InputError: the file is missing, empty, truncated, too large or no picture.
    """
    content = read_content(path)
    if _has_opencv():
        import cv2

        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:
            image = None
    else:
        image = _decode_with_pillow(content, path, "RGB")
        image = None if image is None else np.ascontiguousarray(image[:, :, ::-1])
    if image is None or image.ndim != 3:
        raise InputError(
            f"image '{path}' is damaged or of a format that cannot be read; replace it"
        )
    return np.asarray(image, dtype=np.uint8)


def read_label(path: Path) -> UInt8:
    """Decode a label map without touching its values.

    Returns:
        uint8 ``[h, w]``; for a palette the indices, and for grey of 1, 2 or 4 bits what is stored.

    Raises:
        InputError: the file is missing, damaged, too large, or a colour picture.
    """
    content = read_content(path)
    label: npt.NDArray[Any] | None
    # OpenCV gives a palette's colours, and white for a 1.
    pillow = _is_palette_png(content) or (is_bmp_or_tiff(content) and _has_pillow())
    if _has_opencv() and not pillow:
        import cv2

        try:
            label = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            label = None
        if is_bmp_or_tiff(content) and declared_bits(content) < 8:
            raise InputError(
                f"label map '{path}' has fewer than 8 bits a pixel, and without Pillow its values "
                "cannot be told; run 'pip install pillow', or save it with 8 bits"
            )
    else:
        label = _decode_with_pillow(content, path, None)
    if label is None:
        raise InputError(
            f"label map '{path}' is damaged or of a format that cannot be read; replace it"
        )
    if label.ndim == 3 and label.shape[2] >= 3 and (label[..., :1] == label[..., 1:3]).all():
        label = label[..., 0]  # grey values saved as a colour picture
    label = _as_stored(label, content, path)
    if label.ndim == 3 or label.dtype != np.uint8:
        raise InputError(
            f"label map '{path}' is not a map of one 8-bit value per pixel; give label indices, "
            "not colours"
        )
    return np.asarray(label, dtype=np.uint8)


def given_name(folder: str | os.PathLike[str]) -> str:
    """The last name of a path as it was given: of a link its own, not that of what it leads to."""
    return os.path.basename(os.path.abspath(folder))


def find_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Pictures of a folder by extension, sorted by path; dot-files are left out.

    Links to folders are followed, each folder once: a link may lead back to where it lies.

    Raises:
        InputError: there is no such folder, or it or one below cannot be read.
    """
    if not os.path.isdir(folder):
        raise InputError(f"folder '{folder}' does not exist; check the path")

    def refuse(error: OSError) -> NoReturn:
        raise InputError(
            f"folder '{error.filename}' cannot be read ({error.strerror}); check its permissions"
        )

    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        # In a fixed order: it decides by which of several links a folder is entered.
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        if not os.access(parent, os.X_OK):  # its files would seem not to be there
            refuse(PermissionError(errno.EACCES, os.strerror(errno.EACCES), parent))
        found += [
            path
            for name in files
            if not name.startswith(".")
            and (path := Path(parent, name)).suffix.lower() in IMAGE_SUFFIXES
            and os.path.isfile(path)
        ]
    return sorted(found)


def pair_by_stem(
    images: Sequence[Path],
    labels: Sequence[Path],
    folder: Path,
    stem: Callable[[Path], str] = lambda path: path.stem,
) -> list[tuple[str, Path, Path]]:
    """``(name, image, label)`` sorted by name.

    Raises:
        InputError: nothing to pair, a file without its partner, or two files of one stem.
    """
    by_stem: list[dict[str, Path]] = []
    for paths in (images, labels):
        found: dict[str, Path] = {}
        for path in paths:
            other = found.setdefault(stem(path), path)
            if other is not path:
                raise InputError(
                    f"'{other}' and '{path}' have the same name, so one label map would serve "
                    "two frames; remove one"
                )
        by_stem.append(found)
    left, right = by_stem
    if not left and not right:
        raise InputError(f"'{folder}' holds no frames; check the path")
    for name in sorted(left.keys() ^ right.keys()):
        if name in left:
            raise InputError(f"image '{left[name]}' has no label map; add it or remove the image")
        raise InputError(f"label map '{right[name]}' has no image; add it or remove the label map")
    return [(name, left[name], right[name]) for name in sorted(left)]


def lookup_table(mapping: dict[int, int]) -> Int16:
    """``[256]`` table of raw label value -> value, -1 for every value that is not named."""
    table = np.full(256, -1, dtype=np.int16)
    for raw, value in mapping.items():
        table[raw] = value
    return table


def train_id_table() -> Int16:
    """The table of maps that hold trainIds already: 0-18 and 255."""
    return lookup_table({**{c: c for c in range(NUM_KNOWN)}, IGNORE: IGNORE})


def read_content(path: Path) -> bytes:
    """A picture's file, before anything is decoded: whole, and of a size that can be held.

    Raises:
        InputError: the file is missing, empty, truncated, or larger than :data:`MAX_BYTES` or
            :data:`MAX_PIXELS`.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"'{path}' has {size >> 20} MB; pictures up to {MAX_BYTES >> 20} MB are read"
            )
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the path") from None
    if not content:
        raise InputError(f"'{path}' is empty; replace it")
    # The size in the header is looked at first: a file of 100 bytes may claim 10 gigapixels.
    declared = image_size(content)
    if declared is not None and declared[0] * declared[1] > MAX_PIXELS:
        raise InputError(
            f"'{path}' claims {declared[1]}x{declared[0]} pixels; pictures up to "
            f"{MAX_PIXELS >> 20} megapixels are read"
        )
    if _is_truncated(content):
        raise InputError(f"'{path}' is truncated; copy it again")
    return content


def image_size(content: bytes) -> tuple[int, int] | None:
    """Height and width that a PNG's, JPEG's or WebP's header declares; ``None`` for others."""
    if content.startswith(_PNG) and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return height, width
    if content.startswith(_JPEG):
        return _jpeg_size(content)
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X" and len(content) >= 30:
        width = int.from_bytes(content[24:27], "little") + 1
        height = int.from_bytes(content[27:30], "little") + 1
        return height, width
    return None  # other WebPs are limited to 16384 a side by their format


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    for marker, at in _jpeg_markers(content):
        if marker in _START_OF_FRAME and at + 7 <= len(content):
            height, width = struct.unpack(">HH", content[at + 3 : at + 7])
            return height, width
    return None


def _jpeg_markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Every marker up to the end of the image, and where its segment starts.

    Segments are stepped over: the thumbnail in one has an end of its own. What lies between them
    and is none is skipped, as libjpeg does.
    """
    at = 2
    while (match := _JPEG_MARKER.search(content, at)) is not None:
        marker, at = match[1][0], match.end()
        yield marker, at
        if marker == _END_OF_IMAGE:
            return
        if marker != _START_OF_IMAGE:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))


def _is_truncated(content: bytes) -> bool:
    """Whether the picture's end is missing; what follows it, as a phone's video, is no part of it.

    OpenCV before 5 fills a cut JPEG with grey without a word, so the end is looked for here.
    """
    if content.startswith(_JPEG):
        return all(marker != _END_OF_IMAGE for marker, _ in _jpeg_markers(content))
    if content.startswith(_PNG):
        at = len(_PNG)
        while at + 8 <= len(content) and content[at + 4 : at + 8] != b"IEND":
            at += 12 + int.from_bytes(content[at : at + 4], "big")
        return at + 8 > len(content)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return len(content) < int.from_bytes(content[4:8], "little") + 8
    return False


def _as_stored(label: npt.NDArray[Any], content: bytes, path: Path) -> npt.NDArray[Any]:
    """The stored values of a grey PNG, or of any picture by Pillow, of fewer than 8 bits.

    Decoders stretch them, so that white is 255 (OpenCV) or true (Pillow, 1 bit): a mask's 1 would
    be read as what is to be ignored.
    """
    if label.dtype == np.bool_:
        return label.astype(np.uint8)
    if not content.startswith(_PNG) or content[25:26] != b"\0":
        return label
    stretch = _STRETCH.get(content[24])
    if stretch is None:
        return label
    stored, rest = np.divmod(label, label.dtype.type(stretch))
    if rest.any():
        raise InputError(
            f"label map '{path}' has {content[24]} bits a pixel, and its values cannot be told "
            "exactly here; save it with 8 bits"
        )
    return np.asarray(stored)


def _is_palette_png(content: bytes) -> bool:
    return content.startswith(_PNG) and len(content) > 25 and content[25] == 3


def _has_opencv() -> bool:
    return importlib.util.find_spec("cv2") is not None


def _has_pillow() -> bool:
    return importlib.util.find_spec("PIL") is not None


def _decode_with_pillow(content: bytes, path: Path, mode: str | None) -> npt.NDArray[Any] | None:
    if not _has_pillow():
        raise MissingDependencyError(
            f"reading '{path}' needs OpenCV or Pillow; install one with "
            "'pip install opencv-python-headless' or 'pip install pillow'"
        )
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(
                    f"'{path}' has {picture.width}x{picture.height} pixels; pictures up to "
                    f"{MAX_PIXELS >> 20} megapixels are read"
                )
            decoded = np.asarray(picture.convert(mode) if mode else picture)
            if mode is None and picture.format == "TIFF" and picture.mode == "L":
                decoded = decoded // _STRETCH.get(declared_bits(content), 1)
            return decoded
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    except (EOFError, LookupError, TypeError, struct.error):  # from damaged TIFFs
        return None


def _ranges(values: npt.NDArray[np.intp]) -> list[str]:
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return [f"{r[0]}-{r[-1]}" if r.size > 2 else ", ".join(map(str, r)) for r in runs if r.size]
