"""Fakes of TensorRT and CUDA that take the calls that the real bindings take, and no others.

Names and arguments come from ``tensorrt_signatures.json``, which ``tools/trt_signatures.py`` reads
out of NVIDIA's wheels: a class, method, property or enum member that a version does not have is
not in its fake, and an argument that a call does not have is a TypeError.
"""

import ctypes
import enum
import json
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path

import numpy as np

from edgeseg.runtime.tensorrt.cuda import CudaError, Device, OutOfMemoryError

__all__ = ["VERSIONS", "Behaviour", "FakeCuda", "fake_runtime", "fake_tensorrt", "signatures"]

VERSIONS = ("8.6", "10.3", "10.16", "11.4")

MAGIC = b"FAKE-ENGINE"


@cache
def signatures():
    """The committed table."""
    return json.loads((Path(__file__).parent / "tensorrt_signatures.json").read_text())


@dataclass
class Behaviour:
    """What the device and TensorRT do; and what was done to them."""

    tensors: dict = field(
        default_factory=lambda: {
            "frame": ("INPUT", (1, 8, 16, 3), "UINT8"),
            "features": ("OUTPUT", (1, 32, 4), "FLOAT"),
        }
    )
    layers: tuple = (("conv_0", "FLOAT"), ("head_1_softmax", "FLOAT"), ("head_2_argmax", "INT32"))
    parser_errors: tuple = ()
    build_fails_with: str | None = None
    no_device: bool = False
    fast_int8: bool = True
    dla_cores: int = 0
    dla_takes: tuple = ()
    context_fails: bool = False
    enqueue_fails_after: int | None = None
    timing_cache_fits: bool = True
    calibration_cache: bytes | None = None
    calls: list = field(default_factory=list)
    configs: list = field(default_factory=list)
    built: int = 0
    enqueued: int = 0


def fake_tensorrt(version, behaviour=None, table=None):
    """A module with the API of TensorRT ``version`` (one of :data:`VERSIONS`).

    ``table``: another than the committed one, for mutations.
    """
    does = behaviour or Behaviour()
    api = (table or signatures())["tensorrt"][version]
    trt = types.SimpleNamespace(__name__="tensorrt", __version__=api["version"])
    for name, members in api["enums"].items():
        values = {member: i for i, member in enumerate(members)}
        setattr(trt, name, enum.IntEnum(name, values))
    for name in api["constants"]:
        kinds = {"float32": "FLOAT", "float16": "HALF", "uint8": "UINT8", "int8": "INT8"}
        setattr(trt, name, trt.DataType[kinds[name]])
    for name, implementation in _implementations(trt, does).items():
        if name in api["classes"]:
            setattr(trt, name, _restricted(name, implementation, api["classes"][name]))
    trt.ILogger.Severity = trt.Severity
    del trt.Severity
    return trt


def _restricted(name, implementation, api):
    """A class with what ``implementation`` and the version both have."""
    namespace = {}
    for attribute, value in vars(implementation).items():
        # Of what only TensorRT makes, __init__ has no signature.
        forms = api["methods"].get(attribute)
        if forms:
            namespace[attribute] = _checked(f"{name}.{attribute}", value, forms)
        elif attribute in api["properties"] or attribute.startswith("_"):
            namespace[attribute] = value
    for attribute in ("__dict__", "__weakref__"):
        namespace.pop(attribute, None)

    def set_attribute(self, attribute, value):
        # As with pybind11: what Python derives from a class has attributes of its own.
        known = attribute.startswith("_") or api["properties"].get(attribute)
        if type(self) is kind and not known:
            raise AttributeError(f"{name} has no attribute {attribute} that can be set")
        object.__setattr__(self, attribute, value)

    namespace["__setattr__"] = set_attribute
    kind = type(name, (), namespace)
    return kind


def _checked(name, function, forms):
    """``function``, if the arguments fit one of the real forms."""

    @wraps(function)
    def call(self, *given, **named):
        for form in forms:
            names = [a.rstrip("=") for a in form]
            needed = {a for a in form if not a.endswith("=")} - set(names[: len(given)])
            fits = len(given) <= len(names) and set(named) <= set(names[len(given) :])
            if fits and needed <= set(named):
                return function(self, *given, **named)
        raise TypeError(f"{name}(): incompatible arguments {given!r} {named!r}, has {forms}")

    return call


