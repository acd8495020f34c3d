"""The head's kernel behind an engine: a fake driver runs the kernel's own source on the host."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from bundles import make_bundle
from edgeseg.bundle import Bundle
from edgeseg.errors import MissingDependencyError
from edgeseg.export.tensorrt import add_graphs
from edgeseg.runtime.backends import tensorrt as backend_module
from edgeseg.runtime.backends.tensorrt import open_kernel_engine
from edgeseg.runtime.tensorrt import gpu_head
from edgeseg.runtime.tensorrt.cuda import CudaError
from edgeseg.runtime.tensorrt.gpu_head import GpuHead, find_cubin
from edgeseg.scoring.cuda import SOURCES, CudaHead, launch
from edgeseg.scoring.scorers import anomaly_score, class_map
from tensorrt_fakes import Behaviour, FakeCuda, FakeStream, fake_tensorrt

FEATURES = {
    "frame": ("INPUT", (1, 16, 32, 3), "UINT8"),
    "features": ("OUTPUT", (1, 16, 8, 16), "FLOAT"),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("cuda") / "head_host.so"
    source = ["-DEDGESEG_OUTPUTS=20", str(SOURCES / "head_host.cpp"), "-o", str(path)]
    subprocess.run([compiler, "-std=c++14", "-O2", "-shared", "-fPIC", *source], check=True)
    return ctypes.CDLL(str(path))


class Driver:
    """libcuda as far as a kernel needs it."""

    def __init__(self, host, head, fails=()):
        self.host, self.plan, self.fails = host, launch(head, 16, 32), fails
        self.loaded = 0

    def cuModuleLoadData(self, module, image):  # noqa: N802
        assert image == b"cubin"
        module._obj.value = 11
        self.loaded += "cuModuleLoadData" not in self.fails
        return 218 if "cuModuleLoadData" in self.fails else 0

    def cuModuleGetFunction(self, function, module, name):  # noqa: N802
        assert name == b"edgeseg_head"
        function._obj.value = 12
        return 500 if "cuModuleGetFunction" in self.fails else 0

    def cuLaunchKernel(self, function, *given):  # noqa: N802
        *geometry, stream, pointers, extra = given
        assert function.value == 12
        assert extra is None
        assert tuple(geometry) == (*self.plan.grid, *self.plan.block, self.plan.shared_bytes)
        # As the driver does: the argument is copied while the call lasts.
        argument = CudaHead.from_buffer_copy(ctypes.string_at(pointers[0], ctypes.sizeof(CudaHead)))
        run = self.host.edgeseg_head_on_host
        FakeStream.by_handle[stream.value].do(lambda: run(ctypes.byref(argument)), "head")
        return 1 if "cuLaunchKernel" in self.fails else 0

    def cuModuleUnload(self, module):  # noqa: N802
        self.loaded -= 1
        return 0


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(backend_module, "find_cubin", lambda *_: b"cubin")
    return add_graphs(Bundle.open(make_bundle(tmp_path / "bundle", 16, 32)))


def _open(bundle, host, scorer="msp", temperature=1.0, *, slots=1, fails=(), graphs=True):
    driver, cuda = Driver(host, bundle.head, fails), FakeCuda(graphs=graphs)
    backend = open_kernel_engine(
        bundle,
        scorer,
        temperature,
        slots=slots,
        report=lambda _: None,
        trt=fake_tensorrt("10.3", Behaviour(tensors=FEATURES)),
        cuda=cuda,
        make_head=lambda *a: GpuHead(*a, library=lambda: driver),
    )
    return backend, cuda, driver


def _frame(value):
    return np.full((1, 16, 32, 3), value, np.uint8)


@pytest.mark.parametrize("scorer", ["msp", "void", "energy"])
@pytest.mark.parametrize("graphs", [True, False])
def test_class_map_and_score_are_those_of_the_definition(bundle, host, scorer, graphs):
    backend, cuda, _ = _open(bundle, host, scorer, 1.5, graphs=graphs)
    assert (backend.scorer, backend.temperature) == (scorer, 1.5)
    for value in (1, 2):
        labels, score = backend.score(_frame(value))
        # The fake engine gives the frame's mean as every feature.
        logits = bundle.head.logits(np.full((16, 8, 16), value, np.float32))
        np.testing.assert_array_equal(labels, class_map(logits, num_known=19))
        wanted = anomaly_score(logits, scorer, num_known=19, void_index=19, temperature=1.5)
        assert score.dtype == np.float16
        np.testing.assert_allclose(score, wanted, rtol=2e-3, atol=1e-5)
    stream = cuda.streams[-1]
    assert stream.log[-2:] == (["launch", "synchronize"] if graphs else ["out", "synchronize"])


def test_features_stay_on_the_gpu(bundle, host):
    backend, cuda, _ = _open(bundle, host, graphs=False)
    before = cuda.bytes_out
    backend.score(_frame(1))
    assert cuda.bytes_out - before == 16 * 32 * 3
    assert backend.describe()["head_kernel"] is True


def test_everything_goes_back(bundle, host):
    backend, cuda, driver = _open(bundle, host, slots=2)
    backend.score(_frame(1))
    backend.close()
    backend.close()
    assert not cuda.memory
    assert not cuda.pins
    assert driver.loaded == 0


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"])
def test_a_failing_driver_call_is_named(bundle, host, call):
    with pytest.raises(CudaError, match=call):
        _open(bundle, host, fails=(call,), graphs=False)


def test_without_a_compiler_the_kernel_is_a_missing_dependency(monkeypatch):
    monkeypatch.setattr(gpu_head.shutil, "which", lambda _: None)
    with pytest.raises(MissingDependencyError, match="nvcc once"):
        find_cubin("8.7", 17)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_a_compiled_kernel_is_kept(monkeypatch):
    cubin = find_cubin("8.7", 20)
    monkeypatch.setattr(gpu_head.shutil, "which", lambda _: None)
    assert find_cubin("8.7", 20) == cubin
    monkeypatch.undo()
    with pytest.raises(MissingDependencyError, match=r"compute capability 5\.3"):
        find_cubin("5.3", 20)
