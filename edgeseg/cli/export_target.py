"""`edgeseg export --target`: what is refused before the export, and what is done after it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeseg.errors import UsageError

if TYPE_CHECKING:
    from edgeseg.bundle import Bundle
    from edgeseg.export.jetson.boards import Board
    from edgeseg.export.jetson.wheels import WheelSet

__all__ = ["open_target"]


@dataclass
class Plain:
    """``onnx``: the bundle as it is."""

    document: dict[str, Any] = field(default_factory=lambda: {"engines": {}})
    """What is added to ``--json``."""

    def check(self) -> None:
        """Refuse what could not be made, before minutes go into the export."""

    def finish(self, bundle: "Bundle", scorers: Sequence[str]) -> "Bundle":
        """Do what comes after the export; ``scorers`` go into the engines."""
        return bundle

    def hint(self, bundle: "Bundle") -> str:
        """What to do next."""
        return f"try it: edgeseg run {bundle.path} --input IMAGE_OR_VIDEO --save out"


@dataclass
class WithEngines(Plain):
    """``tensorrt`` and ``tensorrt-rtx``: engines are built here."""

    name: Literal["tensorrt", "tensorrt-rtx"] = "tensorrt"
    precision: str = "float32"
    dla: int | None = None

    def check(self) -> None:
        """See :meth:`Plain.check`."""
        from edgeseg.export.tensorrt import check_target

        check_target(self.name, self.precision)

    def finish(self, bundle: "Bundle", scorers: Sequence[str]) -> "Bundle":
        """See :meth:`Plain.finish`."""
        from edgeseg.export.tensorrt import build_engines

        # Why an engine is built is always said: it takes minutes.
        bundle, engines = build_engines(
            bundle, self.name, scorers=scorers, dla_core=self.dla, report=_say
        )
        self.document = {"engines": {e.path.name: e.sidecar.engine_bytes for e in engines}}
        return bundle


@dataclass
class ForJetson(Plain):
    """``jetson-…``: an archive that builds its engines on the device."""

    board: "Board | None" = None
    wheels: Path | None = None
    _found: "list[WheelSet]" = field(default_factory=list)

    def check(self) -> None:
        """See :meth:`Plain.check`; finds the wheels."""
        from edgeseg.export.jetson.archive import device_wheels

        assert self.board is not None
        if self.wheels is None:
            _say("looking for the device's wheels; the first time they are downloaded and built")
        self._found = device_wheels(self.board, self.wheels)

    def finish(self, bundle: "Bundle", scorers: Sequence[str]) -> "Bundle":
        """See :meth:`Plain.finish`."""
        from edgeseg.export.jetson.archive import archive_path, write_archive
        from edgeseg.export.tensorrt import add_graphs
        from edgeseg.runtime.session import default_scorer

        assert self.board is not None
        bundle = add_graphs(bundle, list(dict.fromkeys(scorers)) or [default_scorer(bundle)])
        archive = archive_path(bundle.path, self.board)
        size = write_archive(bundle, self.board, self._found, archive, report=_say)
        self.document |= {"archive": str(archive), "archive_bytes": size}
        return bundle

    def hint(self, bundle: "Bundle") -> str:
        """See :meth:`Plain.hint`."""
        path, size = self.document["archive"], self.document["archive_bytes"]
        return (
            f"{path}: {size / 1e6:.1f} MB; copy it to the device, unpack it there and run "
            "./install.sh in its folder"
        )


def open_target(name: str, precision: str, *, dla: int | None, wheels: Path | None) -> Plain:
    """What a value of ``--target`` stands for.

    Raises:
        UsageError: it stands for nothing, for a board that edgeseg does not run on, or an option
            belongs to another target.
    """
    if dla is not None and name != "tensorrt":
        raise UsageError("--dla goes with --target tensorrt; add it or leave --dla out")
    if name in ("onnx", "tensorrt", "tensorrt-rtx"):
        if wheels is not None:
            raise UsageError("--wheels goes with --target jetson-PROFILE; leave it out")
        if name == "onnx":
            return Plain()
        return WithEngines(
            name="tensorrt" if name == "tensorrt" else "tensorrt-rtx", precision=precision, dla=dla
        )
    from edgeseg.export.jetson.boards import board_of, jetson_targets

    board = board_of(name, precision)
    if board is None:
        have = ", ".join(["onnx", "tensorrt", "tensorrt-rtx", *jetson_targets()])
        raise UsageError(f"--target '{name}' is unknown; choose one of {have}")
    return ForJetson(board=board, wheels=wheels)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