def _implementations(trt, does):
    class ILogger:
        def __init__(self):
            pass

        def log(self, severity, msg):
            raise NotImplementedError

    def complain(logger, text):
        logger.log(trt.ILogger.Severity.ERROR, text)

    class Tensor:
        def __init__(self, kind):
            self._kind = kind

        dtype = property(lambda self: trt.DataType[self._kind])

    class Layer:
        def __init__(self, name, kind):
            self._name, self._kind, self._types = name, kind, []

        name = property(lambda self: self._name)
        # Set by the builder; a plain attribute under a setter.
        precision = property(
            lambda self: self.__dict__.get("_precision"),
            lambda self, value: self.__dict__.__setitem__("_precision", value),
        )

        def get_output(self, index):
            return trt.ITensor(self._kind)

        def set_output_type(self, index, dtype):
            self._types.append((index, dtype))

    class Network:
        def __init__(self, flags=0):
            self._flags = flags
            self._layers = [trt.ILayer(*layer) for layer in does.layers]

        num_layers = property(lambda self: len(self._layers))

        def get_layer(self, index):
            return self._layers[index]

    class Error:
        def __init__(self, text):
            self._text = text

        def desc(self):
            return self._text

    class Parser:
        def __init__(self, network, logger):
            self._logger = logger

        num_errors = property(lambda self: len(does.parser_errors))

        def parse(self, model, path=None):
            does.calls.append(("parse", bytes(model)))
            return not does.parser_errors

        def get_error(self, index):
            return trt.ParserError(does.parser_errors[index])

    class TimingCache:
        def __init__(self, content):
            self._content = content

        def serialize(self):
            return _buffer(b"TIMING")

    class Config:
        def __init__(self):
            object.__setattr__(self, "_state", {})
            self._flags, self._pools, self._cache = set(), {}, None
            does.configs.append(self)

        def set_flag(self, flag):
            assert isinstance(flag, trt.BuilderFlag)
            self._flags.add(flag.name)

        def clear_flag(self, flag):
            assert isinstance(flag, trt.BuilderFlag)
            self._flags.discard(flag.name)
            does.calls.append(("clear", flag.name))

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[pool.name] = pool_size

        def create_timing_cache(self, serialized_timing_cache):
            return trt.ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache, ignore_mismatch):
            assert ignore_mismatch is False
            if cache._content and not does.timing_cache_fits:
                return False
            self._cache = cache
            return True

        def can_run_on_DLA(self, layer):  # noqa: N802
            return layer.name in does.dla_takes

        int8_calibrator = _slot("int8_calibrator")
        default_device_type = _slot("default_device_type")
        DLA_core = _slot("DLA_core")

    class Builder:
        def __init__(self, logger):
            if does.no_device:
                complain(logger, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        platform_has_fast_int8 = property(lambda self: does.fast_int8)
        num_DLA_cores = property(lambda self: does.dla_cores)  # noqa: N815

        def create_network(self, flags=0):
            network = trt.INetworkDefinition(flags)
            does.calls.append(("network", flags, network))
            return network

        def create_builder_config(self):
            return trt.IBuilderConfig()

        def build_serialized_network(self, network, config):
            calibrator = config._state.get("int8_calibrator")
            if calibrator is not None:
                _calibrate(calibrator, does)
            if does.build_fails_with is not None:
                complain(self._logger, does.build_fails_with)
                return None
            does.built += 1
            return _buffer(MAGIC + str(does.built).encode())

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            if not bytes(serialized_engine).startswith(MAGIC):
                complain(self._logger, "Magic tag does not match")
                return None
            return trt.ICudaEngine(self._logger)

    class CudaEngine:
        def __init__(self, logger):
            self._logger = logger

        num_io_tensors = property(lambda self: len(does.tensors))

        def get_tensor_name(self, index):
            return list(does.tensors)[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode[does.tensors[name][0]]

        def get_tensor_shape(self, name):
            return does.tensors[name][1]

        def get_tensor_dtype(self, name):
            return trt.DataType[does.tensors[name][2]]

        def create_execution_context(self):
            if does.context_fails:
                complain(self._logger, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
                return None
            return trt.IExecutionContext(self._logger)

    class ExecutionContext:
        def __init__(self, logger):
            self._logger, self._addresses = logger, {}

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return name in does.tensors

        def execute_async_v3(self, stream_handle):
            does.enqueued += 1
            limit = does.enqueue_fails_after
            if limit is not None and does.enqueued > limit:
                complain(self._logger, "Error Code 1: Cuda Runtime (an illegal memory access)")
                return False
            FakeStream.by_handle[stream_handle].do(self._compute)
            return True

        def _compute(self):
            """Every output is the mean of the frame, in its own type."""
            arrays = {
                name: _at(self._addresses[name], shape, kind)
                for name, (_, shape, kind) in does.tensors.items()
            }
            mean = arrays["frame"].mean()
            for name, (mode, _, _) in does.tensors.items():
                if mode == "OUTPUT":
                    arrays[name][...] = mean

    class Calibrator:
        def __init__(self):
            pass

        def get_batch_size(self):
            raise NotImplementedError

        def get_batch(self, names):
            raise NotImplementedError

        def read_calibration_cache(self):
            raise NotImplementedError

        def write_calibration_cache(self, cache):
            raise NotImplementedError

    return {
        "Builder": Builder,
        "IBuilderConfig": Config,
        "ICudaEngine": CudaEngine,
        "IExecutionContext": ExecutionContext,
        "IInt8EntropyCalibrator2": Calibrator,
        "IInt8MinMaxCalibrator": Calibrator,
        "ILayer": Layer,
        "ILogger": ILogger,
        "INetworkDefinition": Network,
        "ITensor": Tensor,
        "ITimingCache": TimingCache,
        "OnnxParser": Parser,
        "ParserError": Error,
        "Runtime": Runtime,
    }


def _slot(name):
    def store(self, value):
        self._state[name] = value

    return property(lambda self: self._state.get(name), store)


def _buffer(content):
    """What IHostMemory is to its readers: a buffer."""
    return memoryview(content)


def _calibrate(calibrator, does):
    """What TensorRT does with a calibrator."""
    assert calibrator.get_batch_size() == 1
    cached = calibrator.read_calibration_cache()
    does.calls.append(("cache", cached))
    if cached is not None:
        return
    while (batch := calibrator.get_batch(["frame"])) is not None:
        does.calls.append(("batch", _at(batch[0], does.tensors["frame"][1], "UINT8").copy()))
    calibrator.write_calibration_cache(memoryview(does.calibration_cache or b""))


def _at(address, shape, kind):
    dtype = {"UINT8": np.uint8, "FLOAT": np.float32, "HALF": np.float16}[kind]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


class FakeStream:
    """Does its work at once, or notes it while a graph is recorded."""

    by_handle: dict = {}  # noqa: RUF012

    def __init__(self, cuda):
        self.cuda = cuda
        self.handle = 1000 + len(FakeStream.by_handle)
        FakeStream.by_handle[self.handle] = self
        self.recorded = None
        self.log = []
        self.closed = False

    def do(self, work, name="compute"):
        self.log.append(name)
        work() if self.recorded is None else self.recorded.append(work)

    def copy_in(self, address, source):
        self.cuda.bytes_in += source.nbytes
        self.do(lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes), "in")

    def copy_out(self, target, address):
        self.cuda.bytes_out += target.nbytes
        self.do(lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes), "out")

    def synchronize(self):
        assert self.recorded is None
        self.log.append("synchronize")

    def record(self, work):
        if not self.cuda.graphs:
            raise CudaError("operation not permitted when stream is capturing")
        self.recorded = []
        try:
            work()
        finally:
            recorded, self.recorded = self.recorded, None

        def launch():
            self.log.append("launch")
            for item in recorded:
                item()

        return launch

    def close(self):
        self.closed = True


class FakeCuda:
    """A GPU whose memory is the host's; counts what is taken and given back."""

    name = "fake"

    def __init__(self, capability="8.7", *, limit=1 << 30, graphs=True, gpu="Orin"):
        self.device = Device(gpu, capability, "12.6", limit)
        self.limit = limit
        self.graphs = graphs
        self.memory = {}
        self.pins = {}
        self.streams = []
        self.depth = 0
        self.allocations = 0
        self.bytes_in = self.bytes_out = 0

    @contextmanager
    def active(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def allocate(self, size):
        assert self.depth, "no active context"
        if sum(map(len, self.memory.values())) + size > self.limit:
            raise OutOfMemoryError("the GPU's memory does not suffice")
        block = np.zeros(size, np.uint8)
        self.memory[block.ctypes.data] = block
        self.allocations += 1
        return block.ctypes.data

    def free(self, address):
        del self.memory[address]

    def pinned(self, shape, dtype):
        array = np.zeros(shape, dtype)
        self.pins[array.ctypes.data] = array
        self.allocations += 1
        return array

    def unpin(self, array):
        del self.pins[array.ctypes.data]

    def stream(self):
        self.streams.append(FakeStream(self))
        return self.streams[-1]


def fake_runtime(*, devices=1, fails=None, table=None):
    """cuda-python's ``cuda.bindings.runtime``: answers tuples, takes the real arguments.

    ``fails``: name of a call -> error code that it answers.
    """
    fails = fails or {}
    api = (table or signatures())["cuda-python"]
    calls, memory = [], {}
    properties = types.SimpleNamespace(name=b"Orin", major=8, minor=7, totalGlobalMem=1 << 33)

    def malloc(size):
        block = (ctypes.c_uint8 * size)()
        memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def memcpy(dst, src, count, kind, stream):
        ctypes.memmove(dst, src, count)

    results = {
        "cudaGetDeviceCount": lambda: devices,
        "cudaGetDeviceProperties": lambda device: properties,
        "cudaRuntimeGetVersion": lambda: 12060,
        "cudaMalloc": malloc,
        "cudaMallocHost": malloc,
        "cudaFree": lambda p: memory.pop(p) and None,
        "cudaFreeHost": lambda p: memory.pop(p) and None,
        "cudaMemcpyAsync": memcpy,
        "cudaStreamCreateWithFlags": lambda flags: 77,
        "cudaStreamEndCapture": lambda stream: 88,
        "cudaGraphInstantiate": lambda graph, flags: 99,
    }
    module = types.SimpleNamespace(calls=calls, memory=memory)

    def make(name, arguments):
        def call(*given):
            if len(given) != len(arguments):
                raise TypeError(f"{name}() takes {arguments}, not {given}")
            if name == "cudaGetErrorString":
                return 0, b"a failure"
            calls.append(name)
            if name in fails:
                return fails[name], None
            result = results[name](*given) if name in results else None
            return (0,) if result is None else (0, result)

        return call

    for name, arguments in api.items():
        setattr(module, name, make(name, arguments))
    module.cudaMemcpyKind = types.SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
    )
    module.cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    return module
