"""Names of the architectures to their classes."""

from typing import TYPE_CHECKING

from edgeseg.errors import MissingDependencyError
from edgeseg.networks.zoo import check_network

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["network_class"]


def network_class(name: str) -> "type[Network]":
    """The class of a network.

    Raises:
        UsageError: no such network.
        MissingDependencyError: torch is not installed.
    """
    check_network(name)
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            f"network '{name}' needs torch, which is not installed; "
            "pip install 'edgeseg[build]' (running a bundle does not need it)"
        ) from None
    if name == "enet":
        from edgeseg.networks.enet import ENet

        return ENet
    if name == "erfnet":
        from edgeseg.networks.erfnet import ERFNet

        return ERFNet
    if name == "bisenet":
        from edgeseg.networks.bisenet import BiSeNet

        return BiSeNet
    from edgeseg.networks.midenet import MiDENet

    return MiDENet
