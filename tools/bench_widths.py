"""Time one convolution at many widths: which channel counts does this processor gain by?

    python tools/bench_widths.py [--widths 32 48 64 ...] [--repeats 40] [-o FILE.md]

The convolution is ERFNet's, 3x1 and 1x3 in turn, eight in a row, on 64x128 pixels, in OpenVINO on
one thread, as float32 and as a Q/DQ graph in INT8. All widths and precisions are interleaved; a
cell is the median, as milliseconds and as a share of the widest. Pruning pays where the share of
the time follows the share of the multiply-adds; it does not where a narrower layer fills the
processor's tiles less.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench_machine import describe_machine
from edgeseg.files import write_text

HEIGHT, WIDTH, LAYERS = 64, 128, 8
WARM_UP = 5


def convolutions(channels: int, integer: bool) -> bytes:
    """A chain of convolutions with ReLU, uint8 activations between them where it is of integers."""
    random = np.random.default_rng(channels)
    nodes, constants = [], []

    def constant(name: str, value: object, dtype: type) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **settings: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **settings))
        return output

    step = constant("step", 0.02, np.float32)
    zero = constant("zero", 0, np.uint8)
    scale = constant("scale", np.full(channels, 1e-3), np.float32)
    flow = "image"
    for layer in range(LAYERS):
        kernel, pads = ((3, 1), [1, 0, 1, 0]) if layer % 2 == 0 else ((1, 3), [0, 1, 0, 1])
        shape = (channels, channels, *kernel)
        if integer:
            stored = constant(f"weight{layer}", random.integers(-127, 128, shape), np.int8)
            weight = node("DequantizeLinear", [stored, scale], f"real_weight{layer}", axis=0)
            flow = node("DequantizeLinear", [flow, step, zero], f"real{layer}")
        else:
            weight = constant(f"weight{layer}", random.normal(0, 0.02, shape), np.float32)
        flow = node("Conv", [flow, weight], f"conv{layer}", pads=pads)
        flow = node("Relu", [flow], f"relu{layer}")
        if integer:
            flow = node("QuantizeLinear", [flow, step, zero], f"rounded{layer}")
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    shape = [1, channels, HEIGHT, WIDTH]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(flow, kind, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def runner(channels: int, integer: bool) -> Callable[[], None]:
    """A call that runs the chain once."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(convolutions(channels, integer)), "CPU", settings)
    request = compiled.create_infer_request()
    shape = (1, channels, HEIGHT, WIDTH)
    random = np.random.default_rng(0)
    values = random.integers(0, 256, shape).astype(np.uint8 if integer else np.float32)
    request.set_input_tensor(ov.Tensor(values))
    return request.infer


def time_all(widths: list[int], repeats: int) -> dict[tuple[int, bool], float]:
    """Median milliseconds of one layer, by width and whether it is of integers."""
    calls = {(w, integer): runner(w, integer) for w in widths for integer in (False, True)}
    times: dict[tuple[int, bool], list[float]] = {key: [] for key in calls}
    for turn in range(WARM_UP + repeats):
        for key, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= WARM_UP:
                times[key].append((time.perf_counter() - begin) * 1e3 / LAYERS)
    return {key: statistics.median(found) for key, found in times.items()}


def table(widths: list[int], times: dict[tuple[int, bool], float]) -> list[str]:
    """Lines of Markdown."""
    widest = max(widths)
    lines = [
        "| channels | multiply-adds | float32 ms | of the widest | INT8 ms | of the widest |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for width in widths:
        cells = [f"{width}", f"{100 * width**2 / widest**2:.0f} %"]
        for integer in (False, True):
            spent = times[width, integer]
            cells += [f"{spent:.3f}", f"{100 * spent / times[widest, integer]:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=list(range(32, 129, 16)))
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, help="Markdown file")
    options = parser.parse_args()
    widths = sorted(set(options.widths))
    lines = table(widths, time_all(widths, options.repeats))
    machine = describe_machine()
    lines += ["", f"{machine['cpu']}; {machine['versions']}. Medians of {options.repeats}."]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.output:
        write_text(options.output, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
