"""Image files: bounded decoding that notices what is cut off, and indexed PNGs."""

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.data.samples import IMAGE_SUFFIXES, MAX_SIDE, read_content
from edgeseg.errors import InputError
from edgeseg.runtime.opencv import opencv

__all__ = [
    "IMAGE_SUFFIXES",
    "colormap",
    "encode_indexed_png",
    "looks_like_image",
    "read_image",
]

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"


def read_image(path: str | os.PathLike[str], *, grey: bool = False) -> npt.NDArray[np.uint8]:
    """Decode an image file, whatever its suffix says, upright where it says how it was held.

    Returns:
        uint8 ``[H, W, 3]`` BGR, or ``[H, W]`` where ``grey``.

    Raises:
        InputError: missing, empty, cut off, too large, or not an image.
    """
    name = Path(path)
    content = read_content(name)
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
    if max(image.shape[:2]) > MAX_SIDE:
        raise InputError(
            f"'{name}' has {image.shape[1]}x{image.shape[0]} pixels; pictures up to {MAX_SIDE} "
            "pixels a side are read"
        )
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


def colormap(name: str) -> npt.NDArray[np.uint8]:
    """One of OpenCV's colour maps (``INFERNO`` ...) as RGB ``[256, 3]``."""
    cv2 = opencv()
    ramp: Any = np.arange(256, dtype=np.uint8)[:, None]
    coloured = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name}"))
    return np.ascontiguousarray(coloured[:, 0, ::-1])
