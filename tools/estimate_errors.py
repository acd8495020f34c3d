"""Estimates beside the published speeds, and what they are off by.

    python tools/estimate_errors.py

Figures marked "fit" are those that the shares and launch times in
``edgeseg/profiling/roofline.py`` were chosen on. The others were no reason for a choice, but they
were in view, so that they are not blind predictions. A published figure is
what its author calls the speed of the network, mostly without copies to and from the device, so
copies are left out. Exits with 1 where an estimate is off by more than a factor of 1.5 and no
reason is written beside it.
"""

import sys
from dataclasses import dataclass, replace

from edgeseg.profiling.counts import HeadShape
from edgeseg.profiling.devices import Device, Hardware, load_device
from edgeseg.profiling.layers import Layer, LayerGraph
from edgeseg.profiling.roofline import RUNTIMES, estimate
from edgeseg.profiling.shapes import Tensor
from edgeseg.profiling.subjects import from_table

FACTOR = 1.5
PRELU = (
    "ONNX Runtime gains nothing from ENet's INT8: PReLUs and poolings leave the integer layout, "
    "which no peak tells"
)
PHASES = ("Slice", "Max", "GreaterOrEqual", "Where")


@dataclass(frozen=True)
class Published:
    """A speed that somebody measured."""

    network: str
    device: str
    runtime: str
    precision: str
    size: tuple[int, int]
    fps: float
    source: str
    fit: bool = False
    reason: str = ""
    """Why the estimate is off, where it is."""


# Peaks of cards that have a published figure and no profile of their own.
CARDS = {
    "a40": Hardware(
        696,
        74.8,
        "8.6",
        sms=84,
        float16_tflops=149.7,
        int8_tops=299.3,
        tensor_cores=True,
        link_gbs=20,
    ),
    "agx-xavier": Hardware(
        136.5, 1.41, "7.2", sms=8, float16_tflops=11.3, int8_tops=22.6, tensor_cores=True
    ),
    "rtx-2080": Hardware(
        448,
        10.07,
        "7.5",
        sms=46,
        float16_tflops=80.5,
        int8_tops=161,
        tensor_cores=True,
        link_gbs=12,
    ),
    "titan-x": Hardware(336, 6.14, "5.2", sms=24, float16_tflops=6.14, link_gbs=12),
    "tx1": Hardware(25.6, 0.511, "5.3", sms=2, float16_tflops=1.02),
}

PUBLISHED = (
    Published(
        "fcn-resnet18",
        "nano",
        "tensorrt-jetson",
        "float16",
        (512, 1024),
        12,
        "NVIDIA jetson-inference",
        fit=True,
    ),
    Published(
        "fcn-resnet18",
        "agx-xavier",
        "tensorrt-jetson",
        "float16",
        (512, 1024),
        175,
        "NVIDIA jetson-inference",
    ),
    Published(
        "bisenet", "a40", "tensorrt", "float32", (1024, 2048), 112, "BiSeNetV1, TensorRT 10.3"
    ),
    Published(
        "bisenet",
        "a40",
        "tensorrt",
        "float16",
        (1024, 2048),
        239,
        "BiSeNetV1, TensorRT 10.3",
        fit=True,
    ),
    Published(
        "bisenet",
        "a40",
        "tensorrt",
        "int8",
        (1024, 2048),
        435,
        "BiSeNetV1, TensorRT 10.3",
        fit=True,
    ),
    Published("enet", "rtx-2080", "torch", "float32", (512, 1024), 140, "zh320", fit=True),
    Published("erfnet", "rtx-2080", "torch", "float32", (512, 1024), 60, "zh320", fit=True),
    Published("bisenet", "rtx-2080", "torch", "float32", (512, 1024), 88, "zh320", fit=True),
    Published("enet", "tx1", "torch", "float32", (320, 480), 21, "ENet's paper"),
    Published("erfnet", "tx1", "torch", "float32", (360, 640), 7, "ERFNet's paper"),
    Published("erfnet", "titan-x", "torch", "float32", (360, 640), 83, "ERFNet's paper"),
    *(
        Published(network, "cpu", engine, precision, (512, 1024), 1000 / ms, "README", True, why)
        for network, engine, precision, ms, why in (
            ("erfnet", "openvino", "int8", 115.3, ""),
            ("midenet", "openvino", "int8", 17.6, ""),
            ("enet", "openvino", "int8", 71.8, ""),
            ("bisenet", "openvino", "int8", 138.8, ""),
            ("erfnet", "onnxruntime-int8", "int8", 265.9, ""),
            ("midenet", "onnxruntime-int8", "int8", 58.7, ""),
            ("enet", "onnxruntime-int8", "int8", 605.8, PRELU),
            ("bisenet", "onnxruntime-int8", "int8", 208.4, ""),
        )
    ),
)


