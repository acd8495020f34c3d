"""An estimate of a latency from peaks, where the device is not at hand.

A layer takes as long as its multiply-accumulates at the reachable share of the peak, or its bytes
at the reachable share of the bandwidth, whichever is longer (Williams et al. 2009, "Roofline"),
and a launch. What a peak does not tell is modelled by its cause:

- tensor cores work on multiples of channels, so channels are rounded up to them;
- a grid of tiles fills whole waves of multiprocessors or leaves some of them idle;
- graphics cards without tensor cores run 3x3 convolutions of stride 1 as Winograd's F(2x2, 3x3),
  with 2.25 times fewer multiplications (Lavin & Gray 2016);
- frameworks that run operator by operator pass over the activations once for each.

The shares and launch times of :data:`RUNTIMES` were chosen on some published figures and tried on
the others; ``tools/estimate_errors.py`` prints both.
"""

from dataclasses import dataclass
from math import ceil, prod
from typing import Final

from edgeseg.errors import UsageError
from edgeseg.profiling.counts import HeadShape
from edgeseg.profiling.devices import Device, Hardware
from edgeseg.profiling.layers import CONVOLUTIONS, Layer, LayerGraph

__all__ = ["RUNTIMES", "Estimate", "LayerTime", "Runtime", "estimate", "runtime_of"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """How near an engine comes to a device's peaks."""

    compute: float
    """Share of the peak that a convolution of good shape reaches."""
    bandwidth: float
    """Share of the bandwidth that a layer reaches."""
    launch_us: float
    """Microseconds between two kernels."""
    fuses: bool = True
    """Whether additions, activations and BatchNorms run inside the convolution."""
    spread: float = 1.5
    """The true figure lies within the estimate divided and multiplied by it."""


RUNTIMES: Final[dict[str, Runtime]] = {
    "tensorrt": Runtime(compute=0.55, bandwidth=0.75, launch_us=5),
    "tensorrt-jetson": Runtime(compute=0.55, bandwidth=0.70, launch_us=10, spread=1.6),
    "torch": Runtime(compute=0.40, bandwidth=0.75, launch_us=10, fuses=False),
    "onnxruntime": Runtime(compute=0.35, bandwidth=0.6, launch_us=20),
    "onnxruntime-int8": Runtime(compute=0.25, bandwidth=0.15, launch_us=20, spread=2.0),
    "openvino": Runtime(compute=0.35, bandwidth=0.6, launch_us=20),
}

_TILE: Final = (128, 64)
"""Output pixels and channels that a multiprocessor works on at once."""
_CHANNELS: Final = {"int8": 32, "float16": 8, "float32": 4}
"""Multiples that tensor cores want."""
_WINOGRAD: Final = 2.25


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Milliseconds of a layer and what bounds it: ``compute``, ``memory`` or ``launch``."""

    name: str
    ms: float
    bound: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Milliseconds; the frame and the results lie in the host's memory."""

    ms: float
    low_ms: float
    high_ms: float
    stages_ms: dict[str, float]
    layers: tuple[LayerTime, ...]


def runtime_of(device: Device, precision: str) -> Runtime:
    """How a bundle runs on a device: TensorRT on NVIDIA's, ONNX Runtime or OpenVINO elsewhere."""
    if device.device == "cpu":
        engine = device.backends[0]
        return RUNTIMES.get(f"{engine}-{precision}") or RUNTIMES[engine]
    return RUNTIMES["tensorrt-jetson" if device.device == "jetson" else "tensorrt"]


def estimate(
    graph: LayerGraph,
    head: HeadShape,
    device: Device,
    scorer: str,
    runtime: Runtime | None = None,
) -> Estimate:
    """Latency of one frame on a device in its present mode.

    Raises:
        UsageError: INT8 on a device that has no fast INT8.
    """
    hardware = device.hardware
    if graph.precision == "int8" and hardware.int8_tops is None:
        raise UsageError(
            f"device '{device.name}' has no fast INT8: it would run no faster than float16; "
            "give --precision float16"
        )
    runtime = runtime or runtime_of(device, graph.precision)
    cpu = device.device == "cpu"
    times = tuple(_layer(graph, layer, hardware, runtime, cpu=cpu) for layer in graph.layers)
    pixels = prod(graph.size)
    stages = {"body": sum(t.ms for t in times)}
    stages["head"] = _head_ms(head, graph.size, scorer, hardware, runtime)
    if not cpu:
        # Where the memory is shared a copy reads and writes the same memory.
        link = hardware.link_gbs or hardware.bandwidth_gbs / 2
        stages = {
            "host_to_device": 3 * pixels / link / 1e6 + runtime.launch_us / 1e3,
            **stages,
            "device_to_host": 3 * pixels / link / 1e6 + runtime.launch_us / 1e3,
        }
    total = sum(stages.values())
    return Estimate(
        ms=total,
        low_ms=total / runtime.spread,
        high_ms=total * runtime.spread,
        stages_ms=stages,
        layers=times,
    )


def _layer(
    graph: LayerGraph, layer: Layer, hardware: Hardware, runtime: Runtime, *, cpu: bool
) -> LayerTime:
    precision = "int8" if layer.integer else graph.precision
    if precision == "int8" and not layer.integer:
        precision = "float32" if cpu else "float16"
    written = graph.bytes_of(layer.output)
    compute = 0.0
    if layer.op in CONVOLUTIONS:
        operations = 2 * graph.macs(layer) * _waste(graph, layer, precision, hardware)
        compute = operations / (_peak(hardware, precision) * 1e9 * runtime.compute)
    passes = 1
    if not runtime.fuses:
        # Each fused operator, and a BatchNorm in place of the bias, reads and writes once more.
        extra = len(layer.fused)
        passes += extra
        written += 2 * extra * graph.bytes_of(layer.output)
    moved = graph.read_bytes(layer) + written
    memory = moved / (hardware.bandwidth_gbs * 1e6 * runtime.bandwidth)
    launch = passes * runtime.launch_us / 1e3
    work = max(compute, memory)
    bound = "launch" if launch > work else "compute" if compute >= memory else "memory"
    # A framework's host launches ahead while the device works; an engine's kernels follow each
    # other with a gap.
    return LayerTime(layer.name, work + launch if runtime.fuses else max(work, launch), bound)


def _peak(hardware: Hardware, precision: str) -> float:
    """TFLOPS or TOPS of a precision; what is missing runs in the next wider one."""
    peaks = {"int8": hardware.int8_tops, "float16": hardware.float16_tflops}
    return peaks.get(precision) or hardware.float32_tflops


def _waste(graph: LayerGraph, layer: Layer, precision: str, hardware: Hardware) -> float:
    """Operations that the units do, over those that the layer needs."""
    c_in, c_out = layer.channels[0] // layer.groups, layer.channels[1] // layer.groups
    factor = 1.0
    if _on_tensor_cores(hardware, precision):
        multiple = _CHANNELS[precision]
        # The few channels of a frame lie packed by four.
        padded = _up(c_in, 4 if c_in <= 4 else multiple)
        factor *= padded * _up(c_out, multiple) / (c_in * c_out)
    elif precision != "int8" and hardware.compute_capability and _suits_winograd(layer):
        factor /= _WINOGRAD
    if hardware.sms and hardware.compute_capability:
        pixels = graph.elements(layer.output) // layer.channels[1]
        tiles = ceil(pixels / _TILE[0]) * ceil(layer.channels[1] / _TILE[1])
        waves = ceil(tiles / hardware.sms)
        factor *= waves * hardware.sms / tiles
    return factor


def _on_tensor_cores(hardware: Hardware, precision: str) -> bool:
    """Float32 runs on them as TF32 since Ampere."""
    ampere = int((hardware.compute_capability or "0").partition(".")[0]) >= 8
    return hardware.tensor_cores and (precision != "float32" or ampere)


def _suits_winograd(layer: Layer) -> bool:
    return (
        layer.op == "Conv"
        and layer.kernel == (3, 3)
        and set(layer.strides or (1,)) == {1}
        and set(layer.dilations or (1,)) == {1}
        and min(layer.channels) >= 16
    )


def _head_ms(
    head: HeadShape, size: tuple[int, int], scorer: str, hardware: Hardware, runtime: Runtime
) -> float:
    operations = 2 * head.macs(size) + head.operations(size, scorer)
    compute = operations / (hardware.float32_tflops * 1e9 * runtime.compute)
    moved = head.feature_bytes(size) + 3 * size[0] * size[1]
    memory = moved / (hardware.bandwidth_gbs * 1e6 * runtime.bandwidth)
    return max(compute, memory) + runtime.launch_us / 1e3


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
