"""`edgeseg export`: a network with its weights becomes a bundle."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
from edgeseg.compression.calibration import Ranges
from edgeseg.compression.clipping import DEFAULT_PERCENTILE
from edgeseg.compression.gate_options import GateOptions
from edgeseg.compression.gate_report import GATE, document_of, summary_of
from edgeseg.compression.gated import Gated, quantize_through_gate
from edgeseg.compression.int8_recovery import RecoveryOptions, recover
from edgeseg.compression.quantize_onnx import QuantizedBody, describe, quantize_body
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.export.body import export_body
from edgeseg.export.float16 import to_float16
from edgeseg.export.observation import (
    Calibration,
    calibration_frames,
    not_finite,
    observe_frames,
    observe_source,
)
from edgeseg.networks.counts import count
from edgeseg.runtime.golden import GOLDEN, golden_of
from edgeseg.scoring.head import Head
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

_BIAS_CORRECTION: Final = "bias_correction"


@dataclass(frozen=True, slots=True)
class Parity:
    """How the exported float body and head agree with torch."""

    equal_labels: float
    """Fraction of pixels, 0 .. 1."""
    logit_error: float
    """Largest absolute difference of logits, or the quantile of it that the network is held to."""


def check_parity(
    network: "Network", body: onnx.ModelProto, head: Head, frames: Iterable[UInt8]
) -> Parity:
    """Compare the float body on ONNX Runtime, and the head, with torch.

    Raises:
        ArtefactError: they differ by more than rounding, or one of them is not finite.
    """
    import onnxruntime as ort

    session = ort.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    quantile = LOGIT_QUANTILE.get(network.structure.network, 1.0)
    equal, worst = [], 0.0
    for frame in frames:
        (features,) = session.run(None, {"frame": frame[None]})
        h, w = frame.shape[0] // head.factor, frame.shape[1] // head.factor
        # What overflows here is refused in words below.
        with np.errstate(over="ignore", invalid="ignore"):
            ours = head.logits(head.channel_first(features.reshape(1, h, w, -1)))
        rgb = torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1)
        with torch.inference_mode():
            theirs = network(rgb[None].float() / 255)[0].numpy()
        # NaN compares as no difference at all, and all of NaN is the same class.
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            raise not_finite(network, "logits")
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
    calibration_method: str | None = None,
    percentile: float = DEFAULT_PERCENTILE,
    widen: float | None = None,
    correct_bias: bool | None = None,
    gate: GateOptions | None = None,
    recovery: RecoveryOptions | None = None,
    progress: Progress = lambda _: None,
    note: Progress = lambda _: None,
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
        calibration_method: one of :data:`edgeseg.compression.clipping.METHODS`; ``None``: min-max
            for images, and for a file what it says.
        percentile: for the method of that name.
        widen: how far ranges go towards those of harsher forms of the frames, 0 to 1; ``None``:
            the network's default. Ranges from a file are as wide as they are.
        correct_bias: let biases take up the mean error of rounded weights; ``None``: as a file of
            ranges says, and yes where it says nothing.
        gate: what INT8 must hold; without it, layers that a file of ranges keeps in float stay so.
        recovery: train the INT8 body on what the float one says; with a gate, its own options
            decide. Needs calibration frames.
        progress: is told what is being done.
        note: is told what the user should know, one sentence each.

    Raises:
        UsageError: a size, scorer or destination that cannot be, INT8 without calibration, or an
            option that a file of ranges cannot serve.
        ArtefactError: the export differs from torch, the weights give no finite logits, or the
            ranges are those of other weights.
        GateFailedError: INT8 does not hold what ``gate`` asks for.
    """
    if gate is not None:
        if precision != "int8":
            raise UsageError("the accuracy gate goes with INT8; give --int8")
        gate.check()
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
    observed = observe_source(
        network,
        body,
        calibration,
        (height, width),
        limit=frames_limit,
        temperature=temperature,
        method=calibration_method,
        percentile=percentile,
        widen=widen,
        progress=progress,
        note=note,
    )
    observed, correct_bias = _decide_bias(observed, correct_bias)
    progress("comparing with torch")
    parity = check_parity(network, body, head, (observed.frames or [_noise(height, width)])[:2])
    files: dict[str, bytes] = {}
    entry, head_bytes = head_to_files(head)
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
        counts={"params": counts.params, "macs": counts.macs, "integer_convolutions": 0},
        calibration=observed.provenance,
        accuracy={
            "float_parity": {
                "equal_labels_percent": 100 * parity.equal_labels,
                "logit_error": parity.logit_error,
            }
        },
        created_by=f"edgeseg {__version__}",
    )
    final = body
    if precision == "int8":
        progress("quantizing")
        quantized, keep, compute, gated = _quantize(
            body, head, manifest, observed, correct_bias, gate, progress
        )
        if recovery is not None and gate is None:
            result = recover(
                body, quantized.model, head, observed.frames, recovery, progress=progress
            )
            quantized = replace(quantized, model=result.model)
            manifest.accuracy["recovery"] = result.document()
        final = quantized.model
        files[CALIBRATION] = _calibration_file(observed, quantized, keep, compute)
        manifest.counts["integer_convolutions"] = quantized.convolutions
        manifest = replace(manifest, compute_precision=compute)
        if gated is not None:
            files[GATE] = (json.dumps(document_of(gated), indent=1) + "\n").encode()
            manifest.accuracy["gate"] = summary_of(gated)
    elif precision == "float16":
        final = to_float16(body)
    files |= {BODY: final.SerializeToString(), HEAD: head_bytes}
    for scorer in standalone:
        model = standalone_model(final, head, scorer, temperature, height, width)
        files[f"model_{scorer}.onnx"] = model.SerializeToString()
    progress("trying the bundle on the engines that are here")
    golden = golden_of(manifest, files)
    if golden is not None:
        files[GOLDEN], manifest.accuracy["golden"] = golden
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


