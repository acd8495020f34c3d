"""The bundle that the wheel carries, for runs that name none."""

import importlib.resources
from pathlib import Path

from edgeseg.errors import UsageError

__all__ = ["ready_bundle"]


def ready_bundle() -> Path:
    """Folder of the ready INT8 bundle; UsageError where this installation has none."""
    folder = Path(str(importlib.resources.files("edgeseg"))) / "bundles" / "ready"
    if not (folder / "bundle.json").is_file():
        raise UsageError(
            "this installation carries no ready bundle; name one, made by "
            "'edgeseg export NETWORK --int8'"
        )
    return folder
