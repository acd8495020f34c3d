"""ONNX Runtime's GPU providers against its processor: what is bound, and what is refused."""

import types

import numpy as np
import onnxruntime as ort
import pytest

from bundles import make_bundle
from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError
from edgeseg.export.tensorrt import add_graphs
from edgeseg.runtime.backends import BodySpec, onnxruntime_tensorrt, open_backend
from edgeseg.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend, open_session

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def body(tmp_path):
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", 16, 32))
    return BodySpec(bundle.body_path, bundle.body_sha256, 16, 32, "f32")


def _runtime(active, available=(CUDA, "TensorrtExecutionProvider", "CPUExecutionProvider")):
    """onnxruntime whose sessions run on the processor and claim ``active``."""
    asked = []

    class Session:
        def __init__(self, path, options, providers):
            asked.append(providers)
            self._real = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

        def __getattr__(self, name):
            return getattr(self._real, name)

        def get_providers(self):
            return list(active)

    class OrtValue:
        @staticmethod
        def ortvalue_from_shape_and_type(shape, element_type, device_type, device_id):
            assert (device_type, device_id) == ("cuda", 0)
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cpu", 0)

    return types.SimpleNamespace(
        InferenceSession=Session,
        OrtValue=OrtValue,
        SessionOptions=ort.SessionOptions,
        GraphOptimizationLevel=ort.GraphOptimizationLevel,
        get_available_providers=lambda: list(available),
        __version__="1.99",
        asked=asked,
    )


def test_bound_buffers_give_what_the_processor_gives(body):
    runtime = _runtime([CUDA])
    session = open_session("onnxruntime-cuda", body, str(body.path), CUDA, {}, runtime)
    backend = OnnxRuntimeGpuBackend("onnxruntime-cuda", session, CUDA, body, "f32", runtime)
    plain = ort.InferenceSession(str(body.path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for _ in range(3):
        frame = rng.integers(0, 256, (1, 16, 32, 3), np.uint8)
        given = backend.infer(frame)
        np.testing.assert_array_equal(given, plain.run(None, {"frame": frame})[0])
    assert backend.infer(frame) is given
    assert backend.describe()["provider"] == CUDA
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.infer(frame)


def test_a_provider_that_fell_back_is_refused(body):
    runtime = _runtime(["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match="runs on CPUExecutionProvider"):
        open_session("onnxruntime-cuda", body, str(body.path), CUDA, {}, runtime)


def test_tensorrt_that_became_cuda_is_refused(body):
    runtime = _runtime([CUDA])
    with pytest.raises(MissingDependencyError, match="was asked for TensorrtExecutionProvider"):
        open_session(
            "onnxruntime-tensorrt", body, str(body.path), "TensorrtExecutionProvider", {}, runtime
        )
    (providers,) = runtime.asked
    assert [p if isinstance(p, str) else p[0] for p in providers] == [
        "TensorrtExecutionProvider",
        CUDA,
    ]


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_the_onnxruntime_of_the_processor_says_what_to_install(body):
    with pytest.raises(MissingDependencyError, match="onnxruntime-gpu"):
        open_backend("onnxruntime-cuda", body, 1)


def test_the_tensorrt_provider_needs_the_bundle_s_graph(body):
    with pytest.raises(ArtefactError, match="--target tensorrt"):
        onnxruntime_tensorrt.open_engine(body, 1)


def test_the_tensorrt_provider_is_told_the_precision(body, monkeypatch):
    bundle = add_graphs(Bundle.open(body.path.parent))
    options = onnxruntime_tensorrt.provider_options("int8", "/engines")
    assert options["trt_fp16_enable"] == options["trt_int8_enable"] == "1"
    assert onnxruntime_tensorrt.provider_options("float32", "")["trt_fp16_enable"] == "0"
    seen = {}

    def note(name, body, graph, provider, options):
        seen.update(graph=graph, provider=provider)
        raise MissingDependencyError("no GPU")

    monkeypatch.setattr(onnxruntime_tensorrt, "open_session", note)
    with pytest.raises(MissingDependencyError):
        onnxruntime_tensorrt.open_engine(body, 1)
    assert seen["graph"] == str(bundle.path / "tensorrt_body.onnx")
