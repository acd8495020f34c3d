import importlib.util
import types

import numpy as np
import pytest

from bundles import make_bundle
from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.export.tensorrt import add_graphs
from edgeseg.runtime.backends import BodySpec, open_backend
from edgeseg.runtime.backends import tensorrt as backend_module
from edgeseg.runtime.backends.tensorrt import open_engine, open_scoring_engine, scoring_backend
from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.frames import Frame, now_utc
from edgeseg.runtime.inference import Inference
from edgeseg.runtime.report import Report
from edgeseg.runtime.session import Session
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.runtime.tensorrt import cuda as cuda_module
from edgeseg.runtime.tensorrt.cuda import CudaError, OutOfMemoryError, array_of, open_cuda
from edgeseg.runtime.tensorrt.cuda_pycuda import PyCuda
from edgeseg.runtime.tensorrt.cuda_python import CudaPython
from edgeseg.runtime.tensorrt.execution import EngineRunner
from tensorrt_fakes import MAGIC, VERSIONS, Behaviour, FakeCuda, fake_runtime, fake_tensorrt

SCORES = {
    "frame": ("INPUT", (1, 16, 32, 3), "UINT8"),
    "class_map": ("OUTPUT", (1, 16, 32), "UINT8"),
    "score": ("OUTPUT", (1, 16, 32), "HALF"),
}
FEATURES = {
    "frame": ("INPUT", (1, 16, 32, 3), "UINT8"),
    "features": ("OUTPUT", (1, 16, 8, 16), "FLOAT"),
}


@pytest.fixture
def bundle(tmp_path):
    return add_graphs(Bundle.open(make_bundle(tmp_path / "bundle", 16, 32)), ["void"])


def _open(bundle, scorer=None, version="10.3", cuda=None, slots=1, **does):
    behaviour = Behaviour(tensors=SCORES if scorer else FEATURES, **does)
    trt, cuda = fake_tensorrt(version, behaviour), cuda or FakeCuda()
    quiet = {"report": lambda _: None}
    backend = open_scoring_engine(bundle, scorer, slots=slots, trt=trt, cuda=cuda, **quiet)
    return backend, cuda, behaviour


def _frame(value):
    return np.full((1, 16, 32, 3), value, np.uint8)


@pytest.mark.parametrize("version", VERSIONS)
def test_features_of_every_frame(bundle, version):
    backend, cuda, _ = _open(bundle, version=version)
    for value in (3, 200, 7):
        features = backend.infer(_frame(value))
        assert features.shape == (1, 16, 8, 16)
        assert features.dtype == np.float32
        assert (features == value).all()
    backend.close()
    backend.close()
    assert not cuda.memory
    assert not cuda.pins
    assert all(stream.closed for stream in cuda.streams)


