"""Observed activation ranges, in a form that is neutral to engines.

Ranges are kept per channel, so that channels can be balanced before anything is rounded
(:mod:`edgeseg.compression.equalization`), and as JSON, so that a network can be quantized on a
machine that has no frames: ``calibration_data/`` holds those of the shipped weights.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.errors import ArtefactError, InputError
from edgeseg.export.graph import Graph

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["SCHEMA", "Ranges", "TensorRange", "observe", "open_observer"]

SCHEMA: Final = "edgeseg.calibration/1"
_MAX_BYTES: Final = 64 << 20

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorRange:
    """What one activation tensor took, per channel; all arrays ``[C]`` float32."""

    low: Float32
    """Smallest value over all frames."""
    high: Float32
    """Largest value over all frames."""
    mean: Float32
    clip: tuple[float, float] = (1.0, 1.0)
    """Which parts of the tensor's low and high its eight bits shall reach to, each in (0, 1]: what
    :mod:`edgeseg.compression.clipping` chose. Parts, because the tensor is quantized after its
    channels were balanced, which changes the limits themselves.
    """

    @property
    def clipped_low(self) -> float:
        """Smallest value of the whole tensor that is not cut off."""
        return float(self.low.min()) * self.clip[0]

    @property
    def clipped_high(self) -> float:
        """Largest value of the whole tensor that is not cut off."""
        return float(self.high.max()) * self.clip[1]


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of all activation tensors of a float body, by tensor name."""

    tensors: dict[str, TensorRange]
    frames: int
    """How many frames were observed."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Network, weights, size and source of the frames."""
    keep_float: tuple[str, ...] = ()
    """Convolutions that an accuracy gate left in float (:mod:`edgeseg.compression.search`)."""
    compute_precision: str = "f32"
    """What those convolutions are computed in: ``f32`` or ``bf16``."""

    def to_json(self) -> str:
        """The document, five significant digits a number: far below what eight bits resolve."""
        tensors = {name: _entry(r) for name, r in self.tensors.items()}
        head = {"schema": SCHEMA, "frames": self.frames, "provenance": self.provenance}
        if self.keep_float:
            head["keep_float"] = list(self.keep_float)
            head["compute_precision"] = self.compute_precision
        # One tensor a line: a change of ranges can be read in a diff.
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items()]
        return json.dumps(head)[:-1] + ', "tensors": {\n' + ",\n".join(lines) + "\n}}\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ranges":
        """Read ranges that :meth:`to_json` wrote.

        Raises:
            InputError: there is no such file, or it is a folder.
            ArtefactError: it is not a calibration file of this version.
        """
        file = Path(path)
        if file.is_dir():
            raise InputError(f"calibration file '{file}' is a folder; name a file of ranges")
        if not file.is_file():
            raise InputError(f"calibration file '{file}' does not exist; name a folder of frames")
        if file.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"calibration file '{file}' is larger than any such file can be")
        try:
            raw = json.loads(file.read_bytes())
            if raw["schema"] != SCHEMA:
                raise ArtefactError(
                    f"calibration file '{file}' has schema '{raw['schema']}', and this version "
                    f"reads '{SCHEMA}'; observe the ranges again"
                )
            tensors = {str(k): _tensor_range(v) for k, v in raw["tensors"].items()}
            precision = raw.get("compute_precision", "f32")
            if precision not in ("f32", "bf16"):
                raise ValueError("compute precision")
            keep = raw.get("keep_float", [])
            if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
                raise ValueError("keep_float")
            provenance = dict(raw["provenance"])
            return cls(tensors, int(raw["frames"]), provenance, tuple(keep), precision)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ):
            raise ArtefactError(
                f"'{file}' is not a calibration file, or a damaged one; give a folder of frames "
                "or a file that 'edgeseg export --int8' wrote"
            ) from None


def open_observer(body: onnx.ModelProto) -> "tuple[ort.InferenceSession, list[str]]":
    """A session of the float body that also gives its activations, and their names."""
    import onnxruntime as ort

    graph = Graph(body)
    graph.infer_shapes()
    names = observed_tensors(graph)
    for name in names:
        # ONNX Runtime infers types and shapes of extra outputs itself.
        graph.outputs.append(onnx.helper.make_empty_tensor_value_info(name))
    model = graph.unchecked_model()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    types = {o.name: o.type for o in session.get_outputs()}
    return session, [n for n in names if types[n] == "tensor(float)"]


def observed_tensors(graph: Graph) -> list[str]:
    """Float activations that may be quantized: all but what only an activation function reads."""
    names = []
    for node in graph.nodes:
        for name in node.output:
            behind = graph.consumers(name)
            fused = len(behind) == 1 and behind[0].op_type in ("Relu", "PRelu")
            if len(graph.shapes.get(name, ())) == 4 and not fused and not graph.is_output(name):
                names.append(name)
    return names


def observe(
    body: onnx.ModelProto, frames: Iterable[npt.NDArray[np.uint8]], **provenance: Any
) -> Ranges:
    """Run the float body on frames and note the range of every activation.

    Args:
        body: float body, ``frame`` uint8 ``[1, H, W, 3]`` in.
        frames: uint8 ``[H, W, 3]`` BGR at the network's size.
        **provenance: kept in the result.

    Raises:
        InputError: there is no frame.
    """
    session, names = open_observer(body)
    low: dict[str, Float32] = {}
    high: dict[str, Float32] = {}
    total: dict[str, npt.NDArray[np.float64]] = {}
    count = 0
    for frame in frames:
        count += 1
        for name, value in zip(names, session.run(names, {"frame": frame[None]}), strict=True):
            lo, hi = value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3))
            mean = value.mean(axis=(0, 2, 3), dtype=np.float64)
            low[name] = np.minimum(low.get(name, lo), lo)
            high[name] = np.maximum(high.get(name, hi), hi)
            total[name] = total.get(name, 0.0) + mean
    if not count:
        raise InputError("there is no frame to calibrate with; give a folder that holds images")
    tensors = {
        n: TensorRange(low[n], high[n], (total[n] / count).astype(np.float32)) for n in names
    }
    return Ranges(tensors, count, provenance)


def _entry(r: TensorRange) -> dict[str, list[float]]:
    entry = {"low": _rounded(r.low), "high": _rounded(r.high), "mean": _rounded(r.mean)}
    if r.clip != (1.0, 1.0):
        entry["clip"] = [float(f"{part:.5g}") for part in r.clip]
    return entry


def _rounded(values: Float32) -> list[float]:
    return [float(f"{v:.5g}") for v in values.tolist()]


def _tensor_range(entry: dict[str, Any]) -> TensorRange:
    with np.errstate(over="ignore"):  # becomes infinite, and that is refused below
        low, high, mean = (np.asarray(entry[k], np.float32) for k in ("low", "high", "mean"))
    if not (low.shape == high.shape == mean.shape and low.ndim == 1):
        raise ValueError("shape")
    if not (np.isfinite([low, high, mean]).all() and (low <= high).all()):
        raise ValueError("range")
    first, second = (float(v) for v in entry.get("clip", (1.0, 1.0)))
    if not (0 < first <= 1 and 0 < second <= 1):
        raise ValueError("clip")
    return TensorRange(low, high, mean, (first, second))
