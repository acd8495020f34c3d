"""Variants of one network, each a bundle in a temporary folder, opened on one engine."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import onnx

from edgeseg.bundle import BODY, HEAD, Bundle, Manifest, write_bundle
from edgeseg.compression.calibration import Ranges
from edgeseg.compression.groups import Group
from edgeseg.compression.quantize_onnx import QuantizedBody, quantize_body
from edgeseg.runtime.backends import BodySpec, open_backend
from edgeseg.runtime.machine import available_cores, has_native_bf16
from edgeseg.runtime.session import Session

__all__ = ["Variant", "Workbench", "names_of"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A form of the network that can be opened."""

    bundle: Bundle
    quantized: QuantizedBody | None
    """``None`` for the float body."""


def names_of(groups: Iterable[Group]) -> frozenset[str]:
    """The convolutions of ``groups``, as ``keep_float`` of the quantizer takes them."""
    return frozenset(name for group in groups for name in group.convolutions)


class Workbench:
    """Makes variants and opens them; its folder goes when it is closed.

    Args:
        body: float body.
        head: content of ``head.safetensors``.
        manifest: of the network; precision and files are filled in.
        ranges: to quantize with.
        backend: ``auto`` or the name of an engine; ``auto`` is settled by the INT8 body.
        threads: of the engine; ``None``: all cores.
        compute_precision: of what is left in float: ``f32``, ``bf16``, or ``auto``: bf16 where the
            engine and the processor both compute in it.
    """

    def __init__(
        self,
        body: onnx.ModelProto,
        head: bytes,
        manifest: Manifest,
        ranges: Ranges,
        *,
        backend: str = "auto",
        threads: int | None = None,
        compute_precision: str = "auto",
        correct_bias: bool = True,
    ) -> None:
        self.body = body
        self.ranges = ranges
        self.correct_bias = correct_bias
        self._head = head
        self._manifest = manifest
        self._threads = threads
        self._folder = TemporaryDirectory(prefix="edgeseg-gate-")
        self._count = 0
        self.backend = backend
        self.compute_precision = "f32"
        try:
            if backend == "auto":
                with Session(self.int8().bundle, "auto", threads) as session:
                    self.backend = session.backend_name
            native = self.backend == "openvino" and has_native_bf16()
            self.compute_precision = (
                ("bf16" if native else "f32") if compute_precision == "auto" else compute_precision
            )
        except BaseException:
            self.close()
            raise

    def float32(self) -> Variant:
        """The float body, computed in float32."""
        return Variant(self._write(self.body, "float32", "f32"), None)

    def int8(
        self,
        keep: Iterable[Group] = (),
        *,
        correct_bias: bool | None = None,
        compute_precision: str | None = None,
    ) -> Variant:
        """The INT8 body.

        Args:
            keep: groups to leave in float.
            correct_bias: default: the workbench's.
            compute_precision: default: the workbench's where something stays in float, else f32.
        """
        names = names_of(keep)
        quantized = quantize_body(
            self.body,
            self.ranges,
            keep_float=names,
            correct_bias=self.correct_bias if correct_bias is None else correct_bias,
        )
        return self.put(
            quantized, compute_precision or (self.compute_precision if names else "f32")
        )

    def put(self, quantized: QuantizedBody, compute_precision: str) -> Variant:
        """An INT8 body that was changed after it was made."""
        return Variant(self._write(quantized.model, "int8", compute_precision), quantized)

    def open(self, variant: Variant) -> Session:
        """Open a variant, with float32 scores; the caller closes it.

        Raises:
            ArtefactError: the engine refuses it, or crashes on it, as a child process finds out.
        """
        bundle = variant.bundle
        spec = BodySpec.of(bundle)
        threads = self._threads or available_cores()
        engine = open_backend(self.backend, spec, threads)
        return Session(bundle, engine, threads, score_dtype="float32")

    def close(self) -> None:
        """Remove every variant from the disk."""
        self._folder.cleanup()

    def __enter__(self) -> "Workbench":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, model: onnx.ModelProto, precision: str, compute_precision: str) -> Bundle:
        self._count += 1
        manifest = replace(self._manifest, precision=precision, compute_precision=compute_precision)
        path = Path(self._folder.name) / str(self._count)
        files = {BODY: model.SerializeToString(), HEAD: self._head}
        return Bundle.open(write_bundle(path, manifest, files))
