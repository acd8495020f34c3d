"""The papers' tables: sources of every figure, cells without weights, a run that goes on."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeseg.evaluation.state import ScorerSpec
from edgeseg.networks.zoo import NETWORKS
from edgeseg.scoring.scorers import SCORERS
from edgeseg.training.recipe import shipped_recipes
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import paper_rows
import paper_tables

SOURCES, TABLES = paper_rows.load_tables()
ROWS = [(table, row) for table in TABLES for row in table.rows]
MSP, VOID = ScorerSpec("msp"), ScorerSpec("void")
SETS = ("RoadAnomaly21", "RoadObsticle21", "fs_static")


def table(name: str) -> paper_rows.Table:
    return next(t for t in TABLES if t.name == name)


def tiny_table(*rows: paper_rows.Row) -> paper_rows.Table:
    return paper_rows.Table("tiny", "A tiny table", rows)


class FakeEvaluation:
    """Stands in for the network and the evaluation loop; counts what is asked of it."""

    def __init__(self, scorers: tuple[str, ...] = tuple(SCORERS), stop_at: int = 0) -> None:
        self.scorers, self.stop_at = scorers, stop_at
        self.opened: list[str] = []
        self.ran: list[tuple[str, int, list[str]]] = []

    def open(self, stack: Any, target: str, *_: Any) -> tuple[Any, tuple[int, int], list[str]]:
        self.opened.append(target)
        return SimpleNamespace(scorers=self.scorers), (512, 1024), []

    def run(self, predictor: Any, data: Any, specs: Any, size: Any, every: int, _: str) -> Any:
        if self.stop_at and len(self.ran) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append((data.folder.name, every, [spec.name for spec in specs]))
        results = [
            {"auprc_percent": 10.0 * spec.temperature, "fpr95_percent": 50.125} for spec in specs
        ]
        return SimpleNamespace(results=lambda: results, miou_percent=lambda: 61.5)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose sets are empty, and readers that do not mind."""
    folder = tmp_path / "data"
    for name in (*(f"anomaly/{s}" for s in SETS), "cityscapes", "cityscapes256", "weights"):
        (folder / name).mkdir(parents=True)
    for reader in ("AnomalySet", "open_cityscapes"):
        monkeypatch.setattr(paper_tables, reader, lambda path: SimpleNamespace(folder=path))
    monkeypatch.setattr(paper_tables, "shipped_weights", lambda _: None)
    return folder


def measure(
    tables: list[paper_rows.Table], data: Path, fake: FakeEvaluation, every: int = 1
) -> list[paper_rows.Printed]:
    cache = paper_tables.Cache(data.parent / "logs" / "cache.json")
    measurer = paper_tables.Measurer(cache, data, every, None, fake.run, fake.open)
    return paper_tables.fill(tables, SOURCES, measurer, [data / "weights"], {})


def printed_line(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_figure_has_a_source_and_is_a_percentage() -> None:
    for _, row in ROWS:
        for source, cells in row.figures:
            assert source in SOURCES
            assert cells
            for cell in cells.values():
                assert all(0 <= value <= 100 for value in cell)


def test_every_source_is_a_file_at_a_commit() -> None:
    for key, source in SOURCES.items():
        assert source["path"]
        if key != paper_rows.SAME_FILE:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source["repository"])
            assert re.fullmatch(r"[0-9a-f]{40}", source["commit"])


def test_rows_name_networks_scorers_and_recipes_that_exist() -> None:
    for _, row in ROWS:
        assert row.network in NETWORKS
        assert row.spec.name in SCORERS
        for name in re.findall(r"paper[12]-[a-z0-9-]+", row.how):
            assert name in shipped_recipes()


def test_tables_hold_what_the_issue_asks_for() -> None:
    assert [t.name for t in TABLES] == [
        "baselines", "temperature", "void", "scorers", "losses", "compression",
    ]  # fmt: skip
    assert [r.spec.name for r in table("baselines").rows] == ["msp", "maxlogit", "entropy"]
    grid = [r.spec.temperature for r in table("temperature").rows]
    assert grid == [0.5, 0.75, 1, 1.1, 1.6, 2.15]
    assert {r.network for r in table("void").rows} == set(NETWORKS)
    recipes = {r.weights[0].removeprefix("paper1-erfnet-") for r in table("losses").rows}
    assert recipes == {"ce", "focal", "isomax", "logitnorm", "isomax-focal", "logitnorm-focal"}


def test_compression_figures_are_those_of_issue_4() -> None:
    found = {
        row.label: cells["cityscapes"]
        for row in table("compression").rows
        for _, cells in row.figures
        if row.network == "erfnet"
    }
    assert list(found.values()) == [(64.31,), (58.61,), (44.80,), (41.06,)]


def test_cells_without_weights_say_so_and_unknown_ones_are_dashes(data: Path) -> None:
    fake = FakeEvaluation()
    printed = measure(TABLES, data, fake)
    assert not fake.opened
    text = paper_rows.to_markdown(printed, SOURCES)
    focal = printed_line(text, "focal, MSP")
    assert focal[1:] == ["here: recipe paper1-erfnet-focal", *["no weights"] * 5]
    void = printed_line(text, "BiSeNet, from scratch")
    assert void[2:] == ["68.78", "-", "-", "-", "-"]
    assert "here: edgeseg weights fetch bisenet-void | no weights" in text
    assert "torch FX weights cannot be evaluated yet | not evaluated" in text
    assert "--bundle erfnet=FOLDER | no bundle" in text


