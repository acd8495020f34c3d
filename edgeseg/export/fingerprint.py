"""A digest of a network's weights, by which a file of ranges knows the weights it belongs to."""

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["WEIGHTS_SHA256", "weights_sha256"]

WEIGHTS_SHA256: Final = "weights_sha256"
"""Key of the digest in the provenance of ranges."""

_COUNTER: Final = ".num_batches_tracked"


def weights_sha256(network: "Network") -> str:
    """SHA-256, hexadecimal, of the numbers that the deployed network computes with.

    Of the weights as they were loaded, not of the exported graph, whose constants change with the
    passes that fold and drop them; so the digest outlives a new version of the exporter, and the
    same weights in another file or layout have the same one. Heads that only training uses and
    BatchNorms' counters take no part; mean and standard deviation of the input do.
    """
    auxiliary = {id(p) for p in network.auxiliary_parameters()}
    # A whole layer at a time: an auxiliary BatchNorm has buffers besides its parameters.
    left_out = {
        key.rpartition(".")[0] for key, p in network.named_parameters() if id(p) in auxiliary
    }
    structure = network.structure
    numbers = {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith(_COUNTER) and key.rpartition(".")[0] not in left_out
    }
    for key, given in (("mean", structure.mean), ("std", structure.std)):
        if given is not None:
            numbers[f"normalise.{key}"] = torch.tensor(given)
    digest = hashlib.sha256()
    for key in sorted(numbers):
        value = numbers[key].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{key} {list(value.shape)}\n".encode())
        digest.update(np.asarray(value, "<f4").tobytes())
    return digest.hexdigest()
