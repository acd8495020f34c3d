"""Checkpoints that others publish: where they are, what pins them, on which terms. No torch.

None of them comes with the package, because of their terms. ``edgeseg weights fetch`` downloads
one for a user who accepts these, and keeps it in the user's cache.

The addresses could not be reached from the machine on which this was written: the code was tried
against a local server only. The pins of ``enet-void`` and ``midenet-void`` are those of copies that
were at hand; of the others only the pins were known, not the content.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from edgeseg.errors import InputError, UsageError
from edgeseg.networks.download import (
    Progress,
    fetch_verified,
    has_blob,
    is_acceptable,
    remote_size,
)
from edgeseg.runtime.cache import cache_folder

__all__ = ["MIRROR", "PUBLISHED", "Published", "find_published", "weights_folder"]

MIRROR: Final = "EDGESEG_WEIGHTS_MIRROR"
"""Environment variable: an address to ask instead of raw.githubusercontent.com, with the same
paths below it. https, or http on this machine; what it sends must have the same pins."""

_BASE: Final = "https://raw.githubusercontent.com"
_REPOSITORY: Final = "emariesanna/AnomalySegmentation-AMLProject"
_COMMIT: Final = "f1f8828152c7bd0f46d461b605148a935022987d"


@dataclass(frozen=True, slots=True)
class Published:
    """One published checkpoint."""

    name: str
    network: str
    about: str
    path: str
    """Within the repository."""
    blob: str
    """The git blob id, see :func:`edgeseg.networks.download.git_blob_id`."""
    terms: str
    repository: str = _REPOSITORY
    commit: str = _COMMIT

    @property
    def address(self) -> str:
        """Where the raw content is.

        Raises:
            UsageError: the mirror's address is none.
        """
        return f"{_base()}/{self.repository}/{self.commit}/{quote(self.path)}"

    @property
    def destination(self) -> Path:
        """The file in the cache, whether it is there or not."""
        return weights_folder() / f"{self.name}{Path(self.path).suffix}"

    def cached(self) -> Path | None:
        """The file in the cache, or ``None`` where none is there that has the pinned content."""
        path = self.destination
        return path if has_blob(path, self.blob) else None

    def size(self) -> int | None:
        """Bytes to download, asked of the server; errors as of :func:`remote_size`."""
        return remote_size(self.address)

    def fetch(self, progress: Progress | None = None) -> Path:
        """The file in the cache, downloaded and verified where it is not there already.

        The caller has seen to it that the user accepts the terms. Errors are those of
        :func:`edgeseg.networks.download.fetch_verified`.
        """
        path = self.destination
        fetch_verified(self.address, path, self.blob, progress)
        return path


_CITYSCAPES: Final = "trained on Cityscapes (research, non-commercial)"
_NONE_STATED: Final = "no licence is stated"

PUBLISHED: Final[dict[str, Published]] = {
    entry.name: entry
    for entry in (
        Published(
            "erfnet-cityscapes",
            "erfnet",
            "the reference ERFNet, 20 outputs, the void output untrained",
            "trained_models/pretrained/erfnet_pretrained.pth",
            "44fc485db5072d2144f58d520c2694a2e5b44ac4",
            "CC BY-NC (the reference weights of ERFNet): credit the authors, no commercial use; "
            + _CITYSCAPES,
        ),
        Published(
            "erfnet-void",
            "erfnet",
            "ERFNet fine-tuned with void as a 20th class",
            "trained_models/finetuning/erfnet_finetuned.pth",
            "1c6749a9217398ec71073de2f0eed701c2d76a75",
            f"{_NONE_STATED}; made from erfnet-cityscapes, which is CC BY-NC; {_CITYSCAPES}",
        ),
        Published(
            "enet-void",
            "enet",
            "ENet fine-tuned with void as a 20th class",
            "trained_models/finetuning/enet_560_epochs_finetuned.pth",
            "45993a1447afe590117ee41e2c17443810fc407c",
            f"{_NONE_STATED}; {_CITYSCAPES}",
        ),
        Published(
            "bisenet-void",
            "bisenet",
            "BiSeNetV1 (ResNet-18) fine-tuned with void as a 20th class",
            "trained_models/finetuning/bisenet_finetuned.pth",
            "031c88f7386100ceed5117e44289fc099f70ec83",
            f"{_NONE_STATED}; {_CITYSCAPES}",
        ),
        Published(
            "bisenet-cityscapes",
            "bisenet",
            "BiSeNetV1 (ResNet-18) before void was taught",
            "trained_models/pretrained/bisenetv1_pretrained.pth",
            "092eaae9ad8e6f47e03dcd76507dd318319f1497",
            f"{_NONE_STATED} with the file, and CoinCheung/BiSeNet is MIT; {_CITYSCAPES}",
        ),
        Published(
            "midenet-void",
            "midenet",
            "MiDE-Net distilled from ENet, with void as a 20th class",
            "trained_models/distillation/midenet_distilled.pth",
            "157f5a2b4c8be9e38829a9c7c3b68ba0395c02b2",
            f"{_NONE_STATED}; {_CITYSCAPES}",
        ),
    )
}


def find_published(name: str) -> Published:
    """The published checkpoint of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PUBLISHED:
        raise UsageError(
            f"published weights '{name}' are unknown; choose one of {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


def weights_folder() -> Path:
    """Where fetched weights are kept: ``$XDG_CACHE_HOME/edgeseg/weights``.

    Raises:
        InputError: the user has no home folder.
    """
    try:
        return cache_folder() / "weights"
    except RuntimeError:
        raise InputError(
            "there is no home folder to keep weights in; set XDG_CACHE_HOME to a folder"
        ) from None


def _base() -> str:
    mirror = os.environ.get(MIRROR, "")
    if not mirror:
        return _BASE
    # Not quoted in the message: a login may be in it.
    if not is_acceptable(mirror) or urlsplit(mirror).query or urlsplit(mirror).fragment:
        raise UsageError(
            f"{MIRROR} must be an https address, or http on this machine, without user, query or "
            "fragment; set it to such a one or unset it"
        )
    return mirror.rstrip("/")
