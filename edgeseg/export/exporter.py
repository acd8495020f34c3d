"""`edgeseg export`: a network with its weights becomes a bundle."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch

from edgeseg import __version__
from edgeseg.bundle import (
    BODY,
    CALIBRATION,
    HEAD,
    Bundle,
    Manifest,
    ScorerDefaults,
    head_to_files,
    write_bundle,
)
from edgeseg.compression.calibration import Ranges, observe
from edgeseg.compression.quantize_onnx import QuantizedBody, describe, quantize_body
from edgeseg.data.samples import find_images, read_image
from edgeseg.data.transforms import resize_frame
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.export.body import export_body
from edgeseg.export.float16 import to_float16
from edgeseg.networks.counts import count
from edgeseg.scoring.head import Head
from edgeseg.scoring.kernels import HeadKernel
from edgeseg.scoring.onnx_head import standalone_model
from edgeseg.scoring.scorers import valid_scorers
from edgeseg.taxonomy import CLASSES, PALETTE

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["Parity", "calibration_frames", "check_parity", "export_bundle", "observe_frames"]

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[str], None]

# Labels may flip where two logits tie; one pixel in ten thousand covers that.
MIN_EQUAL_LABELS: Final = 0.9999
MAX_LOGIT_ERROR: Final = 1e-3
# ENet's pooling remembers where the maximum was. Where two neighbours all but tie, rounding
# decides, and the logits around follow; so its logits are judged without the worst of them.
LOGIT_QUANTILE: Final = {"enet": 0.99}
_THRESHOLD_QUANTILE: Final = 0.99
_MAX_FRAMES: Final = 64


@dataclass(frozen=True, slots=True)
class Parity:
    """How the exported float body and head agree with torch."""

    equal_labels: float
    """Fraction of pixels, 0 .. 1."""
    logit_error: float
    """Largest absolute difference of logits, or the quantile of it that the network is held to."""


@dataclass(slots=True)
class _Calibration:
    ranges: Ranges | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    frames: list[UInt8] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def calibration_frames(folder: str | Path, height: int, width: int, limit: int) -> list[UInt8]:
    """At most ``limit`` images below a folder, evenly spread, at the network's size.

    Raises:
        InputError: no folder, no image in it, or an image that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"calibration folder '{root}' does not exist; name a folder of images")
    images = find_images(root, recursive=True)
    if not images:
        raise InputError(f"calibration folder '{root}' holds no image; name a folder of images")
    step = max(1, -(-len(images) // limit))
    return [resize_frame(read_image(p), (height, width)) for p in images[::step]]


def check_parity(
    network: "Network", body: onnx.ModelProto, head: Head, frames: Iterable[UInt8]
) -> Parity:
    """Compare the float body on ONNX Runtime, and the head, with torch.

    Raises:
        ArtefactError: they differ by more than rounding.
    """
    import onnxruntime as ort

    session = ort.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    quantile = LOGIT_QUANTILE.get(network.structure.network, 1.0)
    equal, worst = [], 0.0
    for frame in frames:
        (features,) = session.run(None, {"frame": frame[None]})
        h, w = frame.shape[0] // head.factor, frame.shape[1] // head.factor
        ours = head.logits(head.channel_first(features.reshape(1, h, w, -1)))
        rgb = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1)
        with torch.inference_mode():
            theirs = network(rgb[None].float() / 255)[0].numpy()
        known = head.num_known
        equal.append(float((ours[:known].argmax(0) == theirs[:known].argmax(0)).mean()))
        difference = np.abs(ours - theirs)
        worst = max(worst, float(np.quantile(difference, quantile)))
    parity = Parity(float(np.mean(equal)), worst)
    if parity.equal_labels < MIN_EQUAL_LABELS or parity.logit_error > MAX_LOGIT_ERROR:
        raise ArtefactError(
            f"the exported graph does not compute what torch computes: "
            f"{parity.equal_labels:.3%} of labels are equal and logits differ by "
            f"{parity.logit_error:.2g}; this is a defect of the export, please report it"
        )
    return parity


def export_bundle(
    network: "Network",
    destination: str | Path,
    *,
    height: int = 512,
    width: int = 1024,
    precision: str = "float32",
    calibration: str | Path | None = None,
    standalone: Sequence[str] = (),
    temperature: float = 1.0,
    frames_limit: int = 16,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Export a network.

    Args:
        network: in eval mode.
        destination: folder; an existing bundle there is replaced when the new one is whole.
        height: of the frame, pixels.
        width: of the frame, pixels.
        precision: ``float32``, ``float16`` or ``int8``.
        calibration: folder of images, or JSON with observed ranges; INT8 needs one.
        standalone: scorers to write ``model_<scorer>.onnx`` for.
        temperature: of the scorers, T > 0.
        frames_limit: how many images of the folder to use.
        progress: is told what is being done.

    Raises:
        UsageError: a size, scorer or destination that cannot be, or INT8 without calibration.
        ArtefactError: the export differs from torch, or ranges of another network.
    """
    if precision == "int8" and calibration is None:
        raise UsageError(
            "INT8 needs activation ranges, and none are shipped for these weights; give frames "
            "with --calibration DIR (some ten images from the camera's view are enough)"
        )
    head = _last(network.head_spec())
    _check_options(head, precision, standalone, temperature)
    progress("exporting the body")
    body = export_body(network, height, width)
    progress("reading calibration frames")
    observed = _observe(
        network, body, calibration, height, width, frames_limit, temperature, progress
    )
    progress("comparing with torch")
    parity = check_parity(network, body, head, (observed.frames or [_noise(height, width)])[:2])
    files: dict[str, bytes] = {}
    final = body
    quantized: QuantizedBody | None = None
    if precision == "int8":
        progress("quantizing")
        assert observed.ranges is not None
        quantized = quantize_body(body, observed.ranges)
        final = quantized.model
        files[CALIBRATION] = _calibration_file(observed, quantized)
    elif precision == "float16":
        final = to_float16(body)
    entry, head_bytes = head_to_files(head)
    files |= {BODY: final.SerializeToString(), HEAD: head_bytes}
    for scorer in standalone:
        model = standalone_model(final, head, scorer, temperature, height, width)
        files[f"model_{scorer}.onnx"] = model.SerializeToString()
    counts = count(network, height, width)
    manifest = Manifest(
        network=network.structure.network,
        structure=network.structure.to_dict(),
        classes=list(CLASSES),
        palette=[list(colour) for colour in PALETTE],
        height=height,
        width=width,
        head=entry,
        scorers={
            name: ScorerDefaults(observed.thresholds.get(name), temperature)
            for name in valid_scorers(head.void_index)
        },
        precision=precision,
        weights_name=network.provenance.get("weights_name", ""),
        license=network.provenance.get("license", ""),
        counts={
            "params": counts.params,
            "macs": counts.macs,
            "integer_convolutions": quantized.convolutions if quantized else 0,
        },
        calibration=observed.provenance,
        accuracy={
            "float_parity": {
                "equal_labels_percent": 100 * parity.equal_labels,
                "logit_error": parity.logit_error,
            }
        },
        created_by=f"edgeseg {__version__}",
    )
    progress("trying the bundle on the engines that are here")
    _try_engines(manifest, files)
    return Bundle.open(write_bundle(destination, manifest, files))


def _check_options(
    head: Head, precision: str, standalone: Sequence[str], temperature: float
) -> None:
    if head.num_known != len(CLASSES):
        raise ArtefactError(
            f"the network has {head.num_known} known classes, and bundles are of the "
            f"{len(CLASSES)} Cityscapes classes; give weights with 19 or 20 outputs"
        )
    if precision not in ("float32", "float16", "int8"):
        raise UsageError(f"precision '{precision}' is unknown; choose float32, float16 or int8")
    for scorer in standalone:
        if scorer not in valid_scorers(head.void_index):
            raise UsageError(
                f"scorer '{scorer}' cannot be exported for this network; choose one of "
                f"{', '.join(valid_scorers(head.void_index))}"
            )
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature {temperature} is not a positive number; give one above 0")


def _last(head: Head) -> Head:
    """The head with the layout that :func:`output_channels_last` gives."""
    return replace(head, layout="nhwc")


def observe_frames(
    network: "Network",
    body: onnx.ModelProto,
    folder: str | Path,
    frames: Sequence[UInt8],
    temperature: float = 1.0,
) -> Ranges:
    """Activation ranges of the float body, with the scorers' thresholds in the provenance.

    Args:
        network: that ``body`` was exported from.
        body: float body, as :func:`edgeseg.export.body.export_body` gives it.
        folder: where the frames come from; its name goes into the provenance.
        frames: as :func:`calibration_frames` gives them.
        temperature: at which the thresholds are taken.
    """
    height, width = frames[0].shape[:2]
    provenance = {
        "network": network.structure.network,
        "weights_name": network.provenance.get("weights_name", ""),
        "source": Path(folder).name,
        "size": f"{height}x{width}",
        "method": "min-max per channel",
        "thresholds": _thresholds(body, _last(network.head_spec()), frames, temperature),
        "temperature": temperature,
    }
    return observe(body, frames, **provenance)


def _observe(
    network: "Network",
    body: onnx.ModelProto,
    source: str | Path | None,
    height: int,
    width: int,
    limit: int,
    temperature: float,
    progress: Progress,
) -> _Calibration:
    if source is None:
        return _Calibration()
    frames: list[UInt8] = []
    if Path(source).suffix == ".json":
        ranges = Ranges.load(source)
    else:
        frames = calibration_frames(source, height, width, min(limit, _MAX_FRAMES))
        progress(f"observing ranges on {len(frames)} frames")
        ranges = observe_frames(network, body, source, frames, temperature)
    thresholds = _known_thresholds(Path(source), ranges, temperature)
    return _Calibration(ranges, thresholds, frames, {**ranges.provenance, "frames": ranges.frames})


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


def _noise(height: int, width: int) -> UInt8:
    """A frame for parity where no real one is given: smooth enough not to be all ties."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    fine = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1) // 2 + fine


def _calibration_file(observed: _Calibration, quantized: QuantizedBody) -> bytes:
    assert observed.ranges is not None
    document = json.loads(observed.ranges.to_json())
    document["quantization"] = describe(quantized.activations)
    return (json.dumps(document, separators=(",", ":")) + "\n").encode()


def _try_engines(manifest: Manifest, files: dict[str, bytes]) -> None:
    """Load and run the bundle on every engine that is installed, before anything is written."""
    from edgeseg.runtime.backends import available_backends
    from edgeseg.runtime.session import Session

    with TemporaryDirectory(prefix="edgeseg-") as folder:
        path = write_bundle(Path(folder) / "bundle", manifest, files)
        frame = _noise(manifest.height, manifest.width)
        for name in available_backends():
            with Session(path, backend=name) as session:
                session.run(frame)
