"""``--target tensorrt`` and ``tensorrt-rtx``: a bundle's graphs for TensorRT, and its engines."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import onnx

from edgeseg.bundle import Bundle, write_bundle
from edgeseg.errors import UsageError
from edgeseg.export.tensorrt_graph import tensorrt_model, without_quantization
from edgeseg.runtime.session import default_scorer
from edgeseg.runtime.tensorrt.builder import check_int8
from edgeseg.runtime.tensorrt.cuda import open_cuda
from edgeseg.runtime.tensorrt.engines import Engine, EngineOptions, ensure_engine
from edgeseg.runtime.tensorrt.graphs import FORMS, INDEX, Form, form_for, graph_name, index_of
from edgeseg.runtime.tensorrt.versions import abilities, import_tensorrt
from edgeseg.scoring.onnx_head import standalone_model

__all__ = ["DESKTOP_TARGETS", "add_graphs", "build_engines", "check_target"]

Target = Literal["tensorrt", "tensorrt-rtx"]

DESKTOP_TARGETS: Final = ("7.5", "8.0", "8.6", "8.9", "12.0")
"""Compute capabilities of Turing to Blackwell cards; what TensorRT-RTX builds for by default."""


def check_target(target: str, precision: str) -> None:
    """Refuse early what could not be built, before minutes go into an export.

    Args:
        target: a value of ``--target``; those that are not TensorRT's pass.
        precision: of the bundle.

    Raises:
        UsageError: a GPU that cannot run bundles of ``precision``.
        MissingDependencyError: the target's package or a GPU is missing.
    """
    if target == "tensorrt-rtx":
        import_tensorrt("tensorrt_rtx")
    elif target == "tensorrt":
        import_tensorrt("tensorrt")
        device = open_cuda().device
        if precision == "int8":
            check_int8(device.compute_capability)


def add_graphs(
    bundle: Bundle,
    scorers: Sequence[str] = (),
    forms: Sequence[Form] = FORMS,
    dla_core: int | None = None,
) -> Bundle:
    """Give a bundle the graphs that TensorRT needs, whole or not at all.

    Args:
        bundle: of any precision.
        scorers: to put into graphs of their own, beside the body; at the bundle's temperatures.
        forms: of INT8 bundles; those of float bundles are all the same, and one is written.
        dla_core: what runs of the bundle put onto this DLA; ``None``: nothing.

    Returns:
        The bundle; graphs of other scorers and forms that it had are gone, and so are its engines
        unless nothing changed.

    Raises:
        UsageError: a scorer that the bundle lacks.
        ArtefactError: integer arithmetic that TensorRT has no form for.
        InputError: the bundle cannot be written.
    """
    height, width = bundle.size
    body = onnx.load(bundle.body_path)
    wanted = forms if bundle.manifest.precision == "int8" else ("qdq",)
    files = {name: (bundle.path / name).read_bytes() for name in bundle.manifest.files}
    files = {k: v for k, v in files.items() if not k.startswith("tensorrt")}
    temperatures = {}
    models: dict[str | None, onnx.ModelProto] = {None: body}
    for scorer in scorers:
        temperatures[scorer] = bundle.scorer_defaults(scorer).temperature
        models[scorer] = standalone_model(
            body, bundle.head, scorer, temperatures[scorer], height, width
        )
    for name, model in models.items():
        for form in wanted:
            files[graph_name(name, form)] = _in_form(model, form).SerializeToString()
    files[INDEX] = index_of(temperatures, dla_core)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if hashes == {name: entry["sha256"] for name, entry in bundle.manifest.files.items()}:
        # Writing the bundle again would take its engines away.
        return bundle
    return Bundle.open(write_bundle(bundle.path, bundle.manifest, files))


def build_engines(
    bundle: Bundle,
    target: Target,
    *,
    scorers: Sequence[str] = (),
    dla_core: int | None = None,
    calibrated: bool = False,
    compute_capabilities: Sequence[str] = DESKTOP_TARGETS,
    workspace_bytes: int = 1 << 30,
    report: Callable[[str], None] = lambda _: None,
    trt: Any = None,
) -> tuple[Bundle, list[Engine]]:
    """What ``edgeseg export --target`` does after the bundle is written.

    Args:
        bundle: as it was exported.
        target: ``tensorrt`` builds for the GPU at hand, ``tensorrt-rtx`` ahead of time.
        scorers: one engine each, head included; default: the bundle's default scorer.
        dla_core: see :class:`EngineOptions`; ``tensorrt`` only.
        calibrated: see :class:`EngineOptions`; ``tensorrt`` only.
        compute_capabilities: ``tensorrt-rtx`` only.
        workspace_bytes: what a layer may take.
        report: is told what is built and why, and what a DLA left to the GPU.
        trt: default: the target's module.

    Returns:
        The bundle with its graphs, and its engines: the body's first, then the scorers'.

    Raises:
        MissingDependencyError: the target's package or a GPU is missing.
        UsageError: INT8 on a GPU without it, or options that the target does not have.
        ArtefactError: the graphs are refused.
    """
    ahead = target == "tensorrt-rtx"
    if ahead and (dla_core is not None or calibrated):
        raise UsageError(
            "TensorRT-RTX has neither DLA nor calibration cache; use --target tensorrt"
        )
    if trt is None:
        trt = import_tensorrt("tensorrt_rtx" if ahead else "tensorrt")
    have = abilities(trt)
    cuda = None if ahead else open_cuda()
    implicit = calibrated or dla_core is not None
    form = form_for(have, bundle.manifest.precision, calibrated=implicit)
    chosen = list(dict.fromkeys(scorers)) or [default_scorer(bundle)]
    report("writing the graphs for TensorRT")
    # The runtime asks for the plain form where nothing else is said.
    bundle = add_graphs(bundle, chosen, tuple(dict.fromkeys((form, "qdq"))), dla_core)
    options = EngineOptions(
        dla_core=dla_core,
        calibrated=calibrated,
        workspace_bytes=workspace_bytes,
        compute_capabilities=tuple(compute_capabilities) if ahead else (),
    )
    device = None if cuda is None else cuda.device
    if cuda is None:
        return bundle, _build(bundle, chosen, trt, device, options, report)
    with cuda.active():
        return bundle, _build(bundle, chosen, trt, device, options, report)


def _build(
    bundle: Bundle,
    scorers: Sequence[str],
    trt: Any,
    device: Any,
    options: EngineOptions,
    report: Callable[[str], None],
) -> list[Engine]:
    return [
        ensure_engine(bundle, scorer, trt, device, options, report) for scorer in (None, *scorers)
    ]


def _in_form(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    if form == "typed":
        return tensorrt_model(model, typed=True)
    plain = tensorrt_model(model)
    return without_quantization(plain) if form == "implicit" else plain