@pytest.mark.parametrize("version", VERSIONS)
def test_three_bytes_a_pixel_leave_with_the_scorer_in_the_engine(bundle, version):
    backend, cuda, _ = _open(bundle, "void", version)
    before_in, before_out = cuda.bytes_in, cuda.bytes_out
    assert backend.scorer == "void"
    assert backend.temperature == 1.0
    class_map, score = backend.score(_frame(9))
    assert (class_map.shape, class_map.dtype) == ((16, 32), np.uint8)
    assert (score.shape, score.dtype) == ((16, 32), np.float16)
    assert (class_map == 9).all()
    assert (score == 9).all()
    # Copies were recorded when the graph was, and do not count again.
    assert (cuda.bytes_in, cuda.bytes_out) == (before_in, before_out)
    one_frame = (cuda.bytes_in // 2, cuda.bytes_out // 2)
    assert one_frame == (16 * 32 * 3, 16 * 32 * 3)


def test_nothing_is_allocated_after_the_first_frame(bundle):
    backend, cuda, _ = _open(bundle, "void")
    allocations, streams = cuda.allocations, len(cuda.streams)
    for value in range(20):
        backend.score(_frame(value))
    assert cuda.allocations == allocations
    assert len(cuda.streams) == streams
    assert allocations == 6


def test_a_frame_is_one_graph_launch(bundle):
    backend, cuda, does = _open(bundle, "void")
    (stream,) = cuda.streams
    stream.log.clear()
    enqueued = does.enqueued
    backend.score(_frame(1))
    assert stream.log == ["launch", "synchronize"]
    assert does.enqueued == enqueued
    assert backend.describe()["cuda_graph"] is True


def test_without_graphs_the_calls_are_made_one_by_one(bundle):
    cuda = FakeCuda(graphs=False)
    backend, cuda, _ = _open(bundle, "void", cuda=cuda)
    (stream,) = cuda.streams
    stream.log.clear()
    _, score = backend.score(_frame(5))
    assert (score == 5).all()
    assert stream.log == ["in", "compute", "out", "out", "synchronize"]
    assert backend.describe()["cuda_graph"] is False
    assert "capturing" in backend.describe()["cuda_graph_reason"]


def test_two_slots_keep_two_frames_apart(bundle):
    backend, cuda, _ = _open(bundle, "void", slots=2)
    assert len(cuda.streams) == 2
    backend.submit(_frame(1))
    backend.submit(_frame(2))
    with pytest.raises(RuntimeError, match="collect a frame first"):
        backend.submit(_frame(3))
    first, _ = backend.collect()
    backend.submit(_frame(3))
    second, _ = backend.collect()
    assert (second == 2).all()
    third, _ = backend.collect()
    # The third frame used the first one's slot.
    assert (third == 3).all()
    assert third.ctypes.data == first.ctypes.data
    with pytest.raises(RuntimeError, match="no frame is under way"):
        backend.collect()


def test_a_submitted_frame_may_be_overwritten(bundle):
    backend, _, _ = _open(bundle, "void", slots=2)
    frame = _frame(4)
    backend.submit(frame)
    frame[:] = 99
    assert (backend.collect()[0] == 4).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_corrupt_engine_is_an_artefact_error(version):
    trt = fake_tensorrt(version, Behaviour())
    with pytest.raises(ArtefactError, match="Magic tag"):
        EngineRunner(trt, FakeCuda(), b"garbage")


def test_an_engine_that_changed_since_it_was_built_is_not_loaded(bundle, monkeypatch):
    real = backend_module.ensure_engine

    def then_changed(*args):
        engine = real(*args)
        engine.path.write_bytes(MAGIC + b"changed")
        return engine

    monkeypatch.setattr(backend_module, "ensure_engine", then_changed)
    with pytest.raises(ArtefactError, match="not an engine that edgeseg built"):
        _open(bundle)


@pytest.mark.parametrize("version", VERSIONS)
def test_out_of_memory_for_the_context(bundle, version):
    cuda = FakeCuda()
    with pytest.raises(OutOfMemoryError, match=r"smaller --size"):
        _open(bundle, version=version, cuda=cuda, context_fails=True)
    assert not cuda.memory
    assert not cuda.pins
    assert all(stream.closed for stream in cuda.streams)


def test_out_of_memory_for_a_buffer_gives_everything_back(bundle):
    cuda = FakeCuda(limit=2000)
    with pytest.raises(OutOfMemoryError):
        _open(bundle, cuda=cuda)
    assert not cuda.memory
    assert not cuda.pins


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failing_enqueue_names_tensorrt_s_reason(bundle, version):
    cuda = FakeCuda()
    with pytest.raises(CudaError, match="illegal memory access"):
        _open(bundle, version=version, cuda=cuda, enqueue_fails_after=0)
    assert not cuda.memory
    backend, _, _ = _open(
        bundle, version=version, cuda=FakeCuda(graphs=False), enqueue_fails_after=3
    )
    backend.infer(_frame(1))
    with pytest.raises(CudaError, match="illegal memory access"):
        backend.infer(_frame(1))


def test_an_engine_with_other_tensors_is_refused():
    for tensors in (
        {"frame": ("INPUT", (1, -1, 16, 3), "UINT8"), "features": ("OUTPUT", (1, 2), "FLOAT")},
        {"frame": ("INPUT", (1, 8, 16, 3), "INT32"), "features": ("OUTPUT", (1, 2), "FLOAT")},
        {"features": ("OUTPUT", (1, 2), "FLOAT")},
    ):
        trt = fake_tensorrt("10.3", Behaviour(tensors=tensors))
        with pytest.raises(ArtefactError, match="no bundle has"):
            EngineRunner(trt, FakeCuda(), MAGIC)


def test_features_and_scores_are_not_mixed_up(bundle):
    backend, _, _ = _open(bundle)
    with pytest.raises(ArtefactError, match="ends at the features"):
        backend.score(_frame(1))
    backend, _, _ = _open(bundle, "void")
    with pytest.raises(ArtefactError, match="gives scores"):
        backend.infer(_frame(1))


def test_the_backend_checks_the_bundle_s_contract(bundle, monkeypatch):
    tensors = {**FEATURES, "frame": ("INPUT", (1, 16, 30, 3), "UINT8")}
    trt = fake_tensorrt("10.3", Behaviour(tensors=tensors))
    monkeypatch.setattr(backend_module, "import_tensorrt", lambda _: trt)
    monkeypatch.setattr(backend_module, "open_cuda", FakeCuda)
    body = BodySpec(bundle.body_path, bundle.body_sha256, 16, 32, "f32")
    with pytest.raises(ArtefactError, match="export the bundle again"):
        open_engine(body, 1)


def test_a_missing_tensorrt_exits_3(bundle, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if "tensorrt" in n else real(n, *a)
    )
    body = BodySpec(bundle.body_path, bundle.body_sha256, 16, 32, "f32")
    with pytest.raises(MissingDependencyError, match="'tensorrt' is not installed"):
        open_backend("tensorrt", body, 1)
    with pytest.raises(UsageError, match="onnxruntime-cuda"):
        open_backend("tensorflow", body, 1)


def test_without_a_gpu_every_package_says_why(monkeypatch):
    def missing(name):
        if name.endswith("cuda_python"):
            return types.SimpleNamespace(open_device=lambda: CudaPython(fake_runtime(devices=0)))
        raise ModuleNotFoundError("No module named 'pycuda'", name="pycuda")

    monkeypatch.setattr(cuda_module.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"pycuda is not installed.*no NVIDIA GPU"):
        open_cuda()


def test_pycuda_comes_first_and_cuda_python_stands_in(monkeypatch):
    asked = []

    def module(name):
        asked.append(name)
        if name.endswith("pycuda"):
            raise ImportError("libcuda.so.1: cannot open shared object file")
        return types.SimpleNamespace(open_device=lambda: CudaPython(fake_runtime()))

    monkeypatch.setattr(cuda_module.importlib, "import_module", module)
    assert open_cuda().name == "cuda-python"
    assert [name.rpartition(".")[2] for name in asked] == ["cuda_pycuda", "cuda_python"]


def test_cuda_python_copies_through_pinned_memory():
    runtime = fake_runtime()
    cuda = CudaPython(runtime)
    assert cuda.device.name == "Orin"
    assert cuda.device.compute_capability == "8.7"
    assert cuda.device.cuda == "12.6"
    source, target = cuda.pinned((4, 3), np.uint8), cuda.pinned((4, 3), np.uint8)
    source[:] = np.arange(12).reshape(4, 3)
    address = cuda.allocate(12)
    stream = cuda.stream()
    with cuda.active():
        launch = stream.record(lambda: stream.copy_in(address, source))
        launch()
        stream.copy_out(target, address)
        stream.synchronize()
    assert (target == source).all()
    assert (array_of(address, (12,), np.uint8) == np.arange(12)).all()
    stream.close()
    cuda.free(address)
    cuda.unpin(source)
    cuda.unpin(target)
    assert not runtime.memory
    order = [c for c in runtime.calls if "Stream" in c or "Graph" in c]
    assert order == [
        "cudaStreamCreateWithFlags",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaStreamSynchronize",
        "cudaGraphExecDestroy",
        "cudaStreamDestroy",
    ]


def test_cuda_python_s_errors_have_names():
    with pytest.raises(OutOfMemoryError, match="cudaMalloc"):
        CudaPython(fake_runtime(fails={"cudaMalloc": 2})).allocate(8)
    stream = CudaPython(fake_runtime(fails={"cudaStreamSynchronize": 700})).stream()
    with pytest.raises(CudaError, match=r"cudaStreamSynchronize failed: a failure \(700\)"):
        stream.synchronize()


def test_a_capture_is_ended_when_the_work_in_it_fails():
    runtime = fake_runtime()
    stream = CudaPython(runtime).stream()

    def work():
        raise CudaError("enqueue")

    with pytest.raises(CudaError, match="enqueue"):
        stream.record(work)
    assert runtime.calls[-1] == "cudaStreamEndCapture"


class _Driver:
    """pycuda.driver as far as it is used; its graphs come from the driver's own library."""

    class MemoryError(Exception):  # noqa: A001
        pass

    class Error(Exception):
        pass

    def __init__(self):
        self.contexts = []
        self.log = []

    def init(self):
        self.log.append("init")

    def get_driver_version(self):
        return 12060

    def Device(self, number):  # noqa: N802
        context = types.SimpleNamespace(
            push=lambda: self.contexts.append(1), pop=lambda: self.contexts.pop()
        )
        return types.SimpleNamespace(
            retain_primary_context=lambda: context,
            compute_capability=lambda: (8, 7),
            name=lambda: "Orin",
            total_memory=lambda: 1 << 33,
        )

    def mem_alloc(self, size):
        if size > 100:
            raise _Driver.MemoryError
        log = self.log

        class Allocation:
            def __int__(self):
                return 4096

            def free(self):
                log.append("free")

        return Allocation()

    def pagelocked_empty(self, shape, dtype):
        return np.empty(shape, dtype)

    def Stream(self, flags):  # noqa: N802
        return types.SimpleNamespace(handle=55, synchronize=lambda: self.log.append("synchronize"))

    def memcpy_htod_async(self, dest, src, stream):
        self.log.append("in")

    def memcpy_dtoh_async(self, dest, src, stream):
        self.log.append("out")


def test_pycuda_records_graphs_by_the_driver_s_library():
    driver, called = _Driver(), []

    class Library:
        def __getattr__(self, name):
            return lambda *_: called.append(name) or 0

    cuda = PyCuda(driver, Library)
    with cuda.active():
        assert driver.contexts == [1]
        address = cuda.allocate(10)
        with pytest.raises(OutOfMemoryError):
            cuda.allocate(1000)
        stream = cuda.stream()
        launch = stream.record(lambda: stream.copy_in(address, cuda.pinned((2,), np.uint8)))
        launch()
        stream.copy_out(cuda.pinned((2,), np.uint8), address)
        stream.synchronize()
        stream.close()
        cuda.free(address)
    assert driver.contexts == []
    assert driver.log == ["init", "in", "out", "synchronize", "free"]
    assert called == [
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ]


def test_pycuda_with_a_driver_without_graphs_says_so():
    class Library:
        def __getattr__(self, name):
            return lambda *_: 801

    stream = PyCuda(_Driver(), Library).stream()
    with pytest.raises(CudaError, match="cuStreamBeginCapture_v2 failed with error 801"):
        stream.record(lambda: None)


def test_the_scorer_is_in_the_engine_only_at_the_temperature_it_was_exported_at(
    bundle, monkeypatch
):
    trt = fake_tensorrt("10.3", Behaviour(tensors=SCORES))
    monkeypatch.setattr(backend_module, "import_tensorrt", lambda _: trt)
    monkeypatch.setattr(backend_module, "open_cuda", FakeCuda)
    monkeypatch.setattr("edgeseg.runtime.tensorrt.gpu_head.shutil.which", lambda _: None)
    assert scoring_backend(bundle, "msp", 1.0) is None
    assert scoring_backend(bundle, "void", 2.0) is None
    assert (scoring_backend(bundle, "void", 1.0).score(_frame(8))[0] == 8).all()


def _on_a_gpu(monkeypatch, scores):
    """A GPU whose TensorRT has an engine for every kind of graph; what was opened, by name."""
    opened = []
    real = backend_module.open_scoring_engine

    def open_one(bundle, scorer, *rest, **named):
        opened.append(scorer or "features")
        named["trt"] = fake_tensorrt("10.3", Behaviour(tensors=scores if scorer else FEATURES))
        return real(bundle, scorer, *rest, **{**named, "report": lambda _: None})

    monkeypatch.setattr(backend_module, "open_scoring_engine", open_one)
    trt = fake_tensorrt("10.3", Behaviour(tensors=scores))
    monkeypatch.setattr(backend_module, "import_tensorrt", lambda _: trt)
    monkeypatch.setattr(backend_module, "open_cuda", FakeCuda)
    real_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: n if n == "tensorrt" else real_spec(n, *a)
    )
    return opened


