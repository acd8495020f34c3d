"""``edgeseg train``: a network from random weights, or on from given ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgeseg.networks.base import Network
    from edgeseg.training.loop import Options, Outcome
    from edgeseg.training.recipe import Recipe

__all__ = ["train_command"]

DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder that the recipe's sources lie in, or one labelled data set; without it "
        "synthetic scenes are drawn.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(metavar="FILE|NAME", help="Recipe, a TOML file or the name of a shipped one."),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in the folder, where there is one.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Steps instead of the recipe's; for trials.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Processes that prepare frames; default: by cores.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of torch; default: all cores.")
]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to train.")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bf16",
        help="Type that the forward computes in; auto: bf16 where the device multiplies it.",
    ),
]
LicenseOption = Annotated[
    str,
    typer.Option("--license", help="Terms of the weights, those of the data; kept in the file."),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="Folder to read instead of the source that the recipe names so; repeatable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document.")]


def train_command(
    network: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    output: OutputOption,
    data: DataOption = None,
    recipe: RecipeOption = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Loss instead of the recipe's: ce, focal, ohem, isomax, logitnorm, or two of "
            "them such as isomax+focal."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to begin with; default: random ones.")
    ] = None,
    steps: StepsOption = None,
    resume: ResumeOption = False,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    license_terms: LicenseOption = "",
    source: SourceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train a network; leaves OUTPUT/NETWORK.safetensors, metrics.jsonl and checkpoints.

    A run that was killed goes on with --resume, to the same weights. `torchrun -m edgeseg train …`
    trains in several processes.
    """
    chosen = choose_recipe(network, recipe, data, loss=loss, steps=steps)
    options = make_options(resume, workers, threads, device, precision, license_terms, source)
    if weights is not None:
        from edgeseg.networks.checkpoints import load_network

        module = load_network(network, weights, chosen.structure)
    else:
        from edgeseg.training.initial import fresh_network

        module = fresh_network(chosen)
    finish("train", chosen, data, output, module, None, options, json_output)


def choose_recipe(
    network: str,
    recipe: str | None,
    data: Path | None,
    *,
    loss: str | None = None,
    steps: int | None = None,
    fallback: "Recipe | None" = None,
) -> "Recipe":
    """The recipe of the command line, with what its options replace."""
    from dataclasses import replace

    from edgeseg.errors import InputError, MissingDependencyError
    from edgeseg.networks.zoo import check_network

    check_network(network)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "training needs torch, which is not installed; run pip install 'edgeseg[build]'"
        ) from None
    if data is not None and not data.is_dir():
        raise InputError(f"--data '{data}' is not a folder; check the path")
    from edgeseg.training.losses import LossSpec
    from edgeseg.training.recipe import Stage, default_recipe, load_recipe

    if recipe is not None:
        chosen = load_recipe(Path(recipe), network)
    else:
        chosen = fallback or default_recipe(network)
    if loss is not None:
        chosen = replace(chosen, loss=replace(chosen.loss, name=LossSpec.parse(loss).name))
    isomax = LossSpec.parse(chosen.loss.name).transform == "isomax"
    if isomax:
        chosen = replace(chosen, structure={**chosen.structure, "isomax": True})
    if steps is not None:
        stages: tuple[Stage, ...] = tuple(replace(s, steps=steps) for s in chosen.stage)
        chosen = replace(chosen, stage=stages)
    return chosen


def make_options(
    resume: bool,
    workers: int | None,
    threads: int | None,
    device: str,
    precision: str,
    license_terms: str,
    sources: list[str] | None,
) -> "Options":
    """Options of the loop; UsageError where a choice does not exist."""
    from edgeseg.errors import UsageError
    from edgeseg.training.loop import Options

    for option, value, choices in (
        ("--device", device, ("auto", "cpu", "cuda")),
        ("--precision", precision, ("auto", "float32", "bf16")),
    ):
        if value not in choices:
            raise UsageError(f"{option} '{value}' is unknown; choose one of {', '.join(choices)}")
    places = {}
    for text in sources or ():
        name, equals, folder = text.partition("=")
        if not (equals and Path(folder).is_dir()):
            raise UsageError(f"--source '{text}' is not NAME=FOLDER with a folder that exists")
        if name in places:
            raise UsageError(f"--source names '{name}' twice; give it one folder")
        places[name] = Path(folder).resolve()
    return Options(resume, workers, threads, device, precision, license_terms, places)


def finish(
    command: str,
    recipe: "Recipe",
    data: Path | None,
    output: Path,
    module: "Network",
    teacher: "Network | None",
    options: "Options",
    json_output: bool,
) -> None:
    """Run the loop and print what it left."""
    import json
    import os
    import sys

    from edgeseg.training.loop import train

    try:
        outcome: Outcome = train(recipe, data, output, module, teacher=teacher, options=options)
    except KeyboardInterrupt:
        print(
            "edgeseg: interrupted; the same command with --resume goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") != "0":
        return
    document: dict[str, Any] = {
        "schema": f"edgeseg.{command}/1",
        "network": recipe.network,
        "recipe": recipe.name,
        "weights": str(outcome.weights),
        "steps": outcome.steps,
        "hours": round(outcome.elapsed_s / 3600, 4),
        "miou_percent": outcome.miou_percent,
        "kept": outcome.kept,
    }
    if json_output:
        print(json.dumps(document))
        return
    figure = "" if outcome.miou_percent is None else f", held-out mIoU {outcome.miou_percent:.1f} %"
    print(f"{outcome.weights}: {recipe.network}, {outcome.steps} steps{figure}")
    print(f"next: edgeseg export {recipe.network} --weights {outcome.weights}")
