"""Training a pruned network back, with the unpruned one as its teacher."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeseg.networks.base import Network
from edgeseg.networks.checkpoints import load_network
from edgeseg.training.loop import Options, Outcome, train
from edgeseg.training.recipe import Distillation, Recipe, default_recipe, with_fitting_loss

__all__ = ["Recovery", "recovery_recipe", "with_epochs"]


def recovery_recipe(network: Network) -> Recipe:
    """What ``edgeseg prune --data`` trains by without ``--recipe``.

    That of ``edgeseg train`` at a quarter of its rate, without dropout, half of the loss the
    divergence from the unpruned network, which also speaks where there is no label.
    """
    base = default_recipe(network.structure.network)
    recipe = replace(
        base,
        name=f"{base.network}-recovery",
        dropout=0.0,
        optimizer=replace(base.optimizer, lr=base.optimizer.lr / 4),
        distillation=Distillation(soft_share=0.5, on_ignored=True),
    )
    return with_fitting_loss(recipe, network.structure.isomax)


def with_epochs(recipe: Recipe, epochs: float, steps: int) -> Recipe:
    """``recipe`` as one stage of ``epochs``, spread evenly over ``steps`` of pruning.

    It is the recipe's last stage, with its rate and crop, but of the whole network.
    """
    last = replace(recipe.stage[-1], part="all", steps=0, epochs=epochs / steps)
    return replace(recipe, stage=(last,))


@dataclass
class Recovery:
    """Trains after every step of pruning, each in a folder of its own."""

    recipe: Recipe
    data: Path | None
    """``None``: synthetic scenes."""
    folder: Path
    teacher: Network
    options: Options = field(default_factory=Options)
    outcomes: list[Outcome] = field(default_factory=list)
    """Of the steps so far."""

    def __call__(self, network: Network, step: int) -> Network:
        """The network after training.

        Raises:
            UsageError: a recipe, network or folder that does not fit.
            InputError: data missing or unreadable.
            DivergedError: a loss or gradient that is not finite.
        """
        provenance = dict(network.provenance)
        outcome = train(
            self.recipe,
            self.data,
            self.folder / f"step-{step}",
            network,
            teacher=self.teacher,
            options=self.options,
        )
        assert outcome.weights is not None
        self.outcomes.append(outcome)
        trained = load_network(network.structure.network, outcome.weights)
        trained.provenance = provenance
        return trained

    def document(self) -> dict[str, Any]:
        """What was trained, as JSON types."""
        last = self.outcomes[-1]
        return {
            "recipe": self.recipe.name or self.recipe.network,
            "steps": sum(outcome.steps for outcome in self.outcomes),
            "hours": round(sum(outcome.elapsed_s for outcome in self.outcomes) / 3600, 4),
            "miou_percent": last.miou_percent,
            "kept": last.kept,
        }
