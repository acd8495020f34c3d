"""Building: an ONNX graph becomes an engine, by the TensorRT at hand."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.runtime.tensorrt.versions import Abilities, abilities

__all__ = ["BuildOptions", "BuiltEngine", "build", "check_int8", "collecting_logger"]

# Compute capabilities without integer dot products: Nano, Pascal's large chip, TX2.
_SLOW_INT8: Final = ("5.0", "5.2", "5.3", "6.0", "6.2")
_HEAD: Final = "head_"
_MEMORY: Final = (
    "out of memory",
    "outofmemory",
    "cudaerrormemoryallocation",
    "insufficient memory",
)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build."""

    precision: str
    """``float32``, ``float16`` or ``int8``: what the bundle is."""
    workspace_bytes: int = 1 << 30
    """What a layer may take while it runs."""
    dla_core: int | None = None
    """Put what can be onto this deep-learning accelerator; the rest falls back to the GPU."""
    timing_cache: bytes = b""
    calibrator: Any = None
    """Gives the scales of a graph without Q/DQ; TensorRT 8.5 to 10."""
    compute_capabilities: tuple[str, ...] = ()
    """``8.6`` ...: GPUs to build for ahead of time; TensorRT-RTX."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a build gave."""

    content: bytes = field(repr=False)
    timing_cache: bytes = field(repr=False)
    gpu_fallback: tuple[str, ...]
    layers: int
    seconds: float


def build(trt: Any, graph: bytes, options: BuildOptions) -> BuiltEngine:
    """Build an engine.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        graph: an ONNX file made by ``edgeseg export --target tensorrt`` for this kind of module.
        options: how.

    Raises:
        MissingDependencyError: no GPU, or too old.
        ArtefactError: the parser or the builder refuses the graph, or memory does not suffice.
        UsageError: INT8 or a DLA where the device has none.
    """
    have = abilities(trt)
    logger, said = collecting_logger(trt)
    started = time.monotonic()
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # "factory function returned nullptr"
        raise MissingDependencyError(
            f"TensorRT {have.version} cannot build here ({_last(said, str(error))}); it needs an "
            "NVIDIA GPU and its driver"
        ) from None
    _check_device(builder, options)
    network = builder.create_network(_network_flags(trt, have))
    _parse(trt, network, logger, graph, said)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    # Float32 means float32: TF32 rounds factors to ten bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if have.nan_flag:
        config.set_flag(trt.BuilderFlag.STRICT_NANS)
    if have.precision_flags:
        _set_precisions(trt, network, config, options)
    elif options.calibrator is not None:
        raise UsageError(
            f"TensorRT {have.version} has no calibrators; export the bundle with --int8, which "
            "puts the scales into its graph"
        )
    fallback = _use_dla(trt, network, config, options) if options.dla_core is not None else ()
    if options.compute_capabilities:
        _target(trt, config, have, options.compute_capabilities)
    cache = _timing_cache(config, options.timing_cache) if have.timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(said, have)
    return BuiltEngine(
        content=bytes(memoryview(plan)),
        timing_cache=b"" if cache is None else bytes(memoryview(cache.serialize())),
        gpu_fallback=fallback,
        layers=int(network.num_layers),
        seconds=time.monotonic() - started,
    )


def check_int8(compute_capability: str) -> None:
    """UsageError where the GPU has no fast INT8: Nano (5.3) and TX2 (6.2)."""
    if compute_capability in _SLOW_INT8:
        raise UsageError(
            f"a GPU of compute capability {compute_capability} (Jetson Nano is 5.3, TX2 6.2) has "
            "no INT8 arithmetic, and INT8 would be slower than float16; export with --fp16"
        )


def collecting_logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger for TensorRT, and the list of errors and warnings that it fills."""
    said: list[str] = []
    worth_keeping = (
        trt.ILogger.Severity.INTERNAL_ERROR,
        trt.ILogger.Severity.ERROR,
    )

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors instead of printing them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT."""
            if severity in worth_keeping:
                said.append(msg)
                del said[:-50]

    return Logger(), said