def test_measured_figures_stand_below_those_of_the_papers(data: Path) -> None:
    (data / "weights" / "erfnet_pretrained20.pth").write_bytes(b"weights")
    text = paper_rows.to_markdown(measure([table("temperature")], data, FakeEvaluation()), SOURCES)
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("| T = 2.15 |"))
    assert "paper 2 [" in lines[at]
    assert "30.64 / 65.57" in lines[at]
    assert "same file as below [" in lines[at + 1]
    assert "66.80 | 47.00 | 30.89 / 69.27" in lines[at + 1]
    assert "here: erfnet_pretrained20.pth" in lines[at + 2]
    assert "61.50 | 61.50 | 21.50 / 50.12" in lines[at + 2]
    assert text.count("emariesanna/AnomalySegmentation-AMLProject at ca1714a1869e") == 1


def test_every_set_is_measured_once_for_all_rows(data: Path) -> None:
    (data / "weights" / "erfnet_pretrained20.pth").write_bytes(b"weights")
    fake = FakeEvaluation()
    measure([table("baselines"), table("temperature")], data, fake)
    assert fake.opened == ["erfnet"]
    assert [(name, every) for name, every, _ in fake.ran] == [
        *((name, 1) for name in SETS), ("cityscapes", 1), ("cityscapes256", 5),
    ]  # fmt: skip
    assert fake.ran[0][2] == ["msp", "maxlogit", "entropy", *["msp"] * 5]


def test_what_is_in_the_cache_is_not_measured_again(data: Path) -> None:
    (data / "weights" / "erfnet_pretrained20.pth").write_bytes(b"weights")
    first = measure([table("baselines")], data, FakeEvaluation())
    again = FakeEvaluation()
    second = measure([table("baselines")], data, again)
    assert not again.opened
    text = paper_rows.to_markdown(first, SOURCES)
    assert text == paper_rows.to_markdown(second, SOURCES)

    more = FakeEvaluation()
    measure([table("temperature")], data, more)
    assert [names for _, _, names in more.ran] == [["msp"] * 5] * len(SETS)

    trial = FakeEvaluation()
    measure([table("baselines")], data, trial, every=10)
    assert [every for _, every, _ in trial.ran] == [10, 10, 10, 10, 50]


def test_changed_weights_are_measured_again(data: Path) -> None:
    row = paper_rows.Row("mine", "erfnet", MSP, ("mine",))
    for content in (b"one", b"two"):
        paper_tables.sha256.cache_clear()
        (data / "weights" / "mine.pth").write_bytes(content)
        fake = FakeEvaluation()
        measure([tiny_table(row)], data, fake)
        assert len(fake.ran) == 5


def test_interrupted_run_goes_on(data: Path) -> None:
    (data / "weights" / "erfnet_void20.pth").write_bytes(b"weights")
    row = paper_rows.Row("mine", "erfnet", VOID, ("erfnet_void20",))
    with pytest.raises(KeyboardInterrupt):
        measure([tiny_table(row)], data, FakeEvaluation(stop_at=3))
    rest = FakeEvaluation()
    measure([tiny_table(row)], data, rest)
    assert [name for name, _, _ in rest.ran] == ["fs_static", "cityscapes", "cityscapes256"]


def test_a_scorer_that_a_network_lacks_is_a_dash(data: Path) -> None:
    (data / "weights" / "mine.safetensors").write_bytes(b"weights")
    row = paper_rows.Row("mine", "erfnet", VOID, ("mine",))
    fake = FakeEvaluation(scorers=("msp",))
    text = paper_rows.to_markdown(measure([tiny_table(row)], data, fake), SOURCES)
    assert printed_line(text, "mine")[1:] == ["here: mine.safetensors", "61.50", "61.50", *"---"]


def test_a_set_that_is_not_there_says_so(data: Path) -> None:
    (data / "weights" / "mine.pth").write_bytes(b"weights")
    (data / "anomaly" / "fs_static").rmdir()
    row = paper_rows.Row("mine", "erfnet", MSP, ("mine",))
    printed = measure([tiny_table(row)], data, FakeEvaluation())
    cells = printed_line(paper_rows.to_markdown(printed, SOURCES), "mine")
    assert cells[-2:] == ["10.00 / 50.12", "no data"]


def test_only_takes_rows_by_table_label_or_network() -> None:
    assert [t.name for t in paper_rows.select(TABLES, ["losses"])] == ["losses"]
    (void, scorers, compression) = paper_rows.select(TABLES, ["bisenet"])
    rows = (*void.rows, *scorers.rows, *compression.rows)
    assert {row.network for row in rows} == {"bisenet"}
    assert len(paper_rows.select(TABLES, ["baselines", "T = 1.6"])) == 2
    assert not paper_rows.select(TABLES, ["segnet"])


def test_document_is_json_with_null_for_the_unknown(data: Path) -> None:
    (data / "weights" / "erfnet_void20.pth").write_bytes(b"weights")
    document = paper_rows.to_document(measure(TABLES, data, FakeEvaluation()), SOURCES)
    assert json.loads(json.dumps(document))["schema"] == "edgeseg.paper-tables/1"
    void = next(t for t in document["tables"] if t["id"] == "void")
    tuned = next(r for r in void["rows"] if r["label"] == "ERFNet, last layer tuned")
    assert [line["whose"] for line in tuned["lines"]] == [
        "paper 2", "same file as below", "here: erfnet_void20.pth",
    ]  # fmt: skip
    assert tuned["lines"][0]["cells"]["cityscapes256"] is None
    assert tuned["lines"][2]["cells"]["fs_static"] == (10.0, 50.125)
    scratch = next(r for r in void["rows"] if r["label"] == "BiSeNet, from scratch")
    assert scratch["lines"][-1]["cells"]["fs_static"] == "no weights"