def test_the_features_engine_is_opened_only_when_features_are_asked_for(bundle, monkeypatch):
    opened = _on_a_gpu(monkeypatch, SCORES)
    with Session(bundle, "tensorrt", threads=1) as session:
        result = session.run(_frame(6)[0])
        assert (result.class_map == 6).all()
        assert set(result.timings) == {"body"}
        assert session.describe()["scorer_in_engine"] == "void"
        assert session.path_reason == "libedgeseg does not run tensorrt"
        assert not session.gives_features
        assert opened == ["void"]
        assert (session.features(_frame(3)[0]) == 3).all()
        assert session.gives_features
        session.features(_frame(4)[0])
        assert opened == ["void", "features"]
        # Frames still go to the engine that scores.
        assert set(session.run(_frame(5)[0]).timings) == {"body"}
    with pytest.raises(UsageError, match="closed"):
        session.features(_frame(3)[0])


def test_float32_scores_need_the_features_engine_alone(bundle, monkeypatch):
    opened = _on_a_gpu(monkeypatch, SCORES)
    with Session(bundle, "tensorrt", threads=1, score_dtype=np.float32) as session:
        assert session.gives_features
        assert session.run(_frame(2)[0]).score.dtype == np.float32
    assert opened == ["features"]


def test_an_unwatched_run_opens_no_features_engine_and_a_watched_one_does_before_frames(
    bundle, monkeypatch
):
    opened = _on_a_gpu(monkeypatch, SCORES)
    frame = Frame(0, _frame(7)[0], "#0", "f0", now_utc(), 0, 0.1)
    with Session(bundle, "tensorrt", threads=1) as session:
        report = Report()
        outcome, _, problem = Inference(session, Supervisor(), None, None).run(
            frame, report, keep=True
        )
        assert problem is None
        assert (outcome.class_map == 7).all()
        assert report.summary()["stages_ms"].keys() >= {"body"}
        assert opened == ["void"]
        Inference(session, Supervisor(Deadline(100, "safe")), None, None)
        assert opened == ["void", "features"]


def test_an_engine_of_another_size_is_refused(bundle, monkeypatch):
    small = {name: (mode, (1, 8, 32, *shape[3:]), t) for name, (mode, shape, t) in SCORES.items()}
    _on_a_gpu(monkeypatch, small)
    with pytest.raises(ArtefactError, match="let it be built again"):
        Session(bundle, "tensorrt", threads=1)


def test_the_library_does_not_run_tensorrt(bundle, monkeypatch):
    _on_a_gpu(monkeypatch, SCORES)
    with pytest.raises(UsageError, match="libedgeseg does not run tensorrt"):
        Session(bundle, "tensorrt", threads=1, path="library")