def _noise(height: int, width: int) -> UInt8:
    """A frame for parity where no real one is given: smooth enough not to be all ties."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    fine = rng.integers(0, 32, (height, width, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1) // 2 + fine


def _decide_bias(observed: Calibration, asked: bool | None) -> tuple[Calibration, bool]:
    """Whether to correct biases; the provenance of the ranges says so where the answer is no."""
    if observed.ranges is None:
        return observed, asked is not False
    recorded = observed.ranges.provenance.get(_BIAS_CORRECTION, True)
    chosen = recorded is not False if asked is None else asked
    provenance = {k: v for k, v in observed.ranges.provenance.items() if k != _BIAS_CORRECTION}
    if not chosen:
        provenance[_BIAS_CORRECTION] = False
    return replace(observed, ranges=replace(observed.ranges, provenance=provenance)), chosen


def _quantize(
    body: onnx.ModelProto,
    head: Head,
    manifest: Manifest,
    observed: Calibration,
    correct_bias: bool,
    gate: GateOptions | None,
    progress: Progress,
) -> tuple[QuantizedBody, tuple[str, ...], str, Gated | None]:
    """The INT8 body, the convolutions left in float, what they compute in, and the gate's say."""
    ranges = observed.ranges
    assert ranges is not None
    if gate is not None:
        gated = quantize_through_gate(
            body,
            head,
            manifest,
            ranges,
            observed.frames,
            gate,
            correct_bias=correct_bias,
            progress=progress,
        )
        return gated.quantized, gated.keep_float, gated.compute_precision, gated
    quantized = quantize_body(
        body, ranges, correct_bias=correct_bias, keep_float=frozenset(ranges.keep_float)
    )
    return quantized, ranges.keep_float, ranges.compute_precision, None


def _calibration_file(
    observed: Calibration, quantized: QuantizedBody, keep: tuple[str, ...], compute: str
) -> bytes:
    """The ranges with what was decided: enough to make the bundle again without frames, as far as
    the ranges' five digits go, but for one whose body was trained.
    """
    assert observed.ranges is not None
    ranges: Ranges = replace(observed.ranges, keep_float=keep, compute_precision=compute)
    document = json.loads(ranges.to_json())
    document["quantization"] = describe(quantized.activations)
    return (json.dumps(document, separators=(",", ":")) + "\n").encode()
