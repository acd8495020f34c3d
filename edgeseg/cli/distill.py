"""``edgeseg distill``: a student learns from a teacher's outputs and from labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.train import (
    DataOption,
    DeviceOption,
    JsonOption,
    LicenseOption,
    OutputOption,
    PrecisionOption,
    RecipeOption,
    ResumeOption,
    SourceOption,
    StepsOption,
    ThreadsOption,
    WorkersOption,
    choose_recipe,
    finish,
    make_options,
)

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["distill_command"]


def distill_command(
    student: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    teacher: Annotated[
        str,
        typer.Option(
            metavar="NETWORK[:FILE]",
            help="The network to learn from; without FILE its shipped weights.",
        ),
    ],
    output: OutputOption,
    data: DataOption = None,
    recipe: RecipeOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Student's weights to begin with, a pruned network's for example."),
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
    """Train a student on a teacher's softened outputs, mixed with the labels.

    The mix is the recipe's [distillation]; by default half and half at temperature 1. A stage of
    the encoder alone follows the teacher too, at the pixels that its labels are taken at.
    """
    chosen = choose_recipe(student, recipe, data, steps=steps)
    options = make_options(resume, workers, threads, device, precision, license_terms, source)
    master = _teacher(teacher)
    if weights is not None:
        from edgeseg.networks.checkpoints import load_network

        module = load_network(student, weights, chosen.structure)
        if recipe is None:
            from edgeseg.training.recipe import with_fitting_loss

            chosen = with_fitting_loss(chosen, module.structure.isomax)
    else:
        from edgeseg.training.initial import fresh_network

        module = fresh_network(chosen)
    finish("distill", chosen, data, output, module, master, options, json_output)


def _teacher(text: str) -> "Network":
    """The network that ``NETWORK:FILE`` names."""
    from edgeseg.errors import ArtefactError
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.networks.zoo import check_network, shipped_weights

    name, _, path = text.partition(":")
    file = Path(path) if path else shipped_weights(check_network(name))
    if file is None:
        raise ArtefactError(
            f"no weights of {name} are shipped; give the teacher as --teacher {name}:FILE"
        )
    return load_network(name, file)
