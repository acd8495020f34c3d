"""OpenVINO on the CPU."""

from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from edgeseg.runtime.backends import BodySpec, refusal

__all__ = ["OpenVinoBackend", "open_engine"]


class OpenVinoBackend:
    """One infer request that reads the caller's frame and gives out its own output tensor."""

    name = "openvino"

    def __init__(self, compiled: ov.CompiledModel, body: BodySpec, threads: int) -> None:
        given, output = compiled.input(0), compiled.output(0)
        # Static shapes only: a dynamic axis has no shape to compare.
        body.check_input(given.get_any_name(), _dtype(given), _shape(given))
        body.check_output(output.get_any_name(), _dtype(output), _shape(output))
        self._compiled: ov.CompiledModel | None = compiled
        self._request: ov.InferRequest | None = compiled.create_infer_request()
        self._threads = threads
        self._precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._frame: npt.NDArray[np.uint8] | None = None

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        request = self._request
        if request is None:
            raise RuntimeError("the backend is closed")
        if frame is not self._frame:
            request.set_input_tensor(ov.Tensor(frame, shared_memory=True))
            # The engine reads the caller's memory: it must live until the run is over.
            self._frame = frame
        # Without share_outputs every call would copy the features once more.
        request.infer(share_outputs=True)
        features: npt.NDArray[np.float32] = request.get_output_tensor(0).data
        return features

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        return {
            "backend": self.name,
            "engine_version": ov.__version__.split("-")[0],
            "provider": "CPU",
            "threads": self._threads,
            "compute_precision": self._precision,
        }

    def close(self) -> None:
        """Free the request and the compiled graph."""
        self._request = None
        self._compiled = None
        self._frame = None


def open_engine(body: BodySpec, threads: int) -> OpenVinoBackend:
    """Compile ``body`` for ``threads`` threads; ArtefactError where the graph is refused."""
    try:
        core = ov.Core()
        compiled = core.compile_model(
            str(body.path),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": threads,
                # Never left to the engine: on CPUs with AMX it would compute float32 graphs in
                # bf16, which moves RoadAnomaly21's FPR95 by half a point.
                "INFERENCE_PRECISION_HINT": body.compute_precision,
            },
        )
    except Exception as error:  # it raises bare RuntimeError, and others from its frontends
        raise refusal("openvino", body, error) from None
    if len(compiled.inputs) != 1 or len(compiled.outputs) != 1:
        raise refusal("openvino", body, ValueError("it has not one input and one output"))
    return OpenVinoBackend(compiled, body, threads)


def _dtype(port: Any) -> str:
    name = port.get_element_type().get_type_name()
    return {"u8": "uint8", "f32": "float32"}.get(name, str(name))


def _shape(port: Any) -> list[Any]:
    partial = port.get_partial_shape()
    return [axis.get_length() if axis.is_static else str(axis) for axis in partial]
