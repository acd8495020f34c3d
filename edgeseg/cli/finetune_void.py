"""``edgeseg finetune-void``: teach a trained network the void class."""

from pathlib import Path
from typing import Annotated

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

__all__ = ["finetune_void_command"]


def finetune_void_command(
    network: Annotated[str, typer.Argument(help="enet, erfnet, bisenet or midenet.")],
    output: OutputOption,
    weights: Annotated[
        Path | None, typer.Option(help="Trained weights; default: the shipped ones.")
    ] = None,
    data: DataOption = None,
    recipe: RecipeOption = None,
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
    """Teach a network the void class on unlabelled and unknown pixels.

    Weights with 19 outputs get a twentieth. Without --recipe only the last layer learns: 30 epochs,
    Adam at 5e-5, every unlabelled pixel void; the loss is isomax where the weights have IsoMax+
    distances, and cross-entropy otherwise.
    """
    from edgeseg.errors import ArtefactError
    from edgeseg.networks.zoo import shipped_weights
    from edgeseg.training.recipe import void_recipe, with_fitting_loss

    chosen = choose_recipe(network, recipe, data, steps=steps, fallback=void_recipe(network))
    options = make_options(resume, workers, threads, device, precision, license_terms, source)
    path = weights or shipped_weights(network)
    if path is None:
        raise ArtefactError(f"no weights of {network} are shipped; give some with --weights FILE")
    from edgeseg.networks.checkpoints import load_network
    from edgeseg.training.initial import widen_to_void

    module = widen_to_void(load_network(network, path, chosen.structure), chosen.seed)
    if recipe is None:
        chosen = with_fitting_loss(chosen, module.structure.isomax)
    finish("finetune-void", chosen, data, output, module, None, options, json_output)
