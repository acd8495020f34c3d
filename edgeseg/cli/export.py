"""`edgeseg export`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_command"]


class Target(str, Enum):
    """What the bundle is for."""

    onnx = "onnx"


def export_command(
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
    standalone: Annotated[
        list[str] | None,
        typer.Option(help="Also write model_<SCORER>.onnx, one file for others; repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Temperature T of the scorers.")] = 1.0,
    target: Annotated[Target, typer.Option(help="What the bundle is for.")] = Target.onnx,
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
    from edgeseg.bundle import check_destination

    check_destination(destination)
    try:
        import torch

        from edgeseg.export.exporter import export_bundle
        from edgeseg.networks.checkpoints import load_network
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting needs the build packages, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    torch.manual_seed(0)
    module = load_network(network, path)

    def progress(message: str) -> None:
        if sys.stderr.isatty():
            print(f"{message} …", file=sys.stderr)

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
        progress=progress,
    )
    manifest = bundle.manifest
    document = {
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
    }
    if json_output:
        print(json.dumps(document, indent=1))
        return
    print(
        f"{bundle.path}: {manifest.network} {manifest.precision} {document['size']}, "
        f"{bundle.file_bytes / 1e6:.2f} MB, scorers {', '.join(manifest.scorers)}"
    )
    print(f"try it: edgeseg run {bundle.path} --input IMAGE_OR_VIDEO --save out")
