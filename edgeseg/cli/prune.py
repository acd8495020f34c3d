"""``edgeseg prune``: a network with fewer channels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.given import given
from edgeseg.cli.train import (
    DeviceOption,
    JsonOption,
    LicenseOption,
    PrecisionOption,
    RecipeOption,
    SourceOption,
    ThreadsOption,
    WorkersOption,
    choose_recipe,
    make_options,
)

if TYPE_CHECKING:
    from contextlib import ExitStack

    from edgeseg.compression.pruning import Request
    from edgeseg.compression.recovery import Recovery
    from edgeseg.compression.targets import Stopwatch
    from edgeseg.networks.base import Network
    from edgeseg.training.loop import Options

__all__ = ["prune_command"]


def prune_command(
    context: typer.Context,
    network: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the pruned network; new or empty.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Weights to prune; default: the shipped ones.")
    ] = None,
    amount: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of every group of coupled channels to remove, 0 to below 1, of those that "
            "are not dead; 0 removes dead filters alone.",
            show_default=False,
        ),
    ] = None,
    target_macs: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the multiply-accumulates to keep.",
            show_default=False,
        ),
    ] = None,
    target_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Milliseconds a frame on this machine in float32, body and head; met within 10%.",
            show_default=False,
        ),
    ] = None,
    ranking: Annotated[
        str,
        typer.Option(
            metavar="local|global",
            help="local: the same share of every group; global: the smallest of all.",
        ),
    ] = "local",
    protect: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Layer, or its beginning, to leave; repeatable."),
    ] = None,
    round_to: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=256,
            help="Widths become multiples of it, and layers no wider stay whole; 1: any width.",
        ),
    ] = 16,
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps, fine-tuned after each.")
    ] = 1,
    mode: Annotated[
        str,
        typer.Option(
            metavar="remove|zero",
            help="zero: set the smallest filters of every convolution to zero instead, for "
            "comparison with papers that did; nothing gets faster by it.",
        ),
    ] = "remove",
    size: Annotated[
        str, typer.Option(help="Frame size that operations and time are of, HxW.")
    ] = "512x1024",
    backend: Annotated[
        str,
        typer.Option(
            metavar="auto|onnxruntime|openvino", help="Engine that --target-ms is measured on."
        ),
    ] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tune on this folder of the recipe's sources, or one labelled data set.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Epochs of fine-tuning in all; default: the recipe's."),
    ] = None,
    recipe: RecipeOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with fine-tuning that was stopped.")
    ] = False,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    license_terms: LicenseOption = "",
    source: SourceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Remove channels, the least important first; leaves OUTPUT/NETWORK.safetensors and prune.json.

    Filters that cannot matter go first and change nothing. With --data (or a --recipe of drawn
    scenes) the result is fine-tuned, with the unpruned network as teacher.
    """
    import json
    import os
    import sys
    from contextlib import ExitStack

    from edgeseg.cli.sizes import parse_size
    from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
    from edgeseg.networks.zoo import check_network, shipped_weights

    check_network(network)
    trains = data is not None or recipe is not None
    if epochs is not None and not trains:
        raise UsageError("--epochs needs frames to train on; give --data DIR as well")
    of_training = given(context, "workers", "precision", "source")
    if of_training and not trains:
        raise UsageError(
            f"{of_training[0]} is for fine-tuning; give --data or --recipe as well, or leave it out"
        )
    if resume and not trains:
        raise UsageError("--resume goes on with fine-tuning; give --data or --recipe")
    if target_ms is None and given(context, "backend"):
        raise UsageError("--backend is what --target-ms is measured on; give that or leave it out")
    if epochs is not None and not 0 < epochs < 1e6:
        raise UsageError(f"--epochs {epochs:g} cannot be trained; give a number above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "pruning runs in one process; prune without --data, then fine-tune with torchrun -m "
            "edgeseg distill STUDENT --teacher NETWORK:FILE --weights PRUNED"
        )
    path = weights or shipped_weights(network)
    if path is None:
        raise ArtefactError(f"no weights of {network} are shipped; give some with --weights FILE")
    try:
        from edgeseg.compression.pruning import Request, prune
        from edgeseg.compression.pruning_report import (
            FINE_TUNING,
            destination,
            document,
            save,
            table,
        )
        from edgeseg.compression.ranking import Rules
        from edgeseg.networks.checkpoints import load_network
    except ImportError as error:
        raise MissingDependencyError(
            f"pruning needs the build packages, and '{error.name}' is not installed; "
            "run pip install 'edgeseg[build]'"
        ) from None
    request = Request(
        amount=amount,
        target_macs=target_macs,
        target_ms=target_ms,
        rules=Rules(ranking, round_to, tuple(protect or ())),
        steps=steps,
        mode=mode,
        size=parse_size(size),
    )
    request.check()
    options = make_options(resume, workers, threads, device, precision, license_terms, source)
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(destination(output, trains=trains, resume=resume))
            original = load_network(network, path)
            original.check_size(*request.size)
            recovery, notes = None, None
            if trains:
                notes = folder / FINE_TUNING / "plan.json"
                recovery = _recovery(original, recipe, data, epochs, steps, notes.parent, options)
            known = notes is not None and notes.exists()
            stopwatch = None if known else _stopwatch(stack, original, request, backend, threads)
            pruned = prune(
                original,
                request,
                measure=stopwatch,
                recover=recovery,
                notes=notes,
                progress=_say,
            )
            report = document(
                pruned,
                original,
                path,
                license_terms=license_terms,
                fine_tuning=recovery.document() if recovery is not None else None,
            )
            save(pruned.network, report, folder)
    except KeyboardInterrupt:
        if not (output / FINE_TUNING).is_dir():
            raise
        print(
            "edgeseg: interrupted; the same command with --resume goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    final = output / f"{network}.safetensors"
    printed = {
        **report,
        "weights": str(final),
        "file_bytes": final.stat().st_size,
    }
    if json_output:
        print(json.dumps(printed))
        return
    print(table(report))
    print(f"{final}: {network}, {final.stat().st_size / 1e6:.2f} MB")
    print(f"next: edgeseg export {network} --weights {final}")


def _recovery(
    original: "Network",
    recipe: str | None,
    data: Path | None,
    epochs: float | None,
    steps: int,
    folder: Path,
    options: "Options",
) -> "Recovery":
    from edgeseg.compression.recovery import Recovery, recovery_recipe, with_epochs
    from edgeseg.training.step import check_fit

    name = original.structure.network
    chosen = choose_recipe(name, recipe, data, fallback=recovery_recipe(original))
    if epochs is not None:
        chosen = with_epochs(chosen, epochs, steps)
    # Before a second is spent on anything else.
    check_fit(chosen, original)
    return Recovery(chosen, data, folder, original, options)


def _stopwatch(
    stack: "ExitStack", original: "Network", request: "Request", backend: str, threads: int | None
) -> "Stopwatch | None":
    if request.target_ms is None:
        return None
    from edgeseg.compression.targets import Stopwatch

    _say("measuring the unpruned network")
    stopwatch = Stopwatch(original, request.size, backend=backend, threads=threads)
    return stack.enter_context(stopwatch)


def _say(message: str) -> None:
    import sys

    if sys.stderr.isatty():
        print(message, file=sys.stderr)
