"""How many bits a pixel a BMP or TIFF declares; decoders do not tell."""

import struct
from typing import Final

__all__ = ["declared_bits", "is_bmp_or_tiff"]

_TIFFS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_BITS_PER_SAMPLE: Final = 258


def is_bmp_or_tiff(content: bytes) -> bool:
    """Whether a picture's file begins as these do."""
    return content.startswith(b"BM") or content[:4] in _TIFFS


def declared_bits(content: bytes) -> int:
    """Bits of a BMP's pixel or a TIFF's sample; 8 where its header cannot be read.

    Args:
        content: of which :func:`is_bmp_or_tiff` holds.
    """
    try:
        if content.startswith(b"BM"):
            return int(struct.unpack_from("<H", content, 28)[0])
        order = _TIFFS[content[:4]]
        (at,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, at)
        for index in range(count):
            entry = at + 2 + 12 * index
            if struct.unpack_from(f"{order}H", content, entry)[0] == _BITS_PER_SAMPLE:
                if struct.unpack_from(f"{order}I", content, entry + 4)[0] > 2:
                    return 8  # one for each of several colours, stored elsewhere
                return int(struct.unpack_from(f"{order}H", content, entry + 8)[0])
        return 1  # what the format says where a file does not
    except struct.error:
        return 8
