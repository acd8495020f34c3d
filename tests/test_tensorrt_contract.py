"""The calls that are made exist in every version: proven by taking them away one by one."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from edgeseg.errors import ArtefactError, MissingDependencyError
from edgeseg.runtime.tensorrt.builder import BuildOptions, build
from edgeseg.runtime.tensorrt.calibration_cache import CalibrationCache
from edgeseg.runtime.tensorrt.calibrator import calibrate
from edgeseg.runtime.tensorrt.cuda import CudaError
from edgeseg.runtime.tensorrt.cuda_python import CudaPython
from edgeseg.runtime.tensorrt.execution import EngineRunner
from tensorrt_fakes import VERSIONS, Behaviour, FakeCuda, fake_runtime, fake_tensorrt, signatures


def _everything(version, table=None):
    """Every path through the bindings that a version has."""
    cache = CalibrationCache.of_magnitudes(1, {"t": 1.0}).render()
    does = Behaviour(dla_cores=1, calibration_cache=cache)
    trt, cuda = fake_tensorrt(version, does, table), FakeCuda()
    built = build(trt, b"graph", BuildOptions("int8", dla_core=0, timing_cache=b"old"))
    if version != "11.4":
        with cuda.active():
            for method in ("entropy", "minmax"):
                does.calibration_cache = CalibrationCache.of_magnitudes(
                    1, {"t": 1.0}, method
                ).render()
                calibrate(trt, cuda, b"graph", [np.zeros((8, 16, 3), np.uint8)], method)
    runner = EngineRunner(trt, cuda, built.content, slots=2)
    outputs = runner.run(np.full((1, 8, 16, 3), 6, np.uint8))
    assert (outputs["features"] == 6).all()
    runner.close()
    refusing = fake_tensorrt(version, Behaviour(parser_errors=("no",)), table)
    with pytest.raises(ArtefactError, match="parser refuses"):
        build(refusing, b"graph", BuildOptions("float32"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_exists(version):
    _everything(version)


METHODS = [
    ("Builder", "create_network"),
    ("Builder", "create_builder_config"),
    ("Builder", "build_serialized_network"),
    ("IBuilderConfig", "set_memory_pool_limit"),
    ("IBuilderConfig", "clear_flag"),
    ("IBuilderConfig", "set_flag"),
    ("IBuilderConfig", "set_timing_cache"),
    ("IBuilderConfig", "can_run_on_DLA"),
    ("INetworkDefinition", "get_layer"),
    ("OnnxParser", "parse"),
    ("OnnxParser", "get_error"),
    ("ParserError", "desc"),
    ("ITimingCache", "serialize"),
    ("Runtime", "deserialize_cuda_engine"),
    ("ICudaEngine", "get_tensor_name"),
    ("ICudaEngine", "get_tensor_shape"),
    ("ICudaEngine", "get_tensor_dtype"),
    ("ICudaEngine", "get_tensor_mode"),
    ("ICudaEngine", "create_execution_context"),
    ("IExecutionContext", "set_tensor_address"),
    ("IExecutionContext", "execute_async_v3"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "method"), METHODS)
def test_a_call_that_a_version_does_not_have_fails(version, kind, method):
    table = copy.deepcopy(signatures())
    methods = table["tensorrt"][version]["classes"][kind]["methods"]
    methods[f"{method}_renamed"] = methods.pop(method)
    with pytest.raises((AttributeError, TypeError)):
        _everything(version, table)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_argument_that_a_call_does_not_have_fails(version):
    table = copy.deepcopy(signatures())
    classes = table["tensorrt"][version]["classes"]
    classes["IExecutionContext"]["methods"]["execute_async_v3"] = [["bindings", "stream_handle"]]
    with pytest.raises(TypeError, match="incompatible arguments"):
        _everything(version, table)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_property_or_flag_that_a_version_does_not_have_fails(version):
    table = copy.deepcopy(signatures())
    del table["tensorrt"][version]["classes"]["INetworkDefinition"]["properties"]["num_layers"]
    with pytest.raises(AttributeError, match="num_layers"):
        _everything(version, table)
    table = copy.deepcopy(signatures())
    table["tensorrt"][version]["enums"]["MemoryPoolType"].remove("WORKSPACE")
    with pytest.raises(AttributeError, match="WORKSPACE"):
        _everything(version, table)


@pytest.mark.parametrize("call", sorted(signatures()["cuda-python"]))
def test_a_call_that_cuda_python_does_not_have_fails(call):
    def use(table):
        cuda = CudaPython(fake_runtime(table=table))
        array, address = cuda.pinned((4,), np.uint8), cuda.allocate(4)
        stream = cuda.stream()
        stream.record(lambda: stream.copy_in(address, array))()
        stream.synchronize()
        stream.close()
        cuda.free(address)
        cuda.unpin(array)
        with pytest.raises(CudaError, match="cudaMalloc failed: a failure"):
            CudaPython(fake_runtime(table=table, fails={"cudaMalloc": 1})).allocate(1)

    use(signatures())
    table = copy.deepcopy(signatures())
    table["cuda-python"].pop(call)
    with pytest.raises(AttributeError, match=call):
        use(table)


def test_what_tensorrt_11_took_away_is_away():
    trt = fake_tensorrt("11.4")
    for name in ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"):
        assert not hasattr(trt.BuilderFlag, name)
    assert not hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(trt, "IInt8EntropyCalibrator2")
    assert not hasattr(trt.Builder, "platform_has_fast_int8")
    layer = trt.ILayer("head", "FLOAT")
    with pytest.raises(AttributeError, match="precision"):
        layer.precision = trt.float32


@pytest.mark.slow
def test_the_committed_table_is_what_the_wheels_say(tmp_path):
    """Downloads the bindings of every version; they hold the API without TensorRT itself."""
    fresh = tmp_path / "signatures.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "trt_signatures.py"), "-o", str(fresh)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode and ("pip" in done.stderr or "No such file" in done.stderr):
        pytest.skip("NVIDIA's wheels cannot be had here: no index, or none for this Python")
    assert done.returncode == 0, done.stderr
    assert json.loads(fresh.read_text()) == signatures()


def test_the_error_of_a_machine_without_gpu_is_kept():
    with pytest.raises(MissingDependencyError, match="NVIDIA GPU"):
        build(fake_tensorrt("11.4", Behaviour(no_device=True)), b"g", BuildOptions("float32"))
