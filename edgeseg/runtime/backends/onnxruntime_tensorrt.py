"""ONNX Runtime on an NVIDIA GPU by its TensorRT provider."""

from typing import Final

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError
from edgeseg.runtime.backends import BodySpec
from edgeseg.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, open_session
from edgeseg.runtime.cache import cache_folder
from edgeseg.runtime.tensorrt.graphs import graph_name

__all__ = ["open_engine", "provider_options"]

_NAME: Final = "onnxruntime-tensorrt"
_PROVIDER: Final = "TensorrtExecutionProvider"


def provider_options(precision: str, folder: str | None) -> dict[str, str]:
    """The provider's options for a bundle of ``precision``; engines are kept in ``folder``, or
    built at each start where that is ``None``.
    """
    options = {
        "device_id": "0",
        "trt_fp16_enable": str(int(precision != "float32")),
        # The graph's Q/DQ nodes give the scales, so no calibration table is named.
        "trt_int8_enable": str(int(precision == "int8")),
        "trt_cuda_graph_enable": "0",
    }
    if folder is not None:
        for cache in ("engine", "timing"):
            options |= {f"trt_{cache}_cache_enable": "1", f"trt_{cache}_cache_path": folder}
    return options


def open_engine(body: BodySpec, threads: int) -> OnnxRuntimeGpuBackend:
    """Open the graph for TensorRT of the bundle that ``body`` lies in.

    Raises:
        MissingDependencyError: the provider is missing or was replaced.
        ArtefactError: the bundle has no such graph, or it is refused.
    """
    bundle = Bundle.open(body.path.parent)
    name = graph_name(None, "qdq")
    if name not in bundle.manifest.files:
        raise ArtefactError(
            f"bundle '{bundle.path}' has no '{name}', which TensorRT needs; export it again with "
            "--target tensorrt"
        )
    precision = bundle.manifest.precision
    options = provider_options(precision, _kept_in(bundle))
    session = open_session(_NAME, body, str(bundle.path / name), _PROVIDER, options)
    computes = "f32" if precision == "float32" else "f16"
    return OnnxRuntimeGpuBackend(_NAME, session, _PROVIDER, body, computes)


def _kept_in(bundle: Bundle) -> str | None:
    """Where engines are kept, made; ``None`` where nothing can be, so that each start builds."""
    try:
        # ONNX Runtime names its engines by graph and GPU; the folder parts bundles.
        folder = cache_folder() / "onnxruntime-tensorrt" / bundle.body_sha256[:32]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return str(folder)