def _check_device(builder: Any, options: BuildOptions) -> None:
    # TensorRT 11 no longer tells; its oldest GPUs all have fast INT8.
    if options.precision == "int8" and getattr(builder, "platform_has_fast_int8", True) is False:
        raise UsageError(
            "this GPU has no INT8 arithmetic, and INT8 would be slower than float16; export the "
            "bundle with --fp16"
        )
    if options.dla_core is None:
        return
    cores = int(builder.num_DLA_cores)
    if not 0 <= options.dla_core < cores:
        raise UsageError(
            f"DLA core {options.dla_core} does not exist: this device has {cores}; leave the DLA "
            "option out"
        )
    if options.precision == "float32":
        raise UsageError("a DLA computes float16 and INT8 only; export with --fp16 or --int8")


def _network_flags(trt: Any, have: Abilities) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    bits = 0
    if have.explicit_batch_flag:
        bits |= 1 << int(flags.EXPLICIT_BATCH)
    if not have.precision_flags and have.strongly_typed_flag:
        bits |= 1 << int(flags.STRONGLY_TYPED)
    return bits


def _parse(trt: Any, network: Any, logger: Any, graph: bytes, said: list[str]) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse(graph):
        return
    reasons = [str(parser.get_error(i).desc()) for i in range(int(parser.num_errors))]
    raise ArtefactError(
        f"TensorRT's parser refuses the graph ({_last(reasons or said, 'no reason given')}); "
        "export the bundle again, and report it if it happens again"
    )


def _set_precisions(trt: Any, network: Any, config: Any, options: BuildOptions) -> None:
    if options.precision == "float32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    if options.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
        if options.calibrator is not None:
            config.int8_calibrator = options.calibrator
    # Softmax and logarithm of logits lose rare classes in float16.
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for index in range(int(network.num_layers)):
        layer = network.get_layer(index)
        if not str(layer.name).startswith(_HEAD):
            continue
        output = layer.get_output(0)
        if output is not None and output.dtype == trt.float32:
            layer.precision = trt.float32
            layer.set_output_type(0, trt.float32)


def _use_dla(trt: Any, network: Any, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Default to the DLA; the names of layers that it does not take."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(int(network.num_layers))]
    return tuple(str(layer.name) for layer in layers if not config.can_run_on_DLA(layer))


def _target(trt: Any, config: Any, have: Abilities, wanted: Sequence[str]) -> None:
    if not have.ahead_of_time:
        raise UsageError(
            f"TensorRT {have.version} builds for the GPU that it runs on; use --target "
            "tensorrt-rtx to build ahead of time"
        )
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(wanted)
    for index, capability in enumerate(wanted):
        name = f"SM{capability.replace('.', '')}"
        if name not in known:
            targets = ", ".join(n for n in known if n.startswith("SM"))
            raise UsageError(
                f"TensorRT-RTX {have.version} cannot build for compute capability {capability}; "
                f"it knows {targets}"
            )
        config.set_compute_capability(known[name], index)


def _timing_cache(config: Any, content: bytes) -> Any:
    cache = config.create_timing_cache(content)
    # A cache of another GPU or version is refused: then start an empty one.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _refused(said: list[str], have: Abilities) -> ArtefactError:
    if any(word in line.lower() for line in said for word in _MEMORY):
        return ArtefactError(
            f"TensorRT {have.version} ran out of memory while building "
            f"({_last(said, '')}); close other programs, build with a smaller workspace or export "
            "at a smaller --size"
        )
    return ArtefactError(
        f"TensorRT {have.version} cannot build the engine ({_last(said, 'no reason given')}); "
        "export the bundle again, and report it if it happens again"
    )


def _last(said: Sequence[str], otherwise: str) -> str:
    return " ".join((said[-1] if said else otherwise).split())[:300]
