"""The whole page: one file that asks nothing of a network, and runs no script."""

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Final

from edgeseg import __version__
from edgeseg.reporting.accuracy import accuracy_section, pareto_section, points
from edgeseg.reporting.compressed import compression_section
from edgeseg.reporting.curves import curves_section
from edgeseg.reporting.fields import printable
from edgeseg.reporting.files import Material
from edgeseg.reporting.markup import (
    Html,
    counted,
    details,
    join,
    paragraph,
    tag,
)
from edgeseg.reporting.pictures import Progress, frames_section
from edgeseg.reporting.roofline import roofline_section
from edgeseg.reporting.speed import devices_section, latency_section
from edgeseg.reporting.style import STYLE

__all__ = ["MARK", "page"]

MARK: Final = '<meta name="generator" content="edgeseg report">'
"""Stands near the beginning of every report, so that one is known again."""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIZE: Final = "@size@"
_MAX_NAMED: Final = 200


def page(
    material: Material,
    folder: str,
    *,
    max_frames: int,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> str:
    """The document.

    Args:
        material: what to show.
        folder: its name.
        max_frames: how many example frames at most.
        say: is told of pictures that cannot be read.
        progress: is told frames done and in all.
    """
    folder = printable(folder)
    profiles, judged = material.profiles, material.evaluations
    pairs = points(profiles, judged, material.compressions)
    sections = {
        "devices": ("Networks by devices", devices_section(profiles)),
        "pareto": (
            "Accuracy against latency",
            pareto_section(pairs, judged=bool(judged), timed=bool(profiles)),
        ),
        "latency": ("Latency", latency_section(profiles, material.runs)),
        "roofline": ("Layers under the roofline", roofline_section(profiles)),
        "accuracy": ("Accuracy", accuracy_section(judged)),
        "curves": ("ROC and precision-recall", curves_section(judged)),
        "compression": (
            "Compression",
            compression_section(material.gates, material.compressions),
        ),
        "frames": (
            "Example frames",
            frames_section(material.frames, max_frames, say, progress),
        ),
        "files": ("Files", _files(material)),
    }
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    links = [tag("li", tag("a", title, href=f"#{key}")) for key, (title, _) in sections.items()]
    body = [
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag(
            "header",
            tag("h1", f"edgeseg report: {folder}"),
            paragraph(f"{_counted(material)}. Made {now} by edgeseg {__version__}.", class_="note"),
            tag("nav", tag("ul", *links), aria_label="Sections"),
        ),
        tag(
            "main",
            *(
                tag(
                    "section",
                    tag("h2", title, id=f"{key}-title"),
                    content,
                    id=key,
                    aria_labelledby=f"{key}-title",
                )
                for key, (title, content) in sections.items()
            ),
            id="content",
        ),
        tag("footer", paragraph(f"This page takes {_SIZE} and needs no network.")),
    ]
    text = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            MARK,
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            tag("title", f"edgeseg report: {folder}"),
            f"<style>{STYLE}</style>",
            "</head>",
            tag("body", *body),
            "</html>",
            "",
        ]
    )
    head, _, tail = text.rpartition(_SIZE)
    return f"{head}{len(text.encode()) / 1e6:.2f} MB{tail}"


def _counted(material: Material) -> str:
    kinds = {
        "profile": len(material.profiles),
        "evaluation": len(material.evaluations),
        "run": len(material.runs),
        "gate report": len(material.gates),
        "compression table": len(material.compressions),
        "frame": len(material.frames),
    }
    found = ", ".join(counted(number, kind) for kind, number in kinds.items() if number)
    return f"{found} in {counted(material.files, 'file')}"


def _files(material: Material) -> Html:
    parts = []
    if material.broken:
        parts.append(paragraph(f"{len(material.broken)} could not be used:"))
        parts.append(_list(material.broken))
    if material.ignored:
        label = f"{len(material.ignored)} ignored: not written by a command whose results are shown"
        parts.append(details(label, _list(material.ignored)))
    if not parts:
        return paragraph("All were used. Hidden files are not looked at.")
    return join(*parts)


def _list(entries: Sequence[tuple[str, str]]) -> Html:
    items = [tag("li", tag("code", name), f": {why}") for name, why in entries[:_MAX_NAMED]]
    left = len(entries) - _MAX_NAMED
    if left > 0:
        items.append(tag("li", f"and {left} more"))
    return tag("ul", *items, class_="files")
