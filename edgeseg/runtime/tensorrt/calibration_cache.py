"""TensorRT's calibration cache, rendered from a bundle's neutral ranges.

A text: ``TRT-8502-EntropyCalibration2``, then a line a tensor, ``name: 3c010204``, the big-endian
hexadecimal of float32 amax / 127. INT8 is symmetric with zero point 0, so one number a tensor is
all. A header of another version is rejected by TensorRT, so a bundle keeps ranges and the cache
is made for the version at hand. ONNX Runtime's TensorRT provider takes the same file
(``trt_int8_calibration_table_name`` with ``trt_int8_use_native_calibration_table``).
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from edgeseg.errors import ArtefactError

__all__ = ["CalibrationCache", "Method", "cache_of_bundle", "largest_magnitudes"]

Method = Literal["entropy", "minmax"]

_METHODS: Final[dict[Method, str]] = {
    "entropy": "EntropyCalibration2",
    "minmax": "MinMaxCalibration",
}
_HEADER: Final = re.compile(r"TRT-(\d+)-(\w+)")
_SMALLEST: Final = 2.0**-126


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """A calibration cache."""

    version: int
    """Of the TensorRT that reads it, 8502 for 8.5.2 and 100300 for 10.3.0."""
    scales: dict[str, float]
    """Real value of one INT8 step, by tensor; positive float32."""
    method: Method = "entropy"

    @classmethod
    def of_magnitudes(
        cls, version: int, magnitudes: Mapping[str, float], method: Method = "entropy"
    ) -> "CalibrationCache":
        """Of the largest magnitude that each tensor takes.

        A tensor that is always zero gets the scale 1: a scale of zero divides by zero.
        """
        scales = {name: amax / 127 if amax > 0 else 1.0 for name, amax in magnitudes.items()}
        return cls(version, scales, method)

    def render(self) -> bytes:
        """The file.

        Raises:
            ArtefactError: a scale that is not a positive float32, or a name over two lines.
        """
        lines = [f"TRT-{self.version}-{_METHODS[self.method]}"]
        for name, scale in self.scales.items():
            if not (math.isfinite(scale) and _SMALLEST <= scale <= 3e38):
                raise ArtefactError(
                    f"the range of tensor '{name}' gives the INT8 scale {scale}, which no engine "
                    "can use; calibrate again"
                )
            if "\n" in name or not name:
                raise ArtefactError(f"tensor name {name!r} cannot stand in a calibration cache")
            (bits,) = struct.unpack(">I", struct.pack(">f", scale))
            lines.append(f"{name}: {bits:08x}")
        return ("\n".join(lines) + "\n").encode()

    @classmethod
    def parse(cls, content: bytes) -> "CalibrationCache":
        """Read a cache that TensorRT or :meth:`render` wrote.

        Raises:
            ArtefactError: it is not one.
        """
        try:
            header, *lines = content.decode().strip().splitlines()
            match = _HEADER.fullmatch(header.strip())
            assert match is not None
            method = next(k for k, v in _METHODS.items() if v == match[2])
            scales = {}
            for line in lines:
                name, _, digits = line.rpartition(": ")
                assert name
                assert len(digits.strip()) == 8
                (scales[name],) = struct.unpack(">f", bytes.fromhex(digits.strip()))
        except (ValueError, AssertionError, StopIteration):
            raise ArtefactError(
                "this is not a calibration cache of TensorRT's entropy or min-max calibrator, or "
                "a damaged one; calibrate again"
            ) from None
        return cls(int(match[1]), scales, method)


def largest_magnitudes(document: Mapping[str, Any]) -> dict[str, float]:
    """Largest magnitude by tensor, of a bundle's ``calibration.json``.

    What was decided when the bundle was quantized (``quantization``) goes before what was
    observed (``tensors``): channels were balanced in between, and weights with them.

    Raises:
        ArtefactError: it holds no ranges.
    """
    try:
        if document.get("quantization"):
            return {str(k): _decided(v) for k, v in document["quantization"].items()}
        return {
            # Not the larger of both: what lies below zero counts by its magnitude.
            str(k): max(abs(float(x)) for side in ("low", "high") for x in v[side])
            for k, v in document["tensors"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ArtefactError(
            "the calibration holds no ranges, or damaged ones; export the bundle again"
        ) from None


def cache_of_bundle(
    calibration: Path, version: int, method: Method = "entropy"
) -> CalibrationCache:
    """The cache for TensorRT ``version`` from a bundle's ``calibration.json``."""
    try:
        document = json.loads(calibration.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ArtefactError(
            f"'{calibration}' cannot be read as ranges; export the bundle again with --int8"
        ) from None
    if not isinstance(document, dict):
        raise ArtefactError(f"'{calibration}' holds no ranges; export the bundle again with --int8")
    return CalibrationCache.of_magnitudes(version, largest_magnitudes(document), method)


def _decided(entry: Mapping[str, Any]) -> float:
    zero, scale = int(entry["zero_point"]), float(entry["scale"])
    if entry["dtype"] == "int8":
        # The code -128 is not used where the zero point is 0.
        return scale * (127 if zero == 0 else max(127 - zero, zero + 128))
    return scale * max(255 - zero, zero)
