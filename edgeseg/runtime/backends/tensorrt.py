"""TensorRT, or TensorRT-RTX where only that is installed, on the first GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError
from edgeseg.runtime.backends import BodySpec
from edgeseg.runtime.tensorrt.cuda import Cuda, open_cuda
from edgeseg.runtime.tensorrt.engines import (
    Engine,
    EngineOptions,
    ensure_engine,
    exported_options,
    print_to_stderr,
    read_engine,
)
from edgeseg.runtime.tensorrt.execution import EngineRunner
from edgeseg.runtime.tensorrt.gpu_head import GpuHead, find_cubin
from edgeseg.runtime.tensorrt.graphs import form_for, graph_temperature, has_graph
from edgeseg.runtime.tensorrt.versions import abilities, import_tensorrt, installed

__all__ = [
    "TensorRtBackend",
    "open_engine",
    "open_kernel_engine",
    "open_scoring_engine",
    "scoring_backend",
]


class TensorRtBackend:
    """An engine that ends at the features, or at class map and score."""

    name = "tensorrt"

    def __init__(
        self, trt: Any, cuda: Cuda, engine: Engine, slots: int = 1, head: GpuHead | None = None
    ) -> None:
        self._runner = EngineRunner(trt, cuda, read_engine(engine), slots, head)
        self._head = head
        self._trt = trt
        self._cuda = cuda
        self._engine = engine

    @property
    def scorer(self) -> str | None:
        """The scorer in the engine or behind it; ``None`` where features come out."""
        return self._engine.sidecar.key.scorer if self._head is None else self._head.scorer

    @property
    def temperature(self) -> float | None:
        """The scorer's temperature."""
        if self._head is not None:
            return self._head.temperature
        return self._engine.sidecar.key.temperature

    def infer(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See :class:`edgeseg.runtime.backends.Backend`; for engines that end at the features."""
        if self.scorer is not None:
            raise ArtefactError(
                f"'{self._engine.path}' gives scores and no features; build one without a scorer"
            )
        features: npt.NDArray[np.float32] = self._runner.run(frame)["features"]
        return features

    def score(
        self, frame: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        """Class map uint8 and score float16, ``[H, W]`` both, of an engine with a scorer: views
        that the next call overwrites.
        """
        self.submit(frame)
        return self.collect()

    def submit(self, frame: npt.NDArray[np.uint8]) -> None:
        """Start a frame, uint8 ``[1, H, W, 3]``; see :meth:`EngineRunner.submit`."""
        if self.scorer is None:
            raise ArtefactError(
                f"'{self._engine.path}' ends at the features; build one with a scorer"
            )
        self._runner.submit(frame)

    def collect(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        """:meth:`score` of the oldest frame that :meth:`submit` started."""
        outputs = self._runner.collect()
        return outputs["class_map"][0], outputs["score"][0]

    def describe(self) -> dict[str, Any]:
        """See :class:`edgeseg.runtime.backends.Backend`."""
        key = self._engine.sidecar.key
        precision = {"float32": "f32", "float16": "f16", "int8": "f16"}[key.precision]
        return {
            "backend": self.name,
            "engine_version": key.tensorrt,
            "provider": self._trt.__name__,
            "threads": 1,
            "compute_precision": precision,
            "gpu": self._cuda.device.name,
            "cuda": self._cuda.device.cuda,
            "cuda_package": self._cuda.name,
            "cuda_graph": self._runner.graph_reason is None,
            "cuda_graph_reason": self._runner.graph_reason,
            "dla_core": key.dla_core,
            "scorer_in_engine": key.scorer,
            "head_kernel": self._head is not None,
        }

    def close(self) -> None:
        """Free the engine and its buffers."""
        self._runner.close()


def open_engine(body: BodySpec, threads: int) -> TensorRtBackend:
    """The engine of the bundle that ``body`` lies in, up to the features.

    Raises:
        MissingDependencyError: no TensorRT, no GPU.
        ArtefactError: the bundle has no graph for TensorRT, or its parser refuses it.
    """
    bundle = Bundle.open(body.path.parent)
    backend = open_scoring_engine(bundle, None)
    (shape, dtype) = backend._runner.inputs.get("frame", ((), np.void))
    body.check_input("frame", np.dtype(dtype).name, list(shape))
    (shape, dtype) = backend._runner.outputs.get("features", ((), np.void))
    body.check_output("features", np.dtype(dtype).name, list(shape))
    return backend


def open_scoring_engine(
    bundle: Bundle,
    scorer: str | None,
    options: EngineOptions | None = None,
    *,
    slots: int = 1,
    report: Callable[[str], None] = print_to_stderr,
    trt: Any = None,
    cuda: Cuda | None = None,
) -> TensorRtBackend:
    """An engine with ``scorer`` in it, built first where need be.

    Args:
        bundle: with graphs for TensorRT.
        scorer: of the bundle; ``None`` for the features.
        options: see :class:`EngineOptions`.
        slots: frames under way at a time; 2 overlaps copies with computing.
        report: is told why an engine is built.
        trt: TensorRT's module; default: ``tensorrt``, else ``tensorrt_rtx``.
        cuda: default: the first GPU.

    Raises:
        MissingDependencyError: no TensorRT, no GPU.
        UsageError: INT8 on a GPU without it, or a scorer that the bundle lacks.
        ArtefactError: no graph, a refused graph, or an engine that was not built here.
    """
    if trt is None:
        trt = import_tensorrt(next(iter(installed()), "tensorrt"))
    if cuda is None:
        cuda = open_cuda()
    with cuda.active():
        engine = ensure_engine(bundle, scorer, trt, cuda.device, options, report)
    return TensorRtBackend(trt, cuda, engine, slots)


def open_kernel_engine(
    bundle: Bundle,
    scorer: str,
    temperature: float,
    options: EngineOptions | None = None,
    *,
    slots: int = 1,
    report: Callable[[str], None] = print_to_stderr,
    trt: Any = None,
    cuda: Cuda | None = None,
    make_head: Callable[..., GpuHead] = GpuHead,
) -> TensorRtBackend:
    """The engine of the body with the head's kernel behind it: any scorer of the bundle at any
    temperature, without building an engine for it.

    Arguments and errors are those of :func:`open_scoring_engine`; besides, MissingDependencyError
    where the kernel cannot be compiled for this GPU.
    """
    bundle.scorer_defaults(scorer)
    if trt is None:
        trt = import_tensorrt(next(iter(installed()), "tensorrt"))
    if cuda is None:
        cuda = open_cuda()
    cubin = find_cubin(cuda.device.compute_capability, bundle.head.num_outputs)
    with cuda.active():
        engine = ensure_engine(bundle, None, trt, cuda.device, options, report)
        head = make_head(cuda, cubin, bundle.head, *bundle.size, scorer, temperature)
        try:
            return TensorRtBackend(trt, cuda, engine, slots, head)
        except BaseException:
            head.close()
            raise


def scoring_backend(bundle: Bundle, scorer: str, temperature: float) -> TensorRtBackend | None:
    """A backend that gives class map and score: by the engine where the bundle has a graph of this
    scorer at this temperature, else by the kernel where it can be compiled; ``None`` where
    neither is, so that the head runs on the processor.
    """
    trt = import_tensorrt(next(iter(installed()), "tensorrt"))
    have = abilities(trt)
    calibrated = exported_options(bundle, have).dla_core is not None
    form = form_for(have, bundle.manifest.precision, calibrated=calibrated)
    if has_graph(bundle, scorer, form) and graph_temperature(bundle, scorer) == temperature:
        backend = open_scoring_engine(bundle, scorer, trt=trt)
    else:
        try:
            backend = open_kernel_engine(bundle, scorer, temperature, trt=trt)
        except MissingDependencyError:
            return None
    outputs = backend._runner.outputs
    expected = (1, *bundle.size)
    found = [outputs.get(name, ((), np.void))[0] for name in ("class_map", "score")]
    if found != [expected, expected]:
        backend.close()
        raise ArtefactError(
            f"the engine of '{bundle.path}' gives {found} for a frame of {list(bundle.size)}; "
            "delete it and let it be built again"
        )
    return backend
