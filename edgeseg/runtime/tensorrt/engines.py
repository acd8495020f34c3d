"""Engines beside a bundle: used where they fit, built again where anything differs."""

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeseg import __version__
from edgeseg.bundle import CALIBRATION, Bundle
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.files import write_whole
from edgeseg.runtime.cache import cache_folder
from edgeseg.runtime.tensorrt.builder import BuildOptions, build, check_int8
from edgeseg.runtime.tensorrt.calibration_cache import cache_of_bundle
from edgeseg.runtime.tensorrt.calibrator import cache_calibrator
from edgeseg.runtime.tensorrt.cuda import Device
from edgeseg.runtime.tensorrt.graphs import (
    exported_dla_core,
    form_for,
    graph_bytes,
    graph_temperature,
)
from edgeseg.runtime.tensorrt.sidecar import BuildKey, Sidecar
from edgeseg.runtime.tensorrt.versions import Abilities, abilities

__all__ = ["Engine", "EngineOptions", "ensure_engine", "exported_options", "print_to_stderr"]

_TIMING: Final = "tensorrt.timing"
_MAX_TIMING_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What a user may ask of an engine."""

    dla_core: int | None = None
    """Put what can be onto this DLA. INT8 then takes its scales from a calibration cache,
    because a DLA knows no Q/DQ.
    """
    calibrated: bool = False
    """INT8 scales from a calibration cache instead of Q/DQ nodes; TensorRT 8.5 to 10."""
    workspace_bytes: int = 1 << 30
    compute_capabilities: tuple[str, ...] = ()
    """Build ahead of time for these; TensorRT-RTX."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that fits."""

    path: Path
    sidecar: Sidecar
    built: bool
    """It was not there, or was built again."""


def exported_options(bundle: Bundle, have: Abilities) -> EngineOptions:
    """What a bundle was exported for; TensorRT-RTX knows no DLA."""
    return EngineOptions(dla_core=exported_dla_core(bundle) if have.package == "tensorrt" else None)


def print_to_stderr(message: str) -> None:
    """Where reasons go unless the caller wants them elsewhere."""
    print(message, file=sys.stderr)


def ensure_engine(
    bundle: Bundle,
    scorer: str | None,
    trt: Any,
    device: Device | None,
    options: EngineOptions | None = None,
    report: Callable[[str], None] = print_to_stderr,
) -> Engine:
    """The engine of a bundle for this machine; built where it is missing or does not fit.

    Args:
        bundle: with the graph that this TensorRT needs.
        scorer: put into the engine; ``None``: the engine ends at the features.
        trt: the module ``tensorrt`` or ``tensorrt_rtx``.
        device: the GPU; ``None`` only for builds ahead of time.
        options: how to build; default: as the bundle was exported.
        report: is told why an engine is built, and what a DLA left to the GPU.

    Raises:
        UsageError: INT8 on a GPU without it, or a scorer that the bundle lacks.
        ArtefactError: no graph, a refused graph, or an engine file that this project did not
            write.
        InputError: the engine cannot be written.
    """
    have = abilities(trt)
    options = options or exported_options(bundle, have)
    precision = bundle.manifest.precision
    if device is None and not options.compute_capabilities:
        raise UsageError("an engine is built for a GPU: name compute capabilities or have one here")
    if precision == "int8" and device is not None:
        check_int8(device.compute_capability)
    if scorer is not None:
        bundle.scorer_defaults(scorer)
    calibrated = precision == "int8" and (options.calibrated or options.dla_core is not None)
    form = form_for(have, precision, calibrated=calibrated)
    graph, sha256 = graph_bytes(bundle, scorer, form)
    scales = None
    if calibrated:
        scales = cache_of_bundle(bundle.path / CALIBRATION, have.cache_version).render()
    key = BuildKey(
        package=have.package,
        tensorrt=have.version,
        cuda="" if device is None else device.cuda,
        gpu="" if device is None else device.name,
        compute_capability=(
            ",".join(options.compute_capabilities) if device is None else device.compute_capability
        ),
        onnx_sha256=sha256,
        precision=precision,
        scorer=scorer,
        temperature=None if scorer is None else graph_temperature(bundle, scorer),
        dla_core=options.dla_core,
        calibration_sha256=None if scales is None else hashlib.sha256(scales).hexdigest(),
    )
    name = _file_name(have, scorer, options)
    folder = _folder(bundle)
    if folder != bundle.path:
        found, _ = _look(bundle.path / name, key)
        if found is not None:
            return Engine(bundle.path / name, found, built=False)
    with _locked(folder):
        found, reason = _look(folder / name, key)
        if found is not None:
            return Engine(folder / name, found, built=False)
        report(f"building '{folder / name}' ({reason}); this takes minutes on a small device")
        timing = folder / _TIMING
        built = build(
            trt,
            graph,
            BuildOptions(
                precision=precision,
                workspace_bytes=options.workspace_bytes,
                dla_core=options.dla_core,
                timing_cache=_read_timing(timing),
                calibrator=None if scales is None else cache_calibrator(trt, scales),
                compute_capabilities=options.compute_capabilities if device is None else (),
            ),
        )
        if options.dla_core is not None:
            report(_told(built.gpu_fallback, built.layers, options.dla_core))
        sidecar = Sidecar(
            key=key,
            engine_sha256=hashlib.sha256(built.content).hexdigest(),
            engine_bytes=len(built.content),
            build_seconds=round(built.seconds, 2),
            gpu_fallback=built.gpu_fallback,
            created_by=f"edgeseg {__version__}",
        )
        _put(folder / name, built.content, sidecar)
        if built.timing_cache:
            # Only time is lost without it.
            with contextlib.suppress(OSError):
                write_whole(timing, built.timing_cache)
    return Engine(folder / name, sidecar, built=True)


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine lies."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(engine: Engine) -> bytes:
    """The engine's bytes, as its sidecar describes them.

    Raises:
        ArtefactError: the file is not the one that was built.
    """
    content = _read(engine.path)
    if hashlib.sha256(content).hexdigest() != engine.sidecar.engine_sha256:
        raise _from_elsewhere(engine.path)
    return content


