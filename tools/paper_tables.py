"""Print the tables of both papers beside what this checkout measures.

    python tools/paper_tables.py [--data ../shared/data] [--weights FOLDER]...
        [--bundle NAME=FOLDER]... [--only WORD]... [--markdown FILE] [--json FILE]

The papers' figures and their sources are in ``tools/results/paper_figures.json``. A row is measured
with the files in the ``--weights`` folders that have one of its names, such as
``erfnet_void20.pth``, ``bisenet-void.pth`` (``edgeseg weights fetch``) or, trained by a recipe,
``paper1-erfnet-focal.safetensors``; with the shipped weights; and with INT8 bundles that
``--bundle`` names. A row without any says so.

What is measured is kept in ``--cache``, by the sha256 of the weights, and written after every data
set, so a run that was interrupted goes on. After a change of the evaluation or of a network give
``--fresh``. ``--only`` takes the rows whose table (baselines, temperature, void, scorers, losses,
compression), label or network has the word in it; ``--every 10`` is for trials.

The mIoU of the papers is over the 500 val frames, ours over the 5 of the data folder at 512x1024
and over every fifth of the 256x256 set.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeseg.cli.eval_targets import open_target
from edgeseg.data import AnomalySet, open_cityscapes
from edgeseg.errors import EdgesegError
from edgeseg.evaluation.state import ScorerSpec
from edgeseg.networks.zoo import shipped_weights
from paper_rows import (
    Cell,
    Cells,
    Printed,
    Row,
    Table,
    lines_of,
    load_tables,
    select,
    to_document,
    to_markdown,
)
from reproduce_figures import CITYSCAPES, CITYSCAPES256, SETS, measure

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = (".safetensors", ".pth", ".pt")
SIZE = (512, 1024)
NO_DATA = "no data"

Figures = dict[str, list[float] | None]


@dataclass(frozen=True, slots=True)
class Artefact:
    """Weights or a bundle that a row can be measured with."""

    name: str
    target: str
    """Name of the network, or folder of the bundle."""
    file: Path
    """What its sha256 is taken of."""
    stem: str

    @property
    def is_bundle(self) -> bool:
        """Whether it is a bundle, which has one size."""
        return self.file.name == "bundle.json"


class Cache:
    """Figures by artefact, data set and thinning, in a file that is always whole."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        self.entries: dict[str, Figures] = {}
        if path.is_file() and not fresh:
            self.entries = json.loads(path.read_text(encoding="utf-8"))

    def add(self, key: str, figures: Figures) -> None:
        """Remember figures, and write the file."""
        self.entries.setdefault(key, {}).update(figures)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def artefacts_of(row: Row, folders: Sequence[Path], bundles: dict[str, Path]) -> list[Artefact]:
    """Everything at hand that the row can be measured with."""
    found = []
    for stem in row.weights:
        files = (folder / f"{stem}{suffix}" for folder in folders for suffix in SUFFIXES)
        file = next((f for f in files if f.is_file()), None)
        if file is not None:
            found.append(Artefact(file.name, row.network, file, stem))
    shipped = shipped_weights(row.network) if row.shipped else None
    if shipped is not None:
        found.append(Artefact(f"shipped {row.network}", row.network, shipped, "shipped"))
    if row.bundle in bundles:
        folder = bundles[row.bundle]
        found.append(Artefact(f"bundle {folder.name}", str(folder), folder / "bundle.json", ""))
    return found


@cache
def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def name_of(spec: ScorerSpec) -> str:
    return f"{spec.name} T={spec.temperature:g}"


