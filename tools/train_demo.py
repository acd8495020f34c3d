"""Train the MiDE-Net that the demo shows, from random weights, on one CPU.

    python tools/train_demo.py --data ../shared/data --minutes 40 --out logs/train_demo
    python tools/train_demo.py --data ../shared/data --out logs/train_demo --measure

Reads train splits only: ``cityscapes256`` (its last 200 frames are held out for selection), the
full-resolution ``cityscapes`` frames, ``camvid`` and the project's synthetic scenes. Validation
frames are opened by ``--measure`` alone. Killed runs go on with the same command. The learning
rate follows the minutes spent, not the steps, so that a busy machine ends on time.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from edgeseg.data import CamVid, Cityscapes, PairedFolder
from edgeseg.data.synthetic import scene, void_cutout
from edgeseg.data.transforms import resize_frame, resize_label
from edgeseg.networks import build
from edgeseg.taxonomy import IGNORE, NUM_KNOWN, VOID

log = logging.getLogger("train_demo")

UInt8 = npt.NDArray[np.uint8]
Pair = tuple[UInt8, UInt8]

CROP = (256, 512)
HELD_OUT = 200
# Share of each source in a batch.
SOURCES = ("wide", "sharp", "camvid", "synthetic")


def void_where_sure(label: UInt8, erosion: int) -> UInt8:
    """255 that survives an erosion by ``erosion`` pixels becomes void, the rest stays ignored.

    Unlabelled regions of the 256x256 set are mostly doubtful edges; their cores are real void.
    """
    size = 2 * erosion + 1
    core = cv2.erode(
        (label == IGNORE).astype(np.uint8),
        np.ones((size, size), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=1,
    )
    out = label.copy()
    out[core > 0] = VOID
    return out


class TrainingData:
    """All training frames in memory, as (BGR, trainIds with void) pairs."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        samples = list(PairedFolder(folder / "cityscapes256" / "train"))
        self.held_out = samples[-HELD_OUT:]
        samples = samples[:-HELD_OUT][:limit]
        self.wide = [(s.load_image(), void_where_sure(s.load_label(), 2)) for s in samples]
        self.sharp: list[list[Pair]] = []
        for s in Cityscapes(folder / "cityscapes", "train"):
            frame, label = s.load_image(), void_where_sure(s.load_label(), 2)
            levels = [(frame, label)]
            for step in (2, 4):
                small = cv2.resize(
                    frame, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA
                )
                levels.append(
                    (small, np.ascontiguousarray(label[step // 2 :: step, step // 2 :: step]))
                )
            self.sharp.append(levels)
        self.camvid = [
            (s.load_image(), void_where_sure(s.load_label(), 2))
            for s in CamVid(folder / "camvid", "train")
        ]

    def class_weights(self, kind: str) -> torch.Tensor:
        """Weights of the 20 outputs. ENet's rule is 1 / ln(1.02 + p_c); void weighs 1."""
        if kind == "none":
            return torch.ones(NUM_KNOWN + 1)
        counts = np.zeros(256)
        for _, label in self.wide:
            counts += np.bincount(label.ravel(), minlength=256)
        share = counts[:NUM_KNOWN] / counts[:NUM_KNOWN].sum()
        weights = 1.0 / np.log(1.02 + share)
        if kind == "sqrt":
            weights = np.sqrt(weights)
        weights /= (weights * share).sum()
        return torch.tensor([*weights, 1.0], dtype=torch.float32)

    def pick(self, rng: np.random.Generator, source: str) -> Pair:
        """One augmented crop: BGR [256, 512, 3] and labels [256, 512]."""
        if source == "synthetic":
            height, width = ((256, 512), (384, 768))[int(rng.integers(2))]
            frame, label = scene(int(rng.integers(1 << 40)), height, width)
            return crop(rng, frame, label, (1.0, 1.0), (CROP[0] / height) ** rng.uniform(0, 1))
        if source == "wide":
            frame, label = self.wide[int(rng.integers(len(self.wide)))]
            return crop(rng, frame, label, (1.0, 2.0), float(2 ** rng.uniform(-0.35, 1.0)))
        if source == "camvid":
            frame, label = self.camvid[int(rng.integers(len(self.camvid)))]
            return crop(rng, frame, label, (1.0, 1.0), float(2 ** rng.uniform(-0.3, 0.9)))
        levels = self.sharp[int(rng.integers(len(self.sharp)))]
        scale = float(2 ** rng.uniform(-2.2, -0.4))  # of the 2048-pixel frame
        level = min(math.floor(-math.log2(scale)), 2)
        frame, label = levels[level]
        return crop(rng, frame, label, (1.0, 1.0), scale * 2**level)


def crop(
    rng: np.random.Generator,
    frame: UInt8,
    label: UInt8,
    stretch: tuple[float, float],
    scale: float,
) -> Pair:
    """Random window of CROP pixels from the scaled, slightly rotated, maybe mirrored pair."""
    height, width = label.shape
    squeeze = float(2 ** rng.uniform(-0.15, 0.15))
    sy, sx = stretch[0] * scale, stretch[1] * scale * squeeze
    angle = math.radians(rng.uniform(-3, 3)) if rng.random() < 0.3 else 0.0
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    room_x, room_y = width * sx - CROP[1], height * sy - CROP[0]
    # Centre of the window in scaled pixels, relative to the frame's centre.
    dx, dy = rng.uniform(-0.5, 0.5) * max(room_x, 0), rng.uniform(-0.5, 0.5) * max(room_y, 0)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[mirror * cos * sx, -sin * sy], [mirror * sin * sx, cos * sy]])
    centre = linear @ np.array([width / 2, height / 2]) + np.array([mirror * dx, dy])
    shift = np.array([CROP[1] / 2, CROP[0] / 2]) - centre
    matrix = np.hstack([linear, shift[:, None]]).astype(np.float32)
    size = (CROP[1], CROP[0])
    out = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(90, 100, 90))
    marks = cv2.warpAffine(label, matrix, size, flags=cv2.INTER_NEAREST, borderValue=IGNORE)
    return out, marks


