"""What ONNX Runtime's CUDA and TensorRT providers share: bound buffers, and a check of which
provider runs.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgeseg.errors import MissingDependencyError
from edgeseg.runtime.backends import BodySpec, refusal

__all__ = ["OnnxRuntimeGpuBackend", "open_session"]

_CUDA: Final = "CUDAExecutionProvider"


class OnnxRuntimeGpuBackend:
    """A session whose input lies on the GPU and whose output is copied into one host buffer."""

    def __init__(
        self,
        name: str,
        session: Any,
        provider: str,
        body: BodySpec,
        precision: str,
        runtime: Any = ort,
    ) -> None:
        (given,) = session.get_inputs()
        (output,) = session.get_outputs()
        body.check_input(given.name, _dtype(given.type), list(given.shape))
        body.check_output(output.name, _dtype(output.type), list(output.shape))
        self.name = name
        self._session: Any = session
        self._provider = provider
        self._precision = precision
        self._version = str(runtime.__version__)
        self._features = np.zeros(output.shape, np.float32)
        self._frame = runtime.OrtValue.ortvalue_from_shape_and_type(
            list(given.shape), np.uint8, "cuda", 0
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("frame", self._frame)
        self._binding.bind_output(
            "features", "cpu", 0, np.float32, list(output.shape), self._features.ctypes.data
        )

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        if self._session is None:
            raise RuntimeError("the backend is closed")
        self._frame.update_inplace(frame)
        self._session.run_with_iobinding(self._binding)
        # The copy of the output may still be under way.
        self._binding.synchronize_outputs()
        return self._features

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        return {
            "backend": self.name,
            "engine_version": self._version,
            "provider": self._provider,
            "threads": 1,
            "compute_precision": self._precision,
        }

    def close(self) -> None:
        """Free the session and its buffers."""
        self._binding = None
        self._session = None


def open_session(
    name: str,
    body: BodySpec,
    graph: str,
    provider: str,
    options: Mapping[str, str],
    runtime: Any = ort,
) -> Any:
    """A session that runs on ``provider``, or nowhere.

    Args:
        name: of the backend, for messages.
        body: for messages.
        graph: path of the ONNX file.
        provider: ONNX Runtime's name of it.
        options: of the provider.
        runtime: the module ``onnxruntime``.

    Raises:
        MissingDependencyError: this ONNX Runtime does not have the provider, or took another.
        ArtefactError: it refuses the graph.
    """
    available = runtime.get_available_providers()
    if provider not in available:
        raise MissingDependencyError(
            f"backend '{name}' needs {provider}, and this onnxruntime has "
            f"{', '.join(available)}; run 'pip install onnxruntime-gpu'"
        )
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 4
    providers: list[Any] = [(provider, dict(options))]
    if provider != _CUDA:
        # What TensorRT does not take stays on the GPU.
        providers.append(_CUDA)
    try:
        session = runtime.InferenceSession(graph, settings, providers=providers)
    except Exception as error:  # its exception classes are not public
        raise refusal(name, body, error) from None
    active = list(session.get_providers())
    # A provider that cannot be loaded is replaced by the processor, in silence.
    if not active or active[0] != provider:
        raise MissingDependencyError(
            f"backend '{name}' was asked for {provider} and onnxruntime runs on "
            f"{active[0] if active else 'nothing'}; install the CUDA, cuDNN and TensorRT releases "
            "that this onnxruntime-gpu was built for"
        )
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise refusal(name, body, ValueError("it has not one input and one output"))
    return session


def _dtype(name: str) -> str:
    return {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(name, name)
