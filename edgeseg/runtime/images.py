"""Image files: bounded decoding that notices what is cut off, and indexed PNGs."""

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import InputError
from edgeseg.runtime.opencv import MAX_PIXELS, opencv

__all__ = [
    "IMAGE_SUFFIXES",
    "colormap",
    "encode_indexed_png",
    "image_size",
    "looks_like_image",
    "read_image",
]

IMAGE_SUFFIXES: Final = frozenset(
    {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_MAX_BYTES: Final = 256 << 20
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
# Markers that start a frame header; C4, C8 and CC are tables.
_START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TAIL: Final = 4096


def read_image(path: str | os.PathLike[str], *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """Decode an image file, whatever its suffix says.

    Returns:
        uint8 ``[H, W, 3]`` BGR, or ``[H, W]`` where ``grey``.

    Raises:
        InputError: missing, empty, cut off, too large, or not an image.
    """
    name = Path(path)
    try:
        size = name.stat().st_size
        if size > _MAX_BYTES:
            raise InputError(f"'{name}' has {size >> 20} MB; frames up to 256 MB are read")
        content = name.read_bytes()
    except OSError as error:
        raise InputError(f"'{name}' cannot be read ({error.strerror}); check the path") from None
    if not content:
        raise InputError(f"'{name}' is empty; copy it again")
    # The size in the header is looked at first: a file of 100 bytes may claim 10 gigapixels.
    declared = image_size(content)
    if declared is not None and declared[0] * declared[1] > MAX_PIXELS:
        raise InputError(
            f"'{name}' claims {declared[1]}x{declared[0]} pixels; frames up to "
            f"{MAX_PIXELS >> 20} megapixels are read"
        )
    if _is_cut_off(content):
        raise InputError(f"'{name}' ends too early; copy it again")
    cv2 = opencv()
    try:
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8),
            cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR,
        )
    except cv2.error:
        image = None
    if image is None or not image.size:
        raise InputError(f"'{name}' cannot be decoded as an image; copy it again")
    decoded: npt.NDArray[np.uint8] = image
    return decoded


def looks_like_image(path: Path) -> bool:
    """Whether a file is an image by its suffix or its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError:
        return False
    return head.startswith((_PNG, _JPEG, b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


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


def encode_indexed_png(
    indices: npt.NDArray[np.uint8],
    palette: npt.NDArray[np.uint8],
    text: Mapping[str, str] | None = None,
) -> bytes:
    """A PNG whose pixel values are ``indices`` and whose colours are for the eye.

    OpenCV writes no palettes; readers that keep the indices (Pillow, the Cityscapes scripts) see
    the numbers, viewers see the colours.

    Args:
        indices: ``[H, W]``, smaller than the palette's length.
        palette: RGB, ``[N, 3]``, N up to 256.
        text: keyword -> value of ``tEXt`` chunks (Latin-1).
    """
    height, width = indices.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter type, 0
    rows[:, 1:] = indices
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", np.ascontiguousarray(palette, np.uint8).tobytes()),
        *(
            (b"tEXt", f"{key}\0{value}".encode("latin-1", "replace"))
            for key, value in (text or {}).items()
        ),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    ]
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(content):
        if content[at] != 0xFF:
            return None
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _START_OF_FRAME:
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return height, width
        elif 0xD0 <= marker <= 0xD9 or marker == 0x01:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(content[at + 2 : at + 4], "big"))
    return None


def _is_cut_off(content: bytes) -> bool:
    # The decoders fill what is missing with grey and call it a success.
    if content.startswith(_JPEG):
        return b"\xff\xd9" not in content[-_TAIL:]
    if content.startswith(_PNG):
        return b"IEND" not in content[-_TAIL:]
    return False


def colormap(name: str) -> npt.NDArray[np.uint8]:
    """One of OpenCV's colour maps (``INFERNO`` ...) as RGB ``[256, 3]``."""
    cv2 = opencv()
    ramp: Any = np.arange(256, dtype=np.uint8)[:, None]
    coloured = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name}"))
    return np.ascontiguousarray(coloured[:, 0, ::-1])