def main() -> int:
    print("| published | device | engine | size | ms published | ms estimated | factor | use |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | --- |")
    off = []
    for p in PUBLISHED:
        told, guess = 1000 / p.fps, body_ms(p)
        factor = guess / told
        apart = max(factor, 1 / factor)
        use = "fit" if p.fit else "held out"
        if apart > FACTOR:
            off.append(p)
            use += f"; {p.reason or 'NO REASON'}"
        print(
            f"| {p.network} {p.precision} ({p.source}) | {p.device} | {p.runtime} "
            f"| {p.size[0]}x{p.size[1]} | {told:.1f} | {guess:.1f} | {factor:.2f} | {use} |"
        )
    held = [body_ms(p) * p.fps / 1000 for p in PUBLISHED if not p.fit]
    worst = max(max(f, 1 / f) for f in held)
    print(f"\nWorst factor of the {len(held)} held-out figures: {worst:.2f}. ", end="")
    print(f"{len(PUBLISHED) - len(off)} of {len(PUBLISHED)} are within {FACTOR}.")
    return 1 if any(not p.reason for p in off) else 0


def body_ms(p: Published) -> float:
    graph, head = _network(p.network)
    if p.precision != "float32":
        graph = graph.at_precision(p.precision)
    if p.runtime == "torch":
        # The published code pools with indices and unpools, each one kernel; the exported body
        # does it with operators that every engine has.
        kept = tuple(x for x in graph.layers if x.op not in PHASES)
        graph = replace(graph, layers=kept)
    divisor = 1 if p.size == (360, 640) else 8
    graph = graph.resized(*p.size, divisor=divisor)
    found = estimate(graph, head, _device(p.device), "maxlogit", RUNTIMES[p.runtime])
    return found.stages_ms["body"] + found.stages_ms["head"]


def _network(name: str) -> tuple[LayerGraph, HeadShape]:
    if name == "fcn-resnet18":
        return fcn_resnet18(), HeadShape("identity", 1, 1, 1)
    subject = from_table(name)
    return subject.graph, subject.head


def _device(name: str) -> Device:
    if name not in CARDS:
        return load_device(name).in_mode(None)
    like = load_device("orin-nano-8")
    return Device(
        schema=like.schema,
        name=name,
        title=name,
        device="jetson",
        backends=like.backends,
        precisions=like.precisions,
        size=like.size,
        budget_ms=like.budget_ms,
        hardware=CARDS[name],
        sources={},
    )


def fcn_resnet18() -> LayerGraph:
    """FCN-ResNet18 as jetson-inference runs it: ResNet-18 at 1/32, 3x3 to 128, 1x1 to 21."""
    tensors = {"frame": Tensor((1, 512, 1024, 3), "uint8")}
    layers: list[Layer] = []

    def conv(
        source: str,
        name: str,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int,
        down: int,
        extra: tuple[str, ...] = (),
    ) -> str:
        tensors[name] = Tensor((1, c_out, 512 // down, 1024 // down), "float32")
        weights = c_in * c_out * kernel * kernel + c_out
        layers.append(
            Layer(
                name,
                "Conv",
                (source, *extra),
                name,
                ("Bias", *("Add",) * len(extra), "Relu"),
                (kernel, kernel),
                (stride, stride),
                channels=(c_in, c_out),
                weights=weights,
                weight_bytes=4 * weights,
            )
        )
        return name

    x = conv("frame", "stem", 3, 64, 7, 2, 2)
    tensors["pool"] = Tensor((1, 64, 128, 256), "float32")
    layers.append(Layer("pool", "MaxPool", (x,), "pool", kernel=(3, 3), strides=(2, 2)))
    x, width, down = "pool", 64, 4
    for stage, c in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            down *= stride
            name = f"{stage}.{block}"
            skip = x
            if stride == 2:
                skip = conv(x, f"{name}.skip", width, c, 1, 2, down)
            y = conv(x, f"{name}.1", width, c, 3, stride, down)
            x = conv(y, f"{name}.2", c, c, 3, 1, down, (skip,))
            width = c
    x = conv(x, "head", 512, 128, 3, 1, 32)
    x = conv(x, "classifier", 128, 21, 1, 1, 32)
    size = (512, 1024)
    return LayerGraph(tuple(layers), tensors, "frame", x, size, size)


if __name__ == "__main__":
    sys.exit(main())