def _look(path: Path, key: BuildKey) -> tuple[Sidecar | None, str]:
    """The sidecar of an engine that fits; or why one must be built."""
    if not path.exists():
        return None, "there is none yet"
    beside = sidecar_path(path)
    if not beside.exists():
        raise _from_elsewhere(path)
    sidecar = Sidecar.read(beside)
    if hashlib.sha256(_read(path)).hexdigest() != sidecar.engine_sha256:
        raise _from_elsewhere(path)
    differences = key.differences(sidecar.key)
    return (None, "; ".join(differences)) if differences else (sidecar, "")


def _from_elsewhere(path: Path) -> ArtefactError:
    return ArtefactError(
        f"'{path}' is not an engine that edgeseg built here (no sidecar that describes it); "
        "engines run code and fit one machine only, so delete it and let it be built again"
    )


def _file_name(have: Abilities, scorer: str | None, options: EngineOptions) -> str:
    parts = [scorer or "body"]
    if have.package == "tensorrt_rtx":
        parts.append("rtx")
    if options.dla_core is not None:
        parts.append(f"dla{options.dla_core}")
    elif options.calibrated:
        parts.append("calibrated")
    return f"{'-'.join(parts)}.engine"


def _folder(bundle: Bundle) -> Path:
    """Where engines are built: the bundle's own folder, or the user's cache where that cannot be
    written to.
    """
    if os.access(bundle.path, os.W_OK):
        return bundle.path
    return cache_folder() / "engines" / bundle.body_sha256[:32]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time builds in a folder; the others then find the engine."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".engines.lock").open("w")
    except OSError as error:
        raise InputError(
            f"engines cannot be written to '{folder}' ({error.strerror}); copy the bundle to where "
            "they can be"
        ) from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _put(path: Path, content: bytes, sidecar: Sidecar) -> None:
    """Engine and sidecar, whole or not at all.

    Without an engine a sidecar means nothing; so the old engine goes first and the new one comes
    last, and whatever interrupts in between leaves nothing but an engine to be built.
    """
    try:
        path.unlink(missing_ok=True)
        write_whole(sidecar_path(path), sidecar.to_json().encode())
        write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}); free some space or copy the bundle "
            "to where it can be"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"engine '{path}' cannot be read ({error.strerror}); delete it and let it be built "
            "again"
        ) from None


def _read_timing(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.stat().st_size <= _MAX_TIMING_BYTES else b""
    except OSError:
        return b""


def _told(fallback: tuple[str, ...], layers: int, core: int) -> str:
    if not fallback:
        return f"DLA {core} takes all {layers} layers"
    named = ", ".join(fallback[:8])
    more = f" and {len(fallback) - 8} more" if len(fallback) > 8 else ""
    return (
        f"DLA {core} takes {layers - len(fallback)} of {layers} layers; the GPU takes {named}{more}"
    )
