"""The training loop: stages, checkpoints, a look at held-out frames, and the final weights."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from edgeseg.data.samples import Dataset
from edgeseg.errors import InputError, UsageError
from edgeseg.evaluation.evaluate import evaluate
from edgeseg.files import write_whole
from edgeseg.networks.base import Network
from edgeseg.networks.checkpoints import save_network
from edgeseg.networks.predictor import TorchPredictor
from edgeseg.runtime.machine import available_cores, has_native_bf16
from edgeseg.training.journal import Journal
from edgeseg.training.losses import enet_class_weights, erfnet_class_weights
from edgeseg.training.recipe import Recipe, Stage, parse_hxw
from edgeseg.training.sampling import Batch, Batches, Mixture
from edgeseg.training.schedules import rate
from edgeseg.training.state import Place, load_place, load_state, save_state
from edgeseg.training.step import Stepper, check_fit
from edgeseg.training.world import World, keep_freed_memory, open_world

if TYPE_CHECKING:
    from edgeseg.data.samples import Sample

__all__ = ["Options", "Outcome", "train"]

_SMOOTHING: Final = 0.98
_LOG_EVERY: Final = 10


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is carried out; nothing here changes what it computes, but ``precision``."""

    resume: bool = False
    workers: int | None = None
    """Processes that prepare batches; 0: none, ``None``: one for every two cores."""
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    """``float32``, ``bf16``, or ``auto``: bf16 where the device multiplies it itself."""
    license: str = ""
    """Terms under which the weights may be used; those of the data."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """Folders to read instead of those that the recipe names."""
    stop_after: int | None = None
    """Steps after which to stop as if killed; for tests and trials."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left."""

    weights: Path | None
    """The final safetensors; ``None`` where the run was stopped before its end."""
    steps: int
    elapsed_s: float
    miou_percent: float | None
    """Of the final weights on held-out frames, where any are."""
    kept: str
    """``best`` or ``last``."""


def train(
    recipe: Recipe,
    data: Path | None,
    output: Path,
    net: Network,
    *,
    teacher: Network | None = None,
    options: Options = Options(),
) -> Outcome:
    """Train ``net`` and leave ``output/NETWORK.safetensors``.

    Args:
        recipe: what to do.
        data: folder that the recipe's sources lie in; ``None``: synthetic scenes.
        output: folder of the run; new, empty, or with ``resume`` that of a run begun before.
        net: the network with its initial weights.
        teacher: network to learn from too.
        options: how to carry it out.

    Raises:
        UsageError: a recipe, network or folder that does not fit.
        InputError: data missing or unreadable.
        DivergedError: a loss or gradient that is not finite.
    """
    recipe.check()
    _check_output(output, options.resume)
    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)  # its pool must not exist when the loader forks
    with open_world(options.device) as world:
        return _Run(recipe, data, output, net, teacher, options, world).run()


