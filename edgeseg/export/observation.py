"""Where INT8's ranges and the scorers' thresholds come from: frames, or a file of ranges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from edgeseg.compression.calibration import Ranges, TensorRange, observe
from edgeseg.compression.clipping import DEFAULT_PERCENTILE, check_percentile, clip_ranges
from edgeseg.compression.histograms import collect_histograms
from edgeseg.data.samples import find_images, read_image
from edgeseg.data.transforms import resize_frame
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.export.fingerprint import WEIGHTS_SHA256, weights_sha256
from edgeseg.export.widening import default_widening, harsher
from edgeseg.scoring.head import Head
from edgeseg.scoring.kernels import HeadKernel
from edgeseg.scoring.scorers import valid_scorers

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["Calibration", "calibration_frames", "not_finite", "observe_frames", "observe_source"]

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[str], None]

_THRESHOLD_QUANTILE: Final = 0.99
_MAX_FRAMES: Final = 64


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a source of calibration gave."""

    ranges: Ranges | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    """By scorer, as far as they hold at the temperature asked for."""
    frames: list[UInt8] = field(default_factory=list)
    """Empty where ranges came from a file."""

    @property
    def provenance(self) -> dict[str, Any]:
        """For the manifest."""
        if self.ranges is None:
            return {}
        return {**self.ranges.provenance, "frames": self.ranges.frames}


