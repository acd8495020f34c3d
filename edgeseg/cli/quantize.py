"""`edgeseg quantize`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["quantize_command"]


class Method(str, Enum):
    """How to quantize."""

    fx = "fx"


class Engine(str, Enum):
    """Which of torch's kernels the result is for."""

    x86 = "x86"
    qnnpack = "qnnpack"


class Bits(str, Enum):
    """Bits of an activation."""

    seven = "7"
    eight = "8"


def quantize_command(
    network: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    calibration: Annotated[
        Path, typer.Option(help="Folder of images from the camera's view, searched recursively.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="safetensors of this project or a published checkpoint; "
            "default: the shipped weights."
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="fx: torch FX post-training static quantization.")
    ] = Method.fx,
    size: Annotated[str, typer.Option(help="Frame size, HxW pixels.")] = "512x1024",
    frames: Annotated[int, typer.Option(min=1, max=64, help="Images to calibrate with.")] = 16,
    engine: Annotated[
        Engine | None, typer.Option(help="Torch's kernels; default: this machine's.")
    ] = None,
    activation_bits: Annotated[
        Bits | None,
        typer.Option(
            help="7 is for x86 processors without AVX-512 VNNI, which add products in 16 bits; "
            "default: what this machine takes."
        ),
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--float",
            metavar="MODULE",
            help="Leave a module float, such as encoder.initial_block; repeatable.",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Quantize a network in torch, as published work does; bundles come from `edgeseg export`.

    The folder holds safetensors and JSON, no pickle. `edgeseg eval NETWORK --weights FOLDER
    --backend torch-fx` evaluates it.
    """
    import json

    from edgeseg.cli.progress import frame_progress
    from edgeseg.cli.sizes import parse_size
    from edgeseg.compression.fx_folder import check_destination
    from edgeseg.errors import ArtefactError, MissingDependencyError
    from edgeseg.networks.zoo import check_network, shipped_weights

    check_network(network)
    height, width = parse_size(size)
    check_destination(output)
    path = weights or shipped_weights(network)
    if path is None:
        raise ArtefactError(
            f"no weights of {network} are shipped with this version; give a checkpoint with "
            "--weights FILE"
        )
    try:
        import torch

        from edgeseg.compression.quantize_fx import fx_counts, quantize_fx, save_fx
        from edgeseg.export.exporter import calibration_frames
        from edgeseg.networks.checkpoints import load_network
    except ImportError as error:
        raise MissingDependencyError(
            f"quantizing needs the build packages, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    torch.manual_seed(0)
    module = load_network(network, path)
    module.check_size(height, width)
    images = calibration_frames(calibration, height, width, frames)
    with frame_progress("calibrating") as report:
        quantized = quantize_fx(
            module,
            images,
            engine=engine.value if engine else None,
            activation_bits=int(activation_bits.value) if activation_bits else None,
            float_modules=keep_float or (),
            progress=report,
        )
    kept = save_fx(quantized, output, calibration.resolve().name)
    counts = fx_counts(quantized, height, width)
    document = {
        "schema": "edgeseg.quantize/1",
        "folder": str(output),
        "network": network,
        "method": method.value,
        "precision": "int8",
        "engine": quantized.recipe.engine,
        "activation_bits": quantized.recipe.activation_bits,
        "weights_name": kept["weights_name"],
        "license": kept["license"],
        "torch": kept["torch"],
        "calibration": kept["calibration"],
        "file_bytes": sum(entry.stat().st_size for entry in output.iterdir()),
        "counts": {
            "params": counts.params,
            "macs_integer": counts.macs_integer,
            "macs_float": counts.macs_float,
        },
        "float_operations": kept["float_operations"],
    }
    if json_output:
        print(json.dumps(document, indent=1))
        return
    share = counts.macs_integer / (counts.macs_integer + counts.macs_float)
    agreed = kept["calibration"]["equal_labels_percent"]
    in_float = ", ".join(f"{name} x{n}" for name, n in kept["float_operations"].items())
    print(
        f"{output}: {network} int8 by torch FX for {quantized.recipe.engine}, {size}, "
        f"{document['file_bytes'] / 1e6:.2f} MB, {share:.1%} of multiply-accumulates in integers"
    )
    print(f"labels as in float32 on {agreed:.2f}% of pixels of calibration frames")
    print(f"in float: {in_float}")
    print(
        f"try it: edgeseg eval {network} --weights {output} --backend torch-fx --data DIR "
        "--dataset NAME"
    )
