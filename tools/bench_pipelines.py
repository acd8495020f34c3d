"""The pipelines that a user would build from well-known parts, each written with care.

A pipeline is a function from a uint8 BGR frame ``[H, W, 3]`` to a class map (uint8) and a void
score (float16), both ``[H, W]``.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from edgeseg.networks.base import Network
from edgeseg.taxonomy import NUM_KNOWN, VOID

UInt8 = npt.NDArray[np.uint8]
Pipeline = Callable[[UInt8], tuple[UInt8, npt.NDArray[Any]]]


class _Whole(nn.Module):
    """Frame in; logits out, or class map and score."""

    def __init__(self, network: Network, scored: bool) -> None:
        super().__init__()
        self.network = network
        self.scored = scored

    def forward(self, frame: Tensor) -> Any:
        logits = self.network(frame.permute(0, 3, 1, 2).flip(1).float() / 255)
        if not self.scored:
            return logits
        return _torch_scores(logits)


def _torch_scores(logits: Tensor) -> tuple[Tensor, Tensor]:
    class_map = logits[:, :NUM_KNOWN].argmax(1).to(torch.uint8)
    return class_map, torch.softmax(logits, 1)[:, VOID].half()


def _numpy_scores(logits: npt.NDArray[np.float32]) -> tuple[UInt8, npt.NDArray[np.float16]]:
    class_map = logits[:NUM_KNOWN].argmax(0).astype(np.uint8)
    e = logits - logits.max(0)
    np.exp(e, out=e)
    return class_map, (e[VOID] / e.sum(0)).astype(np.float16)


def torch_eager(network: Network) -> Pipeline:
    """In whichever memory format is quicker here."""
    import time

    def make(memory_format: torch.memory_format) -> Pipeline:
        module = network.to(memory_format=memory_format)

        def run(frame: UInt8) -> tuple[UInt8, npt.NDArray[Any]]:
            with torch.inference_mode():
                x = torch.from_numpy(frame)[None].permute(0, 3, 1, 2).flip(1).float() / 255
                class_map, score = _torch_scores(module(x.to(memory_format=memory_format)))
                return class_map[0].numpy(), score[0].numpy()

        return run

    probe = np.zeros((512, 1024, 3), np.uint8)
    best, best_time = torch.contiguous_format, float("inf")
    for candidate in (torch.contiguous_format, torch.channels_last):
        run = make(candidate)
        run(probe)
        start = time.perf_counter()
        run(probe)
        if time.perf_counter() - start < best_time:
            best, best_time = candidate, time.perf_counter() - start
    return make(best)


def _export(network: Network, scored: bool, height: int, width: int) -> onnx.ModelProto:
    buffer = io.BytesIO()
    names = ["class_map", "score"] if scored else ["logits"]
    torch.onnx.export(
        _Whole(network, scored).eval(),
        (torch.zeros(1, height, width, 3, dtype=torch.uint8),),
        buffer,
        opset_version=17,
        input_names=["frame"],
        output_names=names,
        dynamo=False,
    )
    return onnx.load_model_from_string(buffer.getvalue())


def onnxruntime_float(network: Network, height: int, width: int, threads: int) -> Pipeline:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = _export(network, False, height, width)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(frame: UInt8) -> tuple[UInt8, npt.NDArray[Any]]:
        return _numpy_scores(session.run(None, {"frame": frame[None]})[0][0])

    return run


def _openvino(model: onnx.ModelProto, frames: Sequence[UInt8], threads: int) -> Any:
    import nncf
    import openvino as ov

    nncf.set_log_level(40)
    quantized = nncf.quantize(
        model,
        nncf.Dataset([{"frame": f[None]} for f in frames]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(frames),
    )
    compiled = ov.Core().compile_model(
        ov.Core().read_model(quantized.SerializeToString()),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    return compiled.create_infer_request()


def openvino_int8(network: Network, frames: Sequence[UInt8], threads: int) -> Pipeline:
    import openvino as ov

    height, width = frames[0].shape[:2]
    request = _openvino(_export(network, False, height, width), frames, threads)

    def run(frame: UInt8) -> tuple[UInt8, npt.NDArray[Any]]:
        request.set_input_tensor(ov.Tensor(frame[None], shared_memory=True))
        request.infer()
        return _numpy_scores(request.get_output_tensor().data[0])

    return run


def openvino_int8_scored(network: Network, frames: Sequence[UInt8], threads: int) -> Pipeline:
    import openvino as ov

    height, width = frames[0].shape[:2]
    request = _openvino(_export(network, True, height, width), frames, threads)

    def run(frame: UInt8) -> tuple[UInt8, npt.NDArray[Any]]:
        request.set_input_tensor(ov.Tensor(frame[None], shared_memory=True))
        request.infer()
        return request.get_output_tensor(0).data[0], request.get_output_tensor(1).data[0]

    return run
