"""Which files of a folder the report can use: by what they hold, not by how they are called."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgeseg.reporting.compressed import Compression, Gate, read_compression, read_gate
from edgeseg.reporting.documents import Evaluation, Profile, read_evaluation, read_profile
from edgeseg.reporting.fields import Fields, MalformedError, printable

__all__ = ["MAX_DOCUMENT_BYTES", "MAX_LINES_BYTES", "Frame", "Material", "RunLines", "search"]

MAX_DOCUMENT_BYTES: Final = 16 << 20
"""Larger JSON documents are left out."""
MAX_LINES_BYTES: Final = 64 << 20
"""What is read of a file of JSON lines."""
_OVERLAY: Final = "_overlay.jpg"
_PARTS: Final = ("_overlay.jpg", "_classes.png", "_score.png", "_score.npy")
_SNIFFED: Final = 512
_RUN_KEYS: Final = frozenset(("frame", "latency_ms", "age_ms", "state", "regions"))

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class RunLines:
    """What ``edgeseg run --jsonl`` wrote; milliseconds."""

    file: str
    latency: list[float] = field(default_factory=list)
    age: list[float] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that ``edgeseg run --save`` wrote; the score's picture where there is one."""

    file: str
    overlay: Path
    score: Path | None


@dataclass(slots=True)
class Material:
    """What was found in a folder; file names are relative to it."""

    profiles: list[Profile] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    runs: list[RunLines] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    compressions: list[Compression] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    """File, and why."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """As :attr:`ignored`, but meant for this."""
    files: int = 0

    @property
    def usable(self) -> bool:
        """Whether anything can be shown."""
        kinds = (self.profiles, self.evaluations, self.runs, self.gates, self.compressions)
        return any(kinds) or bool(self.frames)


def search(folder: Path, leave_out: Path, progress: Progress | None = None) -> Material:
    """Look at every file of a folder and of those in it; hidden ones are passed over.

    Args:
        folder: to search; links to folders are not followed.
        leave_out: a file in it that is not looked at: the report of last time.
        progress: is told files done and in all.
    """
    found = Material()

    def unreadable(error: OSError) -> None:
        found.broken.append((printable(str(error.filename)), f"{error.strerror}"))

    paths = [p for p in _files(folder, unreadable) if p != leave_out.resolve()]
    there = set(paths)
    for done, path in enumerate(paths, start=1):
        name = printable(str(path.relative_to(folder.resolve())))
        found.files += 1
        try:
            _look(path, name, there, found)
        except MalformedError as error:
            found.broken.append((name, str(error)))
        except OSError as error:
            found.broken.append((name, f"it cannot be read ({error.strerror})"))
        if progress is not None:
            progress(done, len(paths))
    return found


def _files(folder: Path, on_error: Callable[[OSError], None]) -> list[Path]:
    paths = []
    for where, folders, names in os.walk(folder.resolve(), onerror=on_error):
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        paths += [Path(where, n) for n in sorted(names) if not n.startswith(".")]
    return [p for p in paths if p.is_file()]


def _look(path: Path, name: str, there: set[Path], found: Material) -> None:
    stem = next((path.name.removesuffix(e) for e in _PARTS if path.name.endswith(e)), None)
    if stem is not None and path.with_name(stem + _OVERLAY) in there:
        if path.name.endswith(_OVERLAY):
            score = path.with_name(f"{stem}_score.png")
            found.frames.append(Frame(name, path, score if score in there else None))
        return  # the other parts belong to it
    with path.open("rb") as handle:
        start = handle.read(_SNIFFED).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"{"):
        _without_object(path, name, start, found)
        return
    size = path.stat().st_size
    if size <= MAX_DOCUMENT_BYTES:
        try:
            _document(_parse(path.read_bytes()), name, found)
            return
        except _NotJsonError:
            pass  # or several, one a line
    _lines(path, name, size, found)


def _without_object(path: Path, name: str, start: bytes, found: Material) -> None:
    if path.suffix.lower() not in (".json", ".jsonl"):
        found.ignored.append((name, "no JSON"))
    elif start[:1] == b"[":
        found.ignored.append((name, "JSON without a schema"))
    else:
        what = "it holds no JSON" if start else "it is empty"
        raise MalformedError(f"{what}; write it again")


def _document(document: Any, name: str, found: Material) -> None:
    """Put a document where it belongs."""
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if not isinstance(schema, str):
        if isinstance(document, Mapping) and document.keys() >= _RUN_KEYS:
            run = RunLines(name)  # a run of one frame
            _add_line(run, document)
            found.runs.append(run)
            return
        found.ignored.append((name, "JSON without a schema"))
    elif schema == "edgeseg.profile/1":
        found.profiles.append(read_profile(document, name))
    elif schema == "edgeseg.eval/1":
        found.evaluations.append(read_evaluation(document, name))
    elif schema == "edgeseg.gate/1":
        found.gates.append(read_gate(document, name))
    elif schema == "edgeseg.compression-table/1":
        found.compressions.append(read_compression(document, name))
    else:
        found.ignored.append((name, f"schema {printable(schema)}"))


def _lines(path: Path, name: str, size: int, found: Material) -> None:
    """JSON lines: of a run, or documents that were appended to each other."""
    run, unread, documents, others = RunLines(name), 0, 0, 0
    for text in _line_by_line(path):
        try:
            line = _parse(text)
            if isinstance(line, Mapping) and line.keys() >= _RUN_KEYS and "schema" not in line:
                _add_line(run, line)
            elif isinstance(line, Mapping) and "schema" in line:
                documents += 1
                _document(line, name, found)
            else:
                others += 1
        except (_NotJsonError, MalformedError):
            unread += 1
    if not run.lines and not documents:
        if unread and (path.suffix.lower() in (".json", ".jsonl")):
            if size > MAX_DOCUMENT_BYTES:
                raise MalformedError(f"documents up to {MAX_DOCUMENT_BYTES >> 20} MB are read")
            raise MalformedError("it is cut off or no JSON; write it again")
        found.ignored.append((name, "JSON lines of something else" if others else "no JSON"))
        return
    notes = []
    if unread:
        notes.append(f"{unread} of its lines cannot be read")
        found.broken.append((name, f"{notes[0]}; the others are used"))
    if size > MAX_LINES_BYTES:
        notes.append(f"only its first {MAX_LINES_BYTES >> 20} MB are read")
    if run.lines:
        run.note = "; ".join(notes)
        found.runs.append(run)


def _line_by_line(path: Path) -> Iterator[bytes]:
    read = 0
    with path.open("rb") as handle:
        # A line longer than a document comes in parts, none of which parses.
        while read < MAX_LINES_BYTES and (text := handle.readline(MAX_DOCUMENT_BYTES)):
            read += len(text)
            if text.strip():
                yield text


def _add_line(run: RunLines, line: Mapping[str, Any]) -> None:
    fields = Fields(line, "a line")
    latency, age = fields.optional("latency_ms"), fields.optional("age_ms")
    run.states[fields.text("state")] += 1
    run.lines += 1
    if latency is not None and latency >= 0:
        run.latency.append(latency)
    if age is not None and age >= 0:
        run.age.append(age)


class _NotJsonError(ValueError):
    pass


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _NotJsonError(str(error)) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