class Measurer:
    """Measures artefacts, each set once for all scorers that are asked for."""

    def __init__(
        self,
        cache: Cache,
        data: Path,
        every: int,
        threads: int | None,
        run: Callable[..., Any] = measure,
        opener: Callable[..., Any] = open_target,
    ) -> None:
        self.cache, self.data, self.every, self.threads = cache, data, every, threads
        self.run, self.opener = run, opener

    def __call__(self, artefact: Artefact, specs: Iterable[ScorerSpec]) -> None:
        """Fill the cache with what it lacks of this artefact."""
        digest = sha256(artefact.file)
        wanted = {name_of(spec): spec for spec in specs}
        todo = []
        for folder, size, every in self._sets():
            have = self.cache.entries.get(self._key(digest, folder), {})
            names = ["miou"] if folder not in SETS else list(wanted)
            lacking = [name for name in names if name not in have]
            if lacking and self._place(folder).is_dir():
                todo.append((folder, size, every, lacking))
        if not todo:
            return
        with ExitStack() as stack:
            bundle = artefact.is_bundle
            weights, asked = (None, None) if bundle else (artefact.file, SIZE)
            predictor, own, _ = self.opener(
                stack, artefact.target, weights, None, self.threads, asked, "float32"
            )
            for folder, size, every, lacking in todo:
                key = self._key(digest, folder)
                if bundle and own != size:  # it cannot be measured on this set
                    continue
                if folder not in SETS:
                    data = open_cityscapes(self._place(folder))
                    state = self.run(predictor, data, [], size, every, "runtime")
                    self.cache.add(key, {"miou": _cell(state.miou_percent())})
                    continue
                able = [n for n in lacking if wanted[n].name in predictor.scorers]
                figures: Figures = dict.fromkeys(lacking)
                if able:
                    data = AnomalySet(self._place(folder))
                    chosen = [wanted[n] for n in able]
                    state = self.run(predictor, data, chosen, size, every, "runtime")
                    for name, result in zip(able, state.results(), strict=True):
                        figures[name] = _cell(result["auprc_percent"], result["fpr95_percent"])
                self.cache.add(key, figures)

    def cells(self, artefact: Artefact, spec: ScorerSpec) -> Cells:
        """What the cache holds of this artefact for a row."""
        digest = sha256(artefact.file)
        cells: dict[str, Cell] = {}
        for folder, _, _ in self._sets():
            have = self.cache.entries.get(self._key(digest, folder), {})
            value = have.get(name_of(spec) if folder in SETS else "miou")
            if value is not None:
                cells[folder] = tuple(value)
            elif not self._place(folder).is_dir():
                cells[folder] = NO_DATA
        return cells

    def _sets(self) -> list[tuple[str, tuple[int, int], int]]:
        """Folder, size and thinning of every set."""
        sets = [(name, SIZE, 1) for name in SETS]
        return [(f, size, n * self.every) for f, size, n in (*sets, CITYSCAPES, CITYSCAPES256)]

    def _place(self, folder: str) -> Path:
        return self.data / "anomaly" / folder if folder in SETS else self.data / folder

    def _key(self, digest: str, folder: str) -> str:
        return f"{digest} {folder} every {self.every}"


def _cell(*values: float | None) -> list[float] | None:
    given = [round(v, 4) for v in values if v is not None]
    return given if len(given) == len(values) else None


def fill(
    tables: Sequence[Table],
    sources: dict[str, dict[str, str]],
    measurer: Measurer,
    folders: Sequence[Path],
    bundles: dict[str, Path],
) -> list[Printed]:
    """Measure what is at hand, and put it beside what the papers say."""
    at_hand = [
        [(row, artefacts_of(row, folders, bundles)) for row in table.rows] for table in tables
    ]
    specs: dict[Artefact, dict[ScorerSpec, None]] = {}
    for row, artefacts in (pair for pairs in at_hand for pair in pairs):
        for artefact in artefacts:
            specs.setdefault(artefact, {})[row.spec] = None
    for artefact, wanted in specs.items():
        measurer(artefact, wanted)
    printed = []
    for table, pairs in zip(tables, at_hand, strict=True):
        rows = []
        for row, artefacts in pairs:
            measured = [(a.name, a.stem, measurer.cells(a, row.spec)) for a in artefacts]
            rows.append((row, lines_of(row, measured, sources)))
        printed.append(Printed(table, rows))
    return printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("EDGESEG_TEST_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--weights", type=Path, action="append", metavar="FOLDER")
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--only", action="append", default=[], metavar="WORD")
    parser.add_argument("--every", type=int, default=1, help="take every N-th frame")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cache", type=Path, default=ROOT / "logs" / "paper_tables.json")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    bundles = {}
    for entry in options.bundle:
        name, equals, folder = entry.partition("=")
        if not equals or not (Path(folder) / "bundle.json").is_file():
            parser.error(f"--bundle '{entry}' is not NAME=FOLDER with the folder of a bundle")
        bundles[name] = Path(folder)
    if options.every < 1:
        parser.error("--every starts at 1")
    sources, tables = load_tables()
    chosen = select(tables, options.only)
    if not chosen:
        parser.error(f"no row has {' or '.join(options.only)} in its name")
    folders = options.weights or [options.data / "weights"]
    measurer = Measurer(
        Cache(options.cache, options.fresh), options.data, options.every, options.threads
    )
    try:
        printed = fill(chosen, sources, measurer, folders, bundles)
    except EdgesegError as error:
        print(f"paper_tables: {error}", file=sys.stderr)
        return 1
    text = to_markdown(printed, sources)
    if options.every > 1:
        text = f"A trial on every {options.every}th frame: its figures compare with none.\n\n{text}"
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        document = {**to_document(printed, sources), "every": options.every}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
