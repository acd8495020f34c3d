"""Two processes train as one does in two micro-batches.

The processes are real (gloo over loopback), with a thread each. One pair of them goes through all
cases, since most of the time is spent on starting.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

import torch.distributed as dist  # noqa: E402

from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import Loss, Optimizer, Stage  # noqa: E402
from edgeseg.training.sampling import Batch, Batches, Mixture  # noqa: E402
from edgeseg.training.step import Stepper  # noqa: E402
from edgeseg.training.world import World  # noqa: E402
from tests.runs import TOML, differing, final, records, tensors, tiny  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo"),
]

STEPS = 6
CROSS_ENTROPY = Loss()
FROZEN = Stage(steps=STEPS, freeze_batchnorm=True)


@dataclass(frozen=True)
class Case:
    """A recipe for two processes."""

    network: str
    loss: Loss = CROSS_ENTROPY
    stage: Stage = FROZEN
    stride: int = 1
    class_weights: bool = False
    lopsided: bool = False
    """Whether the second half of every step has nearly no labels."""
    teacher: bool = False

    def recipe(self, world):
        """The recipe; one process takes two micro-batches instead."""
        return tiny(
            self.network,
            loss=self.loss,
            stage=(self.stage,),
            stride=self.stride,
            optimizer=Optimizer("sgd", lr=0.02, clip=5.0),
            data={"accumulate": 2 // world, "crop": "32x64"},
        )


CASES = {
    "midenet": Case("midenet"),
    "enet with dropout": Case("enet", stride=2),
    "class weights": Case("midenet", class_weights=True, lopsided=True),
    "auxiliary head": Case("erfnet", Loss("focal", auxiliary=0.5), lopsided=True),
    "last layer": Case("erfnet", stage=Stage("last", steps=STEPS), class_weights=True),
    "encoder": Case("erfnet", stage=replace(FROZEN, part="encoder"), lopsided=True),
    "teacher": Case("midenet", teacher=True, lopsided=True),
}


def few_labels(batch, part):
    """The batch; of every second one, all labels but a corner are gone."""
    if part == 0:
        return batch
    labels = batch.labels.copy()
    labels[:, 3:] = 255
    return Batch(batch.frames, labels, batch.names)


def train_case(case, world):
    """Gradients of the first step, the losses of all steps, and the weights in the end."""
    recipe = case.recipe(world.size)
    net = fresh_network(recipe)
    weights = torch.linspace(0.2, 4.0, 20) if case.class_weights else None
    teacher = fresh_network(replace(recipe, seed=8)) if case.teacher else None
    stepper = Stepper(recipe, case.stage, net, world, weights, teacher)
    stream = iter(Batches(Mixture(recipe, None), case.stage, 0, world.rank, world.size))
    losses, gradients = [], {}
    for step in range(STEPS):
        batches = [next(stream) for _ in range(recipe.data.accumulate)]
        if case.lopsided:
            batches = [few_labels(b, world.rank + i) for i, b in enumerate(batches)]
        losses.append(stepper.run(step, batches, 0.02)["loss"])
        if step == 0:
            gradients = {k: p.grad.clone() for k, p in net.named_parameters() if p.requires_grad}
    return gradients, losses, {k: v.clone() for k, v in net.state_dict().items()}


def one_of_two(rank, folder):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    world = World(rank, 2, torch.device("cpu"))
    results = {name: train_case(case, world) for name, case in CASES.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What the two processes got, case by case."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """What one process gets in two micro-batches."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    world = World(0, 1, torch.device("cpu"))
    results = {name: train_case(case, world) for name, case in CASES.items()}
    torch.set_num_threads(before)
    return results


def near(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = max(1.0, value.abs().max().item())
        assert (ours[name] - value).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_one_process(alone, together, case):
    assert alone[case][0]
    assert any(g.abs().max() > 1e-3 for g in alone[case][0].values())
    for results in together:
        near(results[case][0], alone[case][0])


@pytest.mark.parametrize("case", CASES)
def test_the_losses_and_the_weights_are_those_of_one_process(alone, together, case):
    _, losses, weights = alone[case]
    assert len(set(losses)) == STEPS
    for _, ours, end in (results[case] for results in together):
        assert ours == pytest.approx(losses, rel=1e-5)
        near(end, weights)
    assert differing(together[0][case][2], together[1][case][2]) == set()


def program(folder, recipe, *options, processes=1):
    """``edgeseg train`` as a user starts it, in one process or by torchrun."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = ["-m", "edgeseg", "train", "midenet", "--recipe", recipe, "-o", folder]
    arguments += ["--device", "cpu", "--precision", "float32", "--threads", 1, "--workers", 0]
    return subprocess.run(
        [*start, *map(str, arguments), *options, "--json"],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def by_torchrun(tmp_path_factory):
    """The folders of a run in two processes and of one in two micro-batches."""
    pytest.importorskip("tomllib", reason="recipes need Python 3.11")
    root = tmp_path_factory.mktemp("torchrun")
    text = TOML.replace("steps = 20", "steps = 20\nfreeze_batchnorm = true")
    text = text.replace("count = 8", "count = 8\nhold_out = 2")
    (root / "two.toml").write_text(text)
    (root / "one.toml").write_text(text.replace("batch = 2", "batch = 2\naccumulate = 2"))
    two = program(root / "two", root / "two.toml", processes=2)
    one = program(root / "one", root / "one.toml")
    return root, two, one


def test_torchrun_trains_to_the_weights_of_one_process(by_torchrun):
    root, two, one = by_torchrun
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    near(final(root / "two"), final(root / "one"))
    pairs = zip(records(root / "two"), records(root / "one"), strict=True)
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_of_two_processes_one_writes_and_speaks(by_torchrun):
    root, two, _ = by_torchrun
    found = sorted(str(p.relative_to(root / "two")) for p in (root / "two").rglob("*.*"))
    events = [name for name in found if "tfevents" in name]
    assert len(events) <= 1
    assert [name for name in found if name not in events] == [
        "checkpoints/best.safetensors",
        "checkpoints/last.safetensors",
        "metrics.jsonl",
        "midenet.safetensors",
        "recipe.json",
    ]
    document = json.loads(two.stdout)  # one document, so one process printed it
    assert Path(document["weights"]) == root / "two" / "midenet.safetensors"
    assert two.stderr.count("begins: 20 steps of 4 frames") == 1
    losses = [r["step"] for r in records(root / "two") if "loss" in r]
    assert losses == [10, 20]


def test_a_run_of_two_processes_is_resumed_by_two(by_torchrun):
    root, _, _ = by_torchrun
    before = tensors(root / "two" / "midenet.safetensors")
    (root / "two" / "midenet.safetensors").unlink()
    refused = program(root / "two", root / "one.toml", "--resume")
    assert refused.returncode == 2
    assert "another recipe" in refused.stderr
    again = program(root / "two", root / "two.toml", "--resume", processes=2)
    assert again.returncode == 0, again.stderr
    assert differing(final(root / "two"), before) == set()
