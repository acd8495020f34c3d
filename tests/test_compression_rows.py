"""Rows of the compression table: the commands that make them, and what is not made again."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

from edgeseg.training.recipe import load_recipe, shipped_recipes
from tests.compression_documents import SETS
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import compression_measures as measures
import compression_rows as rows
import compression_table


class FakeRun:
    """Stands in for the commands: makes their folder, and fails where it is told to."""

    def __init__(self, codes: Mapping[str, int] | None = None) -> None:
        self.codes = codes or {}
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str], log: Path) -> tuple[int, str]:
        self.commands.append(list(command))
        code = self.codes.get(command[0], 0)
        if not code:
            Path(command[-1]).mkdir(parents=True)
        return code, json.dumps({"schema": f"edgeseg.{command[0]}/1"})

    @property
    def names(self) -> list[str]:
        return [command[0] for command in self.commands]


@pytest.fixture
def settings(tmp_path: Path) -> rows.Settings:
    for name in ("erfnet", "enet", "midenet"):
        (tmp_path / f"{name}.pth").write_bytes(name.encode())
    weights = {name: tmp_path / f"{name}.pth" for name in ("erfnet", "enet", "midenet")}
    data = tmp_path / "data"
    return rows.Settings(data, tmp_path / "work", weights, data / "frames")


def form(key: str) -> rows.Form:
    return next(f for f in rows.FORMS if f.key == key)


def build(settings: rows.Settings, key: str, run: FakeRun, name: str = "erfnet") -> rows.Built:
    rows._sha256.cache_clear()
    return rows.Builder(name, settings, run).build(form(key))


def test_rows_are_made_by_commands_that_users_have(settings: rows.Settings) -> None:
    run = FakeRun()
    built = build(settings, "pruned-int8", run)
    prune, export = run.commands
    weights = str(settings.weights["erfnet"])
    assert prune[:8] == [
        "prune", "erfnet", "--weights", weights, "--size", "512x1024", "--amount", "0.3",
    ]  # fmt: skip
    assert export[:2] == ["export", "erfnet"]
    assert export[3] == f"{prune[-1]}/erfnet.safetensors"
    assert "--int8" in export
    assert built.path == Path(export[-1])
    assert [c.split()[:2] for c in built.commands] == [["edgeseg", "prune"], ["edgeseg", "export"]]


def test_masked_filters_are_zeroed_and_fx_is_quantized(settings: rows.Settings) -> None:
    run = FakeRun()
    build(settings, "masked-fx", run)
    assert run.commands[0][run.commands[0].index("--mode") + 1] == "zero"
    assert run.commands[1][0] == "quantize"
    assert "fx" in run.commands[1]
    assert str(settings.calibration) in run.commands[1]


def test_what_was_built_is_not_built_again(settings: rows.Settings) -> None:
    run = FakeRun()
    first = build(settings, "pruned", run)
    again = build(settings, "pruned", run)
    assert run.names == ["prune", "export"]
    assert again.path == first.path
    assert again.report == first.report
    build(settings, "pruned-int8", run)
    assert run.names == ["prune", "export", "export"]
    build(replace(settings, amount=0.4), "pruned", run)
    assert run.names[3] == "prune"


def test_what_was_left_by_a_run_that_was_stopped_is_made_anew(settings: rows.Settings) -> None:
    built = build(settings, "float32", FakeRun())
    assert built.path is not None
    built.path.with_suffix(".json").unlink()
    (built.path / "half").touch()
    run = FakeRun()
    assert build(settings, "float32", run).path == built.path
    assert run.names == ["export"]
    assert not (built.path / "half").exists()


def test_rebuilding_a_form_leaves_the_others(settings: rows.Settings) -> None:
    run = FakeRun()
    for key in ("pruned", "pruned-int8"):
        build(settings, key, run)
    builder = rows.Builder("erfnet", settings, run)
    builder.forget("pruned")
    for key in ("pruned", "pruned-int8"):
        build(settings, key, run)
    assert run.names == ["prune", "export", "export", "export"]
    builder.forget("weights-pruned")
    build(settings, "pruned", run)
    assert run.names[4:] == ["prune"]


def test_other_weights_are_another_row(settings: rows.Settings) -> None:
    run = FakeRun()
    first = build(settings, "float32", run)
    settings.weights["erfnet"].write_bytes(b"other")
    assert build(settings, "float32", run).path != first.path
    assert len(run.commands) == 2


def test_failure_is_a_row_that_says_so_and_is_tried_again(settings: rows.Settings) -> None:
    run = FakeRun({"export": 4})
    built = build(settings, "int8", run)
    assert built.path is None
    assert built.problem.startswith("failed (4), see ")
    run.codes = {}
    assert build(settings, "int8", run).path is not None


def test_gate_that_failed_is_not_searched_again(settings: rows.Settings) -> None:
    gated = replace(settings, int8_options="--max-drop 1.0 --gate-data {data}/anomaly/fs_static")
    run = FakeRun({"export": 5})
    assert build(gated, "int8", run).problem == "gate failed"
    assert build(gated, "int8", run).problem == "gate failed"
    assert len(run.commands) == 1
    assert run.commands[0][-7:-3] == [
        "--max-drop", "1.0", "--gate-data", f"{settings.data}/anomaly/fs_static",
    ]  # fmt: skip


def test_ungated_int8_is_a_row_only_beside_a_gated_one(settings: rows.Settings) -> None:
    plain = rows.Builder("enet", settings, FakeRun()).forms(rows.KEYS)
    assert "int8-plain" not in [f.key for f in plain]
    gated = rows.Builder("enet", replace(settings, int8_options="--max-drop 1.0"), FakeRun())
    assert "int8-plain" in [f.key for f in gated.forms(rows.KEYS)]
    run = FakeRun()
    build(gated.settings, "int8-plain", run)
    assert "--max-drop" not in run.commands[0]


def test_rows_that_need_what_is_not_there_say_so(settings: rows.Settings) -> None:
    assert build(settings, "distilled", FakeRun(), "midenet").problem == "not distilled"
    assert build(settings, "timed", FakeRun()).problem == "not timed yet"
    bare = replace(settings, weights={"bisenet": settings.data / "none"})
    assert "distilled" not in [f.key for f in rows.Builder("erfnet", bare).forms(rows.KEYS)]


def test_distillation_is_from_enet_or_from_a_file(settings: rows.Settings) -> None:
    run = FakeRun()
    build(replace(settings, distill_steps=7), "distilled", run, "midenet")
    assert run.commands[0][:4] == [
        "distill", "midenet", "--teacher", f"enet:{settings.weights['enet']}",
    ]  # fmt: skip
    recipe = load_recipe(Path(run.commands[0][run.commands[0].index("--recipe") + 1]), "midenet")
    assert [stage.steps for stage in recipe.stage] == [7]
    assert str(settings.weights["midenet"]) in run.commands[0]
    file = settings.weights["midenet"]
    run = FakeRun()
    build(replace(settings, distilled=file), "distilled", run, "midenet")
    assert run.names == ["export"]
    assert str(file) in run.commands[0]


def test_time_is_a_share_of_float32(settings: rows.Settings) -> None:
    run = FakeRun()
    rows.Builder("erfnet", settings, run).build(form("timed"), ("openvino", 50.0))
    at = run.commands[0].index("--target-ms")
    assert run.commands[0][at : at + 4] == ["--target-ms", "35", "--backend", "openvino"]


def test_fine_tuning_resumes_by_a_recipe_that_can_be_read(settings: rows.Settings) -> None:
    run = FakeRun()
    build(replace(settings, finetune_steps={"erfnet": 20}), "pruned", run)
    command = run.commands[0]
    assert "--resume" in command
    recipe = load_recipe(Path(command[command.index("--recipe") + 1]), "erfnet")
    (stage,) = recipe.stage
    base = load_recipe(Path("erfnet-2"))
    assert (stage.steps, stage.part) == (20, "all")
    assert stage.lr == (base.stage[-1].lr or base.optimizer.lr) / 4
    assert recipe.data == base.data
    assert recipe.distillation.on_ignored


def test_only_shipped_weights_have_shipped_ranges(settings: rows.Settings) -> None:
    for own, shipped in (({}, True), (settings.weights, False)):
        run = FakeRun()
        build(replace(settings, weights=own, shipped_ranges=True), "int8", run)
        (at,) = (i for i, c in enumerate(run.commands[-1]) if c == "--calibration")
        assert run.commands[-1][at + 1].endswith("erfnet.json") == shipped


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_toml_of_a_recipe_is_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(Path(name))
    text = rows.to_toml(recipe.document())
    assert tomllib.loads(text)["network"] == recipe.network
    path = tmp_path / "again.toml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path).digest() == recipe.digest()


def test_a_time_is_asked_of_float32_and_measured_again(
    settings: rows.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 ms asked, 29 found while pruning; the second measurement says 50 / 1.6 = 31.25."""
    run = FakeRun()

    def prune(command: Sequence[str], log: Path) -> tuple[int, str]:
        latency = {"before": 50.0, "after": 29.0, "backend": "openvino"}
        report = {"target_ms": 30.0, "latency_ms": latency}
        return run(command, log)[0], json.dumps(report)

    for name in ("counts", "digest", "_weights"):
        monkeypatch.setattr(compression_table, name, lambda *_: {})
    quick = {e: {"ms": 40.0, "times_faster": 1.6} for e in measures.ENGINES}
    speed = SimpleNamespace(measure=lambda _, paths: dict.fromkeys(paths, quick))
    accuracy = SimpleNamespace(measure=lambda *_: {})
    tabulator = compression_table.Tabulator(settings, accuracy, speed)
    entry = tabulator.network(rows.Builder("erfnet", settings, prune), ["float32", "timed"], SETS)
    assert entry["timed"] == {
        "target_ms": 30.0, "engine": "openvino", "claimed_ms": 29.0, "ms": 31.25,
    }  # fmt: skip
    assert [r["form"] for r in entry["rows"]] == ["float32", "timed"]
    assert "28" in run.commands[1]
