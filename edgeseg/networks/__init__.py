"""The architectures, their structure specs and their checkpoints.

Importing the package needs no torch; its modules ``enet``, ``erfnet``, ``bisenet``, ``midenet``
and ``checkpoints`` do.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeseg.networks.zoo import NETWORKS, check_network

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["NETWORKS", "build"]


def build(name: str, structure: Mapping[str, Any] | None = None) -> "Network":
    """A network with fresh weights, in training mode.

    Args:
        name: one of :data:`NETWORKS`.
        structure: a structure spec as :meth:`edgeseg.networks.structure.Structure.to_dict` gives
            it; fields that are absent keep the published value.

    Raises:
        UsageError: no such network.
        MissingDependencyError: torch is not installed.
        ArtefactError: the spec does not fit the network.
    """
    from edgeseg.networks.registry import network_class

    return network_class(check_network(name)).from_dict(structure or {})