def paste_unknown(rng: np.random.Generator, frame: UInt8, label: UInt8) -> None:
    """Put one to three unknown objects into a photo, in place."""
    height, width = label.shape
    for _ in range(int(rng.integers(1, 4))):
        size = int(height * 2 ** rng.uniform(-4.2, -1.3))
        rows, columns = max(8, int(size * rng.uniform(0.6, 1.4))), max(8, size)
        picture, mask = void_cutout(rng, rows, columns)
        y = int(rng.uniform(0.35, 1.0) * height - rows)
        x = int(rng.uniform(0, width - columns))
        if y < 0:
            continue
        window = frame[y : y + rows, x : x + columns]
        light = float(window.mean() + 60.0) / (float(picture[mask > 0].mean()) + 60.0)
        picture = cv2.convertScaleAbs(picture, alpha=0.5 + 0.5 * light)
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), rng.uniform(0.4, 0.9))[..., None]
        window[:] = (window * (1 - soft) + picture * soft).astype(np.uint8)
        marks = label[y : y + rows, x : x + columns]
        marks[mask > 0] = VOID


def photometric(rng: np.random.Generator, frame: UInt8) -> UInt8:
    """Exposure, colour, blur, sensor noise and JPEG artefacts."""
    ramp = np.arange(256, dtype=np.float32) / 255.0
    gain, gamma = float(2 ** rng.uniform(-0.5, 0.5)), float(2 ** rng.uniform(-0.4, 0.4))
    tint = 2 ** rng.uniform(-0.12, 0.12, 3)
    lift = rng.uniform(-0.06, 0.06)
    table = np.stack([(gain * t * ramp**gamma + lift) * 255 for t in tint], 1)
    frame = cv2.LUT(frame, table.clip(0, 255).astype(np.uint8)[None])
    if rng.random() < 0.5:
        grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        colour = rng.uniform(0.4, 1.5)
        frame = cv2.addWeighted(frame, colour, grey, 1 - colour, 0)
    if rng.random() < 0.2:
        frame = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.5, 1.3))
    if rng.random() < 0.35:
        noise = rng.integers(-128, 128, frame.shape, dtype=np.int8)
        frame = cv2.add(frame, noise * np.float32(rng.uniform(0.02, 0.16)), dtype=cv2.CV_8U)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
        frame = cv2.imdecode(cv2.imencode(".jpg", frame, quality)[1], cv2.IMREAD_COLOR)
    return frame


