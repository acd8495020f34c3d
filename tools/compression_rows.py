"""Rows of the compression table: what each is made of, and the commands that make it.

Everything is built by `edgeseg` commands, in processes of their own, so that a row can be made
again by hand. What was built is kept, with its log and its command, in a folder named by what went
into it; another run takes it from there. A fine-tuning that was stopped goes on.
"""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeseg.networks.zoo import NETWORKS, check_network, shipped_calibration, shipped_weights
from edgeseg.training.recipe import Distillation, Recipe, load_recipe, shipped_recipes

# What every INT8 export is given besides calibration frames: the accuracy gate's options belong
# here, or in --int8-options. `{data}` becomes the data folder.
INT8_OPTIONS = ""
GATE_FAILED = 5

Run = Callable[[Sequence[str], Path], tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Form:
    """A row: a network in one form."""

    key: str
    title: str
    weights: str
    """Which: ``given``, ``pruned``, ``masked``, ``distilled`` or ``timed``."""
    how: str
    """``float32``, ``int8``, ``plain`` (INT8 without the gate's options) or ``fx``."""
    networks: tuple[str, ...] = NETWORKS


FORMS = (
    Form("float32", "float32", "given", "float32"),
    Form("pruned", "pruned", "pruned", "float32"),
    Form("int8", "INT8", "given", "int8"),
    Form("int8-plain", "INT8 without gate", "given", "plain"),
    Form("pruned-int8", "pruned + INT8", "pruned", "int8"),
    Form("masked", "masked, as the papers", "masked", "float32"),
    Form("fx", "torch FX INT8", "given", "fx"),
    Form("masked-fx", "masked + torch FX INT8", "masked", "fx"),
    Form("distilled", "distilled from ENet", "distilled", "float32", ("midenet",)),
    Form("timed", "pruned to a time", "timed", "float32", ("erfnet",)),
)
KEYS = tuple(form.key for form in FORMS)
BUILDS = (*KEYS, *(f"weights-{name}" for name in ("pruned", "masked", "distilled", "timed")))
"""Names of the folders in the work folder, without what parts them by content."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides how rows are built."""

    data: Path
    work: Path
    weights: Mapping[str, Path]
    """By network, in place of the shipped ones."""
    calibration: Path
    shipped_ranges: bool = False
    """Quantize shipped weights by the ranges that come with them instead."""
    amount: float = 0.3
    finetune_steps: Mapping[str, int] = field(default_factory=dict)
    """After pruning, by network; none where it is missing or 0."""
    distill_steps: int = 0
    distilled: Path | None = None
    """MiDE-Net's weights, where they were distilled already."""
    recipes: Mapping[str, str] | None = None
    """By network, in place of the last of our own."""
    int8_options: str = INT8_OPTIONS
    time_share: float = 0.7
    """Of the float32 bundle's milliseconds: the target of the row ``timed``."""
    size: str = "512x1024"
    threads: int | None = None


@dataclass(slots=True)
class Built:
    """What stands for a row, or why nothing does."""

    form: Form
    path: Path | None = None
    """Folder of a bundle, or of a network that torch FX quantized."""
    commands: tuple[str, ...] = ()
    report: Mapping[str, Any] | None = None
    """What the last command printed."""
    weights_report: Mapping[str, Any] | None = None
    """What the command printed that made the weights."""
    problem: str = ""


class BuildError(Exception):
    """A command failed; the message is its last line."""


def run_command(command: Sequence[str], log: Path) -> tuple[int, str]:
    """Exit code and standard output; what went to standard error goes into ``log``."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ edgeseg {shlex.join(command)}\n")
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "edgeseg", *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            check=False,
        )
    return done.returncode, done.stdout


class Builder:
    """Builds the rows of one network."""

    def __init__(self, network: str, settings: Settings, run: Run = run_command) -> None:
        self.network, self.settings, self._run = check_network(network), settings, run
        self.source = given_weights(network, settings)

    def forms(self, wanted: Sequence[str]) -> list[Form]:
        """The rows that there are for this network."""
        chosen = [f for f in FORMS if f.key in wanted and self.network in f.networks]
        if not self.settings.int8_options:
            chosen = [f for f in chosen if f.how != "plain"]
        return chosen

    def forget(self, name: str) -> None:
        """Remove what was built under one of :data:`BUILDS`."""
        folder = self.settings.work / self.network
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if re.fullmatch(rf"{name}-[0-9a-f]{{10}}(\..+)?", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def build(self, form: Form, float_ms: tuple[str, float] | None = None) -> Built:
        """Build one row.

        Args:
            form: which.
            float_ms: engine and milliseconds of the float32 bundle, for the row ``timed``.
        """
        built = Built(form)
        if self.source is None:
            built.problem = "no weights"
            return built
        try:
            weights, commands, built.weights_report = self._weights(form, float_ms)
            built.path, command, built.report = self._artefact(form, weights)
            built.commands = (*commands, command)
        except BuildError as error:
            built.problem = str(error)
        return built

    def _weights(
        self, form: Form, float_ms: tuple[str, float] | None
    ) -> tuple[Path, tuple[str, ...], Mapping[str, Any] | None]:
        settings = self.settings
        assert self.source is not None
        if form.weights == "given":
            return self.source, (), None
        if form.weights == "distilled":
            return self._distilled()
        command = ["prune", self.network, "--weights", str(self.source), "--size", settings.size]
        if form.weights == "timed":
            if float_ms is None:
                raise BuildError("not timed yet")
            engine, ms = float_ms
            target = f"{settings.time_share * ms:.3g}"
            command += ["--target-ms", target, "--backend", engine]
        else:
            command += ["--amount", f"{settings.amount:g}"]
            if form.weights == "masked":
                command += ["--mode", "zero"]
            if steps := settings.finetune_steps.get(self.network, 0):
                command += ["--data", str(settings.data), "--recipe", str(self._recovery(steps))]
                command += ["--resume"]
        if settings.threads is not None:
            command += ["--threads", str(settings.threads)]
        folder, text, report = self._do(f"weights-{form.weights}", [*command, "--json"])
        return folder / f"{self.network}.safetensors", (text,), report

    def _distilled(self) -> tuple[Path, tuple[str, ...], Mapping[str, Any] | None]:
        settings = self.settings
        if settings.distilled is not None:
            return settings.distilled, (), None
        teacher = given_weights("enet", settings)
        if not settings.distill_steps or teacher is None:
            raise BuildError("no teacher" if teacher is None else "not distilled")
        command = ["distill", self.network, "--teacher", f"enet:{teacher}", "--resume"]
        command += ["--weights", str(self.source), "--data", str(settings.data)]
        command += ["--recipe", str(self._recovery(settings.distill_steps))]
        if settings.threads is not None:
            command += ["--threads", str(settings.threads)]
        folder, text, report = self._do("weights-distilled", [*command, "--json"])
        return folder / f"{self.network}.safetensors", (text,), report

    def _artefact(self, form: Form, weights: Path) -> tuple[Path, str, Mapping[str, Any]]:
        settings = self.settings
        frames = ["--calibration", str(settings.calibration)]
        command = [self.network, "--weights", str(weights), "--size", settings.size]
        if form.how == "fx":
            command = ["quantize", *command, "--method", "fx", *frames]
        else:
            command = ["export", *command]
            if form.how != "float32":
                shipped = form.weights == "given" and self.network not in settings.weights
                if shipped and settings.shipped_ranges:
                    # By name, though it is the default: another file makes another row.
                    ranges = shipped_calibration(self.network) or settings.calibration
                    frames = ["--calibration", str(ranges)]
                command += ["--int8", *frames]
            if form.how == "int8":
                command += shlex.split(settings.int8_options.format(data=settings.data))
        return self._do(form.key, [*command, "--json"])

    def _recovery(self, steps: int) -> Path:
        """The recipe of fine-tuning as a file, so that the command can be given by hand."""
        recipe = recovery(
            load_recipe(Path(recipe_name(self.network, self.settings)), self.network), steps
        )
        path = self.settings.work / self.network / f"recovery-{recipe.digest()[:10]}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_toml(recipe.document()), encoding="utf-8")
        return path

    def _do(self, name: str, command: list[str]) -> tuple[Path, str, Mapping[str, Any]]:
        """Run a command into a folder of its own, unless that was done before."""
        key = hashlib.sha256(json.dumps([_by_content(c) for c in command]).encode()).hexdigest()
        folder = self.settings.work / self.network / f"{name}-{key[:10]}"
        note = folder.with_suffix(".json")
        text = f"edgeseg {shlex.join([*command, '-o', str(folder)])}"
        if note.is_file():
            known = json.loads(note.read_text(encoding="utf-8"))
            if known["exit"]:
                raise BuildError(known["problem"])
            if folder.is_dir():
                return folder, text, known["report"]
        print(f"{self.network} {name}: building {folder}", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and "--resume" not in command:
            shutil.rmtree(folder)  # of a run that was stopped
        begin, log = time.monotonic(), folder.with_suffix(".log")
        code, output = self._run([*command, "-o", str(folder)], log)
        seconds = round(time.monotonic() - begin, 1)
        if code:
            problem = "gate failed" if code == GATE_FAILED else f"failed ({code}), see {log}"
            # A gate that failed once fails again; what else went wrong may be mended.
            if code == GATE_FAILED:
                _write(note, {"command": text, "exit": code, "problem": problem})
            raise BuildError(problem)
        report = json.loads(output)
        _write(note, {"command": text, "exit": 0, "seconds": seconds, "report": report})
        return folder, text, report


def given_weights(network: str, settings: Settings) -> Path | None:
    """The weights that the rows of a network begin with, if there are any."""
    return settings.weights.get(network) or shipped_weights(network)


def recipe_name(network: str, settings: Settings) -> str:
    """Which recipe a network is trained by: the second of our own, where there are two."""
    own = f"{network}-2" if f"{network}-2" in shipped_recipes() else f"{network}-edgeseg"
    return (settings.recipes or {}).get(network, own)


def recovery(recipe: Recipe, steps: int) -> Recipe:
    """A recipe's last stage as fine-tuning by a teacher: of a pruned network by the unpruned one.

    A quarter of its rate, no dropout, half of the loss the divergence from the teacher: what
    ``edgeseg prune --data`` does without a recipe, on this recipe's data.
    """
    last = recipe.stage[-1]
    rate = (last.lr or recipe.optimizer.lr) / 4
    return replace(
        recipe,
        name=f"{recipe.name}-recovery",
        about=f"fine-tuning of a pruned {recipe.network}",
        dropout=0.0,
        distillation=Distillation(soft_share=0.5, on_ignored=True),
        stage=(replace(last, part="all", steps=steps, epochs=0.0, lr=rate),),
    )


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of a recipe's document: numbers, texts, lists, tables and lists of tables."""
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, Mapping):
            tables.append(f"\n[{prefix}{key}]\n{to_toml(value, f'{prefix}{key}.')}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += [f"\n[[{prefix}{key}]]\n{to_toml(v, f'{prefix}{key}.')}" for v in value]
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join([*lines, *tables])


def _by_content(argument: str) -> str:
    """An argument with the sha256 of a file in place of its name, so that it can be moved."""
    name, colon, tail = argument.rpartition(":")
    path = Path(tail)
    return f"{name}{colon}{_sha256(path)}" if path.is_file() else argument


@cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