def calibration_frames(folder: str | Path, height: int, width: int, limit: int) -> list[UInt8]:
    """At most ``limit`` images below a folder, evenly spread, at the network's size.

    Raises:
        InputError: no folder, no image in it, or an image that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        if root.exists():
            raise InputError(f"calibration '{root}' is a file; name a folder of images")
        raise InputError(f"calibration folder '{root}' does not exist; name a folder of images")
    images = find_images(root, recursive=True)
    if not images:
        raise InputError(f"calibration folder '{root}' holds no image; name a folder of images")
    step = max(1, -(-len(images) // limit))
    return [resize_frame(read_image(p), (height, width)) for p in images[::step]]


def observe_frames(
    network: "Network",
    body: onnx.ModelProto,
    folder: str | Path,
    frames: Sequence[UInt8],
    temperature: float = 1.0,
    *,
    method: str = "minmax",
    percentile: float = DEFAULT_PERCENTILE,
    widen: float | None = None,
) -> Ranges:
    """Activation ranges of the float body, with the scorers' thresholds in the provenance.

    Args:
        network: that ``body`` was exported from.
        body: float body, as :func:`edgeseg.export.body.export_body` gives it.
        folder: where the frames come from; its name goes into the provenance.
        frames: as :func:`calibration_frames` gives them.
        temperature: at which the thresholds are taken.
        method: one of :data:`edgeseg.compression.clipping.METHODS`.
        percentile: for the method of that name.
        widen: how much of the way, 0 to 1, the ranges go from those of the frames to those of
            their harsher forms (:mod:`edgeseg.export.widening`); ``None``: the network's default.

    Raises:
        UsageError: ``widen`` is not from 0 to 1, or there is no such percentile.
        ArtefactError: the weights give activations that are not finite.
    """
    if widen is None:
        widen = default_widening(network.structure.network)
    if not 0 <= widen <= 1:
        raise UsageError(f"--widen {widen:g} is not from 0 to 1")
    if method == "percentile":
        check_percentile(percentile)  # before every frame is observed
    # Weights that overflow are refused in words below, not by numpy's warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        ranges = _observed(network, body, folder, frames, temperature)
        harsh = observe(body, (h for f in frames for h in harsher(f))) if widen else ranges
    tensors = [*ranges.tensors.values(), *harsh.tensors.values()]
    if not all(np.isfinite([r.low, r.high, r.mean]).all() for r in tensors):
        raise not_finite(network, "activations")
    # The clip is of what the frames themselves gave: within wider ranges every value of theirs
    # lies far inside, and a clip would take the widening back.
    histograms = {} if method == "minmax" else collect_histograms(body, frames, ranges)
    ranges = clip_ranges(ranges, histograms, method, percentile)
    return _widened(ranges, harsh, widen) if widen else ranges


def _observed(
    network: "Network",
    body: onnx.ModelProto,
    folder: str | Path,
    frames: Sequence[UInt8],
    temperature: float,
) -> Ranges:
    height, width = frames[0].shape[:2]
    provenance = {
        "network": network.structure.network,
        "weights_name": network.provenance.get("weights_name", ""),
        WEIGHTS_SHA256: weights_sha256(network),
        "source": Path(folder).name,
        "size": f"{height}x{width}",
        "method": "min-max per channel",
        "thresholds": _thresholds(
            body, replace(network.head_spec(), layout="nhwc"), frames, temperature
        ),
        "temperature": temperature,
    }
    return observe(body, frames, **provenance)


def _widened(ranges: Ranges, harsh: Ranges, share: float) -> Ranges:
    """``ranges`` on their way to ``harsh``; a clip stays the part that it is, so it widens too."""
    part, tensors = np.float32(share), {}
    for name, r in ranges.tensors.items():
        below = np.minimum(harsh.tensors[name].low - r.low, 0)
        above = np.maximum(harsh.tensors[name].high - r.high, 0)
        tensors[name] = TensorRange(r.low + part * below, r.high + part * above, r.mean, r.clip)
    forms = f"{share:g} of the way to more contrast, colour, other hues, sharpness"
    provenance = {**ranges.provenance, "widened": forms}
    return Ranges(tensors, ranges.frames, provenance)


def observe_source(
    network: "Network",
    body: onnx.ModelProto,
    source: str | Path | None,
    size: tuple[int, int],
    *,
    limit: int,
    temperature: float = 1.0,
    method: str | None = None,
    percentile: float = DEFAULT_PERCENTILE,
    widen: float | None = None,
    progress: Progress = lambda _: None,
    note: Progress = lambda _: None,
) -> Calibration:
    """Ranges and thresholds from a folder of images, a file of ranges, or nothing.

    Args:
        network: that ``body`` was exported from.
        body: float body.
        source: folder, whatever its name, or ``.json`` file.
        size: height and width, pixels.
        limit: how many images to use at most.
        temperature: of the thresholds.
        method: calibration method; ``None``: min-max for frames, and for a file what it says.
        percentile: for the method of that name.
        widen: how far the ranges go towards those of harsher forms of the images, 0 to 1;
            ``None``: the network's default, and for a file what it holds.
        progress: is told what is being done.
        note: is told what the user should know, one sentence each.

    Raises:
        UsageError: a method or a widening that a file of ranges cannot serve.
        InputError: no such source, or no frame in it.
        ArtefactError: a damaged file, or one with the ranges of other weights.
    """
    if source is None:
        return Calibration()
    frames: list[UInt8] = []
    if Path(source).suffix == ".json" and not Path(source).is_dir():
        ranges = Ranges.load(source)
        asked = "" if widen is None else f"--widen {widen:g}"
        if method not in (None, "minmax"):
            asked = f"--calibration-method {method}"
        if asked:
            raise UsageError(
                f"{asked} needs frames, and '{source}' holds ranges only; "
                "give a folder of images with --calibration"
            )
        _check_weights(network, Path(source), ranges, note)
        if method is not None:
            ranges = clip_ranges(ranges, {}, method)
    else:
        frames = calibration_frames(source, *size, min(limit, _MAX_FRAMES))
        progress(f"observing ranges on {len(frames)} frames")
        ranges = observe_frames(
            network,
            body,
            source,
            frames,
            temperature,
            method=method or "minmax",
            percentile=percentile,
            widen=widen,
        )
    return Calibration(ranges, _known_thresholds(Path(source), ranges, temperature), frames)


def not_finite(network: "Network", what: str) -> ArtefactError:
    """What to raise where a network gives infinities or NaN; ``what``: that it gives."""
    name = network.provenance.get("weights_name", "")
    called = f" '{name}'" if name else ""
    return ArtefactError(
        f"the weights{called} give {what} that are not finite numbers, so "
        "they are damaged or too large for float32; give other weights with --weights"
    )


def _check_weights(network: "Network", source: Path, ranges: Ranges, note: Progress) -> None:
    """Refuse ranges of other weights; where the file is too old to tell, go by the name."""
    recorded = ranges.provenance.get(WEIGHTS_SHA256)
    theirs = str(ranges.provenance.get("weights_name", ""))
    ours = network.provenance.get("weights_name", "")
    if recorded is None:
        if theirs and theirs != ours:
            note(
                f"the ranges in '{source}' were observed on weights called '{theirs}', and these "
                f"are '{ours}'; where they are not the same, give a folder of frames with "
                "--calibration"
            )
    elif recorded != weights_sha256(network):
        raise ArtefactError(
            f"the ranges in '{source}' were observed on other weights ('{theirs}') than those to "
            f"export ('{ours}') and do not fit them; give a folder of frames with --calibration"
        )


def _known_thresholds(source: Path, ranges: Ranges, temperature: float) -> dict[str, float]:
    """The thresholds that came with ranges, as far as they hold at this temperature."""
    try:
        thresholds = {str(k): float(v) for k, v in ranges.provenance.get("thresholds", {}).items()}
        observed_at = float(ranges.provenance.get("temperature", 1.0))
        if not np.isfinite([*thresholds.values(), observed_at]).all():
            raise ValueError("not finite")
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ArtefactError(
            f"calibration file '{source}' holds thresholds that are no numbers; give a folder of "
            "frames or a file that 'edgeseg export --int8' wrote"
        ) from None
    if observed_at != temperature:
        # All but maxlogit change with it, and another temperature's threshold would be wrong.
        return {k: v for k, v in thresholds.items() if k == "maxlogit"}
    return thresholds


def _thresholds(
    body: onnx.ModelProto, head: Head, frames: Sequence[UInt8], temperature: float
) -> dict[str, float]:
    """99th percentile of every scorer over the frames."""
    import onnxruntime as ort

    session = ort.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    height, width = frames[0].shape[:2]
    shape = (1, height // head.factor, width // head.factor, head.channels_in)
    scorers = valid_scorers(head.void_index)
    seen: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in scorers}
    kernel = HeadKernel(head, height, width, scorers[0], temperature, 2, np.float32)
    try:
        for frame in frames:
            (features,) = session.run(None, {"frame": frame[None]})
            for name in scorers:
                kernel.set_scorer(name, temperature)
                _, score = kernel.run(features.reshape(shape))
                # Every fifth pixel places the percentile as well, and bounds the memory.
                seen[name].append(score.reshape(-1)[::5].astype(np.float32))
    finally:
        kernel.close()
    return {
        name: float(np.quantile(np.concatenate(values), _THRESHOLD_QUANTILE))
        for name, values in seen.items()
    }