class Batches(IterableDataset):  # type: ignore[type-arg]
    """Endless batches; batch k depends on the seed and k alone, so a resumed run sees the same."""

    def __init__(
        self, data: TrainingData, size: int, shares: tuple[float, ...], seed: int, start: int
    ) -> None:
        self.data, self.size, self.shares = data, size, shares
        self.seed, self.start = seed, start

    def __iter__(self) -> Iterator[Pair]:
        info = torch.utils.data.get_worker_info()
        step, stride = self.start, 1
        if info is not None:
            step, stride = step + info.id, info.num_workers
        shares = np.array(self.shares) / sum(self.shares)
        while True:
            rng = np.random.default_rng((self.seed, step))
            frames, labels = [], []
            for _ in range(self.size):
                source = SOURCES[int(rng.choice(len(SOURCES), p=shares))]
                frame, label = self.data.pick(rng, source)
                if source != "synthetic" and rng.random() < 0.4:
                    paste_unknown(rng, frame, label)
                frames.append(photometric(rng, frame))
                labels.append(label[::2, ::2])
            yield np.stack(frames), np.stack(labels)
            step += stride


def as_input(frames: torch.Tensor) -> torch.Tensor:
    """uint8 BGR [N, H, W, 3] to float RGB [N, 3, H, W] in [0, 1], channels_last."""
    return (
        frames.permute(0, 3, 1, 2)
        .flip(1)
        .float()
        .div_(255.0)
        .contiguous(memory_format=torch.channels_last)
    )


