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
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.errors import ArtefactError, InputError
from edgeseg.export.graph import Graph

__all__ = ["SCHEMA", "Ranges", "TensorRange", "observe"]

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


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of all activation tensors of a float body, by tensor name."""

    tensors: dict[str, TensorRange]
    frames: int
    """How many frames were observed."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Network, weights, size and source of the frames."""

    def to_json(self) -> str:
        """The document, five significant digits a number: far below what eight bits resolve."""
        tensors = {
            name: {
                "low": _rounded(r.low),
                "high": _rounded(r.high),
                "mean": _rounded(r.mean),
            }
            for name, r in self.tensors.items()
        }
        head = {"schema": SCHEMA, "frames": self.frames, "provenance": self.provenance}
        # One tensor a line: a change of ranges can be read in a diff.
        lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items()]
        return json.dumps(head)[:-1] + ', "tensors": {\n' + ",\n".join(lines) + "\n}}\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Ranges":
        """Read ranges that :meth:`to_json` wrote.

        Raises:
            InputError: there is no such file.
            ArtefactError: it is not a calibration file of this version.
        """
        file = Path(path)
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
            return cls(tensors, int(raw["frames"]), dict(raw["provenance"]))
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
    names = [n for n in names if types[n] == "tensor(float)"]
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


def _rounded(values: Float32) -> list[float]:
    return [float(f"{v:.5g}") for v in values.tolist()]


def _tensor_range(entry: dict[str, Any]) -> TensorRange:
    with np.errstate(over="ignore"):  # becomes infinite, and that is refused below
        low, high, mean = (np.asarray(entry[k], np.float32) for k in ("low", "high", "mean"))
    if not (low.shape == high.shape == mean.shape and low.ndim == 1):
        raise ValueError("shape")
    if not (np.isfinite([low, high, mean]).all() and (low <= high).all()):
        raise ValueError("range")
    return TensorRange(low, high, mean)
