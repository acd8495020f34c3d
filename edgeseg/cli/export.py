"""`edgeseg export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeseg.cli.export_gate import (
    MAX_NOISE,
    FloatType,
    Granularity,
    Method,
    gate_options,
    refuse_gate_options,
)
from edgeseg.cli.given import given

__all__ = ["export_command"]


def export_command(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="safetensors of this project or a published checkpoint; "
            "default: the shipped weights."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Static INT8, head in float.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and activations float16.")] = False,
    size: Annotated[str, typer.Option(help="Frame size, HxW pixels.")] = "512x1024",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images (searched recursively) or JSON of observed ranges; "
            "default: the ranges shipped with the shipped weights."
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=64, help="Images to calibrate with.")] = 16,
    calibration_method: Annotated[
        Method | None,
        typer.Option(
            help="How far eight bits reach; default: minmax, or what a file of ranges says."
        ),
    ] = None,
    percentile: Annotated[
        float | None,
        typer.Option(metavar="P", help="Of --calibration-method percentile; default: 99.99."),
    ] = None,
    widen: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="How far ranges go towards those of harsher forms of the images, 0 to 1, so that "
            "frames unlike them are not cut off; needs images; default: 0.5, ENet 0.25.",
        ),
    ] = None,
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Let biases take up the mean error of rounded weights; default: yes, or what a "
            "file of ranges says.",
        ),
    ] = None,
    recover: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            min=1,
            help="With --int8 and frames: train the INT8 body on the float network's outputs; "
            "with --max-drop only where the gate does not hold.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="With --int8: leave layers in float until AuPRC, FPR95 and mIoU lose no more "
            "than this on --gate-data, each; exit 5 where that cannot be.",
        ),
    ] = None,
    gate_data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Anomaly set, labelled data set, or folder of such; repeatable.",
        ),
    ] = None,
    gate_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of --gate-data, take these only: cityscapes, camvid, anomaly:FOLDER; repeatable.",
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|NAME",
            help="Sets to report but not to decide by: folders, or sets of --gate-data by name; "
            "repeatable.",
        ),
    ] = None,
    gate_split: Annotated[
        str | None,
        typer.Option(
            metavar="train|val",
            help="Of labelled sets; default: train, else val, and of --held-out the other way.",
        ),
    ] = None,
    gate_every: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Take every N-th frame; default: up to 100 frames a set."
        ),
    ] = None,
    max_noise: Annotated[
        float,
        typer.Option(
            metavar="LEVELS",
            help="Scores may change on calibration frames as much as by input noise of this many "
            "grey levels; 0: no limit.",
        ),
    ] = MAX_NOISE,
    max_give_back: Annotated[
        float,
        typer.Option(metavar="PERCENT", help="Of INT8's gain in time, to layers in float."),
    ] = 100.0,
    granularity: Annotated[
        Granularity, typer.Option(help="What the gate leaves in float at a time.")
    ] = Granularity.block,
    compute_precision: Annotated[
        FloatType,
        typer.Option(help="Of layers in float; auto: bf16 where engine and processor have it."),
    ] = FloatType.auto,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Engine of the gate: auto, onnxruntime, openvino.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the gate's engine; default: all cores."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the gate's tables as Markdown.")
    ] = None,
    standalone: Annotated[
        list[str] | None,
        typer.Option(help="Also write model_<SCORER>.onnx, one file for others; repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature T of the scorers.")] = 1.0,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="What the bundle is for: onnx; tensorrt or tensorrt-rtx, which also build "
            "engines; jetson-PROFILE, which packs all that this Jetson needs into one archive. "
            "The scorers of --standalone or the default one are put into the engines.",
        ),
    ] = "onnx",
    dla: Annotated[
        int | None,
        typer.Option(metavar="CORE", min=0, help="With --target tensorrt: use this DLA."),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --target jetson-PROFILE: wheels for the device; default: downloaded.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; default: export/NETWORK-PRECISION."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Turn a network into a bundle: body.onnx, head, and all that a run needs.

    The exported graph is compared with torch and tried on every engine that is installed before
    anything is written.
    """
    import json
    import sys
    from functools import partial

    from edgeseg.cli.export_target import open_target
    from edgeseg.cli.outputs import check_output, write_outputs
    from edgeseg.cli.sizes import parse_size
    from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
    from edgeseg.networks.zoo import check_network, shipped_calibration, shipped_weights

    check_network(network)
    if int8 and fp16:
        raise UsageError("--int8 and --fp16 exclude each other; give one of them")
    height, width = parse_size(size)
    precision = "int8" if int8 else "float16" if fp16 else "float32"
    destination = output or Path("export") / f"{network}-{precision}"
    path = weights or shipped_weights(network)
    if path is None:
        raise ArtefactError(
            f"no weights of {network} are shipped with this version; give a checkpoint with "
            "--weights FILE"
        )
    if calibration is None and weights is None:
        calibration = shipped_calibration(network)
    of_int8 = (calibration_method, widen, bias_correction, max_drop, recover)
    if not int8 and any(option is not None for option in of_int8):
        raise UsageError(
            "--calibration-method, --widen, --bias-correction, --max-drop and --recover go with "
            "--int8; add it"
        )
    has_frames = calibration is not None and (calibration.suffix != ".json" or calibration.is_dir())
    if recover is not None and not has_frames:
        raise UsageError("--recover needs frames; give a folder of images with --calibration")
    if not has_frames and given(context, "frames"):
        raise UsageError("--frames counts images; give a folder of images with --calibration")
    if (max_drop is None) != (not gate_data):
        raise UsageError("--max-drop POINTS and --gate-data DIR go together; give both or neither")
    if not gate_data:
        refuse_gate_options(context, recovers=recover is not None)
    if percentile is not None and calibration_method is not Method.percentile:
        raise UsageError("--percentile goes with --calibration-method percentile; add it")
    place = open_target(target, precision, dla=dla, wheels=wheels)
    from edgeseg.bundle import check_destination

    check_destination(destination)
    if report is not None:
        check_output(report, "--report")
        if not report.absolute().parent.is_dir():
            raise UsageError(
                f"--report '{report}' cannot be written; name a file in a folder there is"
            )
    try:
        import torch

        from edgeseg.compression.clipping import DEFAULT_PERCENTILE
        from edgeseg.compression.int8_recovery import RecoveryOptions
        from edgeseg.export.exporter import export_bundle
        from edgeseg.networks.checkpoints import load_network
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting needs the build packages, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    recovery = None if recover is None else RecoveryOptions(steps=recover, threads=threads)
    place.check()
    gate = None
    if max_drop is not None:
        gate = gate_options(
            gate_data or [],
            gate_set or [],
            held_out or [],
            gate_split,
            max_drop=max_drop,
            every=gate_every,
            max_noise=max_noise or None,
            max_give_back=max_give_back,
            granularity=granularity.value,
            backend=backend,
            threads=threads,
            compute_precision=compute_precision.value,
            recovery=recovery,
        )
    torch.manual_seed(0)
    module = load_network(network, path)

    def progress(message: str) -> None:
        if sys.stderr.isatty():
            print(f"{message} …", file=sys.stderr)

    def note(text: str) -> None:
        print(f"edgeseg: {text}", file=sys.stderr)

    bundle = export_bundle(
        module,
        destination,
        height=height,
        width=width,
        precision=precision,
        calibration=calibration,
        standalone=standalone or (),
        temperature=temperature,
        frames_limit=frames,
        calibration_method=None if calibration_method is None else calibration_method.value,
        percentile=DEFAULT_PERCENTILE if percentile is None else percentile,
        widen=widen,
        correct_bias=bias_correction,
        gate=gate,
        recovery=recovery,
        progress=progress,
        note=note,
    )
    golden = bundle.manifest.accuracy.get("golden")
    for text in _disagreements(golden, precision):
        note(text)
    bundle = place.finish(bundle, standalone or ())
    manifest = bundle.manifest
    document: dict[str, Any] = {
        "schema": "edgeseg.export/1",
        "bundle": str(bundle.path),
        "network": manifest.network,
        "precision": manifest.precision,
        "size": f"{manifest.height}x{manifest.width}",
        "weights_name": manifest.weights_name,
        "license": manifest.license,
        "file_bytes": bundle.file_bytes,
        "counts": manifest.counts,
        "scorers": list(manifest.scorers),
        "files": {name: entry["bytes"] for name, entry in manifest.files.items()},
        "float_parity": manifest.accuracy["float_parity"],
        "golden": golden,
        **place.document,
    }
    judged, failed = None, None
    if gate is not None:
        from edgeseg.compression.gate_report import GATE, markdown
        from edgeseg.files import write_text

        judged = document["gate"] = json.loads((bundle.path / GATE).read_bytes())
        if report is not None:
            text = markdown(judged, f"{network}: INT8 through the gate")
            failed = write_outputs(partial(write_text, report, text))
            if failed is None:
                document["report"] = str(report)
    if json_output:
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        if judged is not None:
            from edgeseg.compression.gate_report import print_gate

            print_gate(judged)
        print(
            f"{bundle.path}: {manifest.network} {manifest.precision} {document['size']}, "
            f"{bundle.file_bytes / 1e6:.2f} MB, scorers {', '.join(manifest.scorers)}"
        )
        print(place.hint(bundle))
    if failed is not None:
        raise failed


def _disagreements(golden: dict[str, Any] | None, precision: str) -> list[str]:
    """A sentence for each engine that does not compute what the bundle's first one does.

    Args:
        golden: what :func:`edgeseg.runtime.golden.golden_of` says of the engines.
        precision: of the bundle.
    """
    if golden is None:
        return []
    again = ", or calibrate with other frames" if precision == "int8" else ""
    return [
        f"{engine} does not compute what {golden['engine']} does: "
        f"{found['equal_classes_percent']:.1f}% of the test frame's classes are equal and scores "
        f"differ by {found['score_error_percent']:.1f}% of their range; run this bundle with "
        f"--backend {golden['engine']}{again}"
        for engine, found in golden["others"].items()
        if found["passed"] is False
    ]