class _Run:
    """State of a run while it lasts."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path | None,
        output: Path,
        net: Network,
        teacher: Network | None,
        options: Options,
        world: World,
    ) -> None:
        self.recipe, self.output, self.options, self.world = recipe, output, options, world
        self.teacher = teacher
        # Only processes on GPUs share statistics, see below.
        check_fit(recipe, net, teacher, world.size if world.device.type == "cuda" else 1)
        self.mixture = Mixture(recipe, data, options.places)
        self.frames_per_step = recipe.data.batch * recipe.data.accumulate * world.size
        self.epoch_length = Fraction(len(self.mixture), self.frames_per_step)
        """Steps; a fraction, so that no epoch begins a step late by rounding."""
        self.lengths = [
            s.steps or max(1, round(s.epochs * len(self.mixture) / self.frames_per_step))
            for s in recipe.stage
        ]
        self.net = net.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.net.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p *= recipe.dropout
        if world.size > 1 and world.device.type == "cuda":
            self.net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]
        self.dtype = _dtype(options.precision, world.device.type)
        self.last = output / "checkpoints" / "last.safetensors"
        self.best = output / "checkpoints" / "best.safetensors"
        self.place = Place(0, self._digest())
        self.counts = np.zeros(0)
        """Pixels of each known class, where the loss weights classes."""
        self.going_on = False
        """Whether weights and optimiser are still to be taken from the last checkpoint."""
        self.held_out = _spread(self.mixture.held_out, recipe.data.validation_frames)
        if self.held_out:
            net.check_size(*parse_hxw(recipe.data.validation_size))

    @property
    def total(self) -> int:
        return sum(self.lengths)

    def run(self) -> Outcome:
        if self.options.resume and self.last.exists():
            self._check_resume(load_place(self.last))
        if self.place.step < self.total:
            self._count_pixels()
        journal: Journal | None = None
        with ExitStack() as stack:
            if self.world.first:
                self._make_folder()
                name = self.recipe.name or self.recipe.network
                journal = Journal(self.output, self.place.step, self.total, name)
                stack.callback(journal.close)
                self._introduce(journal)
            first = 0
            for stage, length in zip(self.recipe.stage, self.lengths, strict=True):
                unfinished = self.place.step < first + length
                if unfinished and not self._stage(stage, first, length, journal):
                    return self._stopped()
                first += length
            return self._finish(journal)

    def _stage(
        self,
        stage: Stage,
        first: int,
        length: int,
        journal: Journal | None,
    ) -> bool:
        """Train one stage; False where it was stopped before its end."""
        weights = self._class_weights(stage)
        stepper = Stepper(
            self.recipe, stage, self.net, self.world, weights, self.teacher, self.dtype
        )
        if self.going_on:
            # A stage begins with a fresh optimiser.
            optimizer = stepper.optimizer if self.place.step > first else None
            load_state(self.last, self.net, optimizer)
            self.going_on = False
        peak = stage.lr or self.recipe.optimizer.lr
        now, start = time.monotonic(), self.place
        begun = now - start.elapsed_s
        running = float("nan")
        end = first + length
        stream = self._stream(stage, self.place.step) if self.place.step < end else iter(())
        for step in range(self.place.step, end):
            if self.options.stop_after is not None and step >= self.options.stop_after:
                return False
            batches = [next(stream) for _ in range(self.recipe.data.accumulate)]
            factor = rate(self.recipe.schedule, step - first, length, self.epoch_length)
            figures = stepper.run(step, batches, peak * factor)
            loss = figures["loss"]
            running = loss if running != running else _SMOOTHING * running + (1 - _SMOOTHING) * loss
            done, elapsed = step + 1, time.monotonic() - begun
            self.place = replace(self.place, step=done, elapsed_s=elapsed)
            if journal is not None:
                if done % _LOG_EVERY == 0 or done == end:
                    speed = self.frames_per_step * (done - start.step) / (begun + elapsed - now)
                    journal.record(done, **figures, elapsed_s=round(elapsed, 1))
                    journal.progress(done, f"loss {running:.4f}, {speed:.1f} frames/s")
                looked = self._look(done, end, journal)
                if looked or done % self.recipe.checkpoint_every == 0 or done == end:
                    optimizer = None if done == end else stepper.optimizer
                    save_state(self.last, self.net, optimizer, self.place)
        return True

    def _look(self, done: int, end: int, journal: Journal) -> bool:
        """Judge the held-out frames where it is time to, and keep the best weights."""
        every = self.recipe.evaluate_every or max(1, self.total // 10)
        if not self.held_out or not (done % every == 0 or done == end == self.total):
            return False
        miou = self._miou()
        journal.record(done, miou_percent=miou)
        journal.say(f"step {done}: mIoU {miou:.2f} % on {len(self.held_out)} held-out frames")
        if self.place.best_percent is None or miou >= self.place.best_percent:
            self.place = replace(self.place, best_percent=miou)
            save_state(self.best, self.net, None, self.place)
        return True

    def _miou(self) -> float:
        dataset = Dataset("held-out", self.output, "semantic", self.held_out)
        size = parse_hxw(self.recipe.data.validation_size)
        device = self.world.device
        state = evaluate(TorchPredictor(self.net.cpu()), dataset, size=size)
        self.net.to(device)
        return state.miou_percent() or 0.0

    def _stream(self, stage: Stage, step: int) -> Iterator[Batch]:
        workers = self.options.workers
        if workers is None:
            workers = max(1, available_cores() // 2)
        batches = Batches(self.mixture, stage, step, self.world.rank, self.world.size)
        return iter(
            DataLoader(
                batches,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=3 if workers else None,
                multiprocessing_context="fork" if workers else None,
                worker_init_fn=_end_with_parent,
            )
        )

    def _class_weights(self, stage: Stage) -> torch.Tensor | None:
        spec, outputs = self.recipe.loss, self.net.structure.num_outputs
        rule = spec.class_weights
        if rule == "none":
            if spec.void_weight == 1.0 or outputs == self.net.structure.num_known:
                return None
            weights = torch.ones(outputs)
            weights[self.net.structure.num_known :] = spec.void_weight
            return weights
        counts = self.counts
        if rule == "erfnet":
            return erfnet_class_weights(
                torch.from_numpy(counts),
                encoder=stage.part == "encoder",
                num_outputs=outputs,
                void_weight=spec.void_weight,
            )
        weights = enet_class_weights(
            torch.from_numpy(counts), num_outputs=outputs, void_weight=spec.void_weight
        )
        if rule == "sqrt":
            known = weights[: counts.size].sqrt()
            share = torch.from_numpy(counts / counts.sum()).float()
            weights[: counts.size] = known / (known * share).sum()
        return weights

    def _make_folder(self) -> None:
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            _write_json(self.output / "recipe.json", self.recipe.document())
        except OSError as error:
            raise UsageError(
                f"--output '{self.output}' cannot be written ({error.strerror}); name another "
                "folder"
            ) from None

    def _count_pixels(self) -> None:
        """What the class weights are made from, before there is a folder."""
        if self.recipe.loss.class_weights == "none":
            return
        self.counts = self.mixture.pixel_counts()
        if not self.counts.any():
            raise InputError(
                "no label has a pixel of a known class, so classes cannot be weighted; check the "
                "labels and their mapping"
            )

    def _digest(self) -> str:
        """Of what decides the result: recipe, frames, precision, initial weights and teacher."""
        parts = [
            self.recipe.digest(),
            hashlib.sha256("\n".join(self.mixture.names).encode()).hexdigest(),
            str(self.dtype),
            str(self.frames_per_step),
            _fingerprint(self.net),
            _fingerprint(self.teacher) if self.teacher is not None else "",
        ]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def _check_resume(self, found: Place) -> None:
        if found.recipe != self.place.recipe:
            raise UsageError(
                f"the run in '{self.output}' was begun with another recipe, other data, initial "
                "weights or precision; give the same ones, or another folder with -o"
            )
        self.place, self.going_on = found, found.step > 0

    def _introduce(self, journal: Journal) -> None:
        word = f"going on at step {self.place.step}" if self.place.step else "begins"
        left = self.mixture.not_held_out
        same = f" and {left} not, since a source trains on frames of these names" if left else ""
        journal.say(
            f"{word}: {self.total} steps of {self.frames_per_step} frames "
            f"({len(self.mixture)} frames, {len(self.held_out)} held out{same}), "
            f"{str(self.dtype).removeprefix('torch.')} on {self.world.device.type}"
        )

    def _stopped(self) -> Outcome:
        return Outcome(None, self.place.step, self.place.elapsed_s, None, "last")

    def _finish(self, journal: Journal | None) -> Outcome:
        """Write the final weights; only the first process does."""
        kept, path = "last", self.output / f"{self.recipe.network}.safetensors"
        if self.recipe.keep == "best" and self.best.exists():
            kept = "best"
        if journal is None:
            self.world.wait()
            return Outcome(path, self.total, self.place.elapsed_s, None, kept)
        load_state(self.best if kept == "best" else self.last, self.net, None)
        miou = self._miou() if self.held_out else None
        hours = self.place.elapsed_s / 3600
        metadata = {
            "weights_name": self.recipe.name or f"{self.recipe.network}-trained",
            "license": self.options.license,
            "recipe": json.dumps(self.recipe.document(), sort_keys=True),
            "steps": str(self.total),
            "hours": f"{hours:.2f}",
        }
        save_network(self.net.cpu().eval(), path, metadata)
        figure = "" if miou is None else f", mIoU {miou:.2f} % on held-out frames"
        journal.say(f"'{path}' holds the {kept} weights{figure}, {hours:.2f} h")
        self.world.wait()
        return Outcome(path, self.total, self.place.elapsed_s, miou, kept)


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o '{output}' is a file; give a folder")
    if output.is_dir() and any(output.iterdir()) and not resume:
        raise UsageError(f"-o '{output}' is not empty; go on with --resume, or give another folder")


def _end_with_parent(_worker: int) -> None:
    """Let a worker whose parent was killed end too.

    It would wait for ever to hand over its last batches, with all decoded frames in memory: torch
    only looks for the parent between two batches.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _dtype(precision: str, device: str) -> torch.dtype:
    if precision == "auto":
        native = torch.cuda.is_bf16_supported() if device == "cuda" else has_native_bf16()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _spread(samples: "Sequence[Sample]", count: int) -> "list[Sample]":
    if not count or count >= len(samples):
        return list(samples)
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _fingerprint(module: Network) -> str:
    """sha256 over structure and weights."""
    state = hashlib.sha256(json.dumps(module.structure.to_dict(), sort_keys=True).encode())
    for key, value in module.state_dict().items():
        state.update(key.encode())
        state.update(value.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _write_json(path: Path, document: Any) -> None:
    write_whole(path, (json.dumps(document, indent=1) + "\n").encode())