@torch.no_grad()
def miou(net: torch.nn.Module, samples: list, size: tuple[int, int]) -> tuple[float, list[float]]:
    """Mean IoU (percent) over the classes that occur, argmax over the 19, and each IoU."""
    net.eval()
    counts = np.zeros((NUM_KNOWN, NUM_KNOWN))
    for sample in samples:
        frame = resize_frame(sample.load_image(), size, "pillow")
        label = resize_label(sample.load_label(), size)
        logits = net(as_input(torch.from_numpy(np.array(frame))[None]))
        classes = logits[0, :NUM_KNOWN].argmax(0).numpy()
        known = label < NUM_KNOWN
        pairs = label[known].astype(int) * NUM_KNOWN + classes[known]
        counts += np.bincount(pairs, minlength=NUM_KNOWN**2).reshape(NUM_KNOWN, NUM_KNOWN)
    hit, seen = counts.diagonal(), counts.sum(1)
    union = seen + counts.sum(0) - hit
    each = [100 * h / u if s else float("nan") for h, u, s in zip(hit, union, seen, strict=True)]
    return float(np.nanmean(each)), each


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over 3% of the budget, then (1 - progress)^0.9."""
    return peak * min(1.0, progress / 0.03 + 0.02) * max(1.0 - progress, 0.0) ** 0.9


def train(args: argparse.Namespace) -> None:
    """Train until the minutes are spent; the last checkpoint is the result."""
    torch.manual_seed(args.seed)
    net = build("midenet").to(memory_format=torch.channels_last)
    decay = [p for p in net.parameters() if p.ndim > 1]
    other = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 2e-4}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
    )
    step, spent = 0, 0.0
    last = args.out / "last.pt"
    if last.exists():
        state = torch.load(last, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
        log.info("resumed at step %d, %.1f minutes spent", step, spent / 60)
    data = TrainingData(args.data, args.limit)
    weights = data.class_weights(args.weights)
    log.info("%d + %d + %d frames; weights %s", len(data.wide), len(data.sharp),
             len(data.camvid), [round(float(w), 2) for w in weights])  # fmt: skip
    shares = tuple(float(s) for s in args.shares.split(","))
    stream = DataLoader(
        Batches(data, args.batch, shares, args.seed, step),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=3,
    )
    budget, mark, running, checked = args.minutes * 60, time.monotonic(), 0.0, spent
    for frames, labels in stream:
        rate = learning_rate(spent / budget, args.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        net.train()
        # Half resolution: the head is bilinear, so this sees the same surface at a quarter of
        # the price.
        logits = F.interpolate(net.body(as_input(frames)), scale_factor=4.0, mode="bilinear")
        loss = F.cross_entropy(logits, labels.long(), weights, ignore_index=IGNORE)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        now = time.monotonic()
        spent, mark = spent + now - mark, now
        step += 1
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            log.info("step %d, %.1f min, lr %.5f, loss %.4f", step, spent / 60, rate, running)
        done = spent >= budget
        if step % 100 == 0 or done:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(),
                     "step": step, "spent": spent}  # fmt: skip
            torch.save(state, last.with_suffix(".tmp"))
            os.replace(last.with_suffix(".tmp"), last)
        if done or spent - checked > 240:
            checked = spent
            score, each = miou(net, data.held_out[:: 1 if done else 5], CROP)
            log.info("held-out mIoU %.2f %s", score, [round(v) if v == v else -1 for v in each])
            with (args.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "minutes": spent / 60, "miou": score}) + "\n")
        if done:
            return


def measure(args: argparse.Namespace) -> None:
    """The two figures of the README, for the last checkpoint or for ``--checkpoint``."""
    if args.checkpoint is not None:
        from edgeseg.networks.checkpoints import load_network

        net: torch.nn.Module = load_network("midenet", args.checkpoint)
    else:
        net = build("midenet")
        state = torch.load(args.out / "last.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
    net = net.to(memory_format=torch.channels_last)
    small = list(PairedFolder(args.data / "cityscapes256" / "val"))[::5]
    large = list(Cityscapes(args.data / "cityscapes", "val"))
    for name, samples, size in (
        ("cityscapes256/val every 5th, 256x512", small, (256, 512)),
        ("cityscapes/val, 512x1024", large, (512, 1024)),
    ):
        score, each = miou(net, samples, size)
        print(f"{name}: {len(samples)} frames, mIoU {score:.2f} {[round(v, 1) for v in each]}")


def save(args: argparse.Namespace) -> None:
    """Write the last checkpoint as safetensors with its provenance."""
    from edgeseg.networks.checkpoints import save_network

    state = torch.load(args.out / "last.pt", map_location="cpu", weights_only=True)
    net = build("midenet")
    net.load_state_dict(state["net"])
    net.eval()
    metadata = {
        "weights_name": "edgeseg-midenet-demo",
        "license": "research, non-commercial (trained on Cityscapes and CamVid)",
        "data": "train splits of cityscapes256, cityscapes and camvid, and synthetic scenes",
        "steps": str(state["step"]),
        "minutes": f"{state['spent'] / 60:.1f}",
    }
    save_network(net, args.save, metadata)


def main() -> None:
    """Parse, then train, measure or save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("logs/train_demo"))
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weights", choices=("none", "sqrt", "enet"), default="sqrt")
    parser.add_argument("--shares", default="0.55,0.2,0.1,0.15", help=",".join(SOURCES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, help="frames of cityscapes256, for a trial")
    parser.add_argument("--measure", action="store_true", help="only measure on val")
    parser.add_argument("--checkpoint", type=Path, help="safetensors to measure")
    parser.add_argument("--save", type=Path, help="write the last checkpoint as safetensors")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    cv2.setNumThreads(1)  # its pool must not exist when the loader forks
    if args.measure:
        measure(args)
    elif args.save:
        save(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
