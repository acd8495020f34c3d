"""ONNX Runtime on an NVIDIA GPU by its CUDA provider."""

from typing import Final

from edgeseg.runtime.backends import BodySpec
from edgeseg.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, open_session

__all__ = ["open_engine"]

_NAME: Final = "onnxruntime-cuda"
_PROVIDER: Final = "CUDAExecutionProvider"
_OPTIONS: Final = {
    "device_id": "0",
    # Float32 means float32.
    "use_tf32": "0",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "do_copy_in_default_stream": "1",
}


def open_engine(body: BodySpec, threads: int) -> OnnxRuntimeGpuBackend:
    """Open ``body``; see :func:`edgeseg.runtime.backends.onnxruntime_gpu.open_session`."""
    session = open_session(_NAME, body, str(body.path), _PROVIDER, _OPTIONS)
    return OnnxRuntimeGpuBackend(_NAME, session, _PROVIDER, body, "f32")
