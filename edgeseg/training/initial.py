"""Weights that a run begins with: random ones by the recipe's seed, or given ones made wider."""

import torch

from edgeseg.errors import UsageError
from edgeseg.networks import build
from edgeseg.networks.base import Network
from edgeseg.taxonomy import NUM_KNOWN
from edgeseg.training.recipe import Recipe

__all__ = ["fresh_network", "widen_to_void"]


def fresh_network(recipe: Recipe) -> Network:
    """The recipe's network with random weights; the same seed gives the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build(recipe.network, recipe.structure)


def widen_to_void(net: Network, seed: int = 1) -> Network:
    """A network of 19 outputs with a void output added; one that has it comes back as it is.

    The new output begins with small random weights and without a bias, the others stay.

    Raises:
        UsageError: another number of outputs.
    """
    structure = net.structure
    if structure.void_index is not None:
        return net
    if structure.num_outputs != NUM_KNOWN:
        raise UsageError(
            f"weights with {structure.num_outputs} outputs cannot be given a void output; the 19 "
            "known classes are needed"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = build(structure.network, {**structure.to_dict(), "num_outputs": NUM_KNOWN + 1})
    own = wide.state_dict()
    for key, value in net.state_dict().items():
        if own[key].shape == value.shape:
            own[key] = value
            continue
        # Transposed convolutions have the outputs second.
        axis = next(i for i, n in enumerate(own[key].shape) if n != value.shape[i])
        own[key].narrow(axis, 0, NUM_KNOWN).copy_(value)
        own[key].narrow(axis, NUM_KNOWN, 1).mul_(0.1)
    wide.load_state_dict(own)
    wide.provenance = dict(net.provenance)
    return wide
