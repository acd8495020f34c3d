"""A run that is stopped at any moment goes on to the same weights; what it leaves; what it refuses.

The runs take seconds: a narrow network, eight drawn scenes, one thread.
"""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.data.synthetic import SyntheticScenes  # noqa: E402
from edgeseg.errors import ArtefactError, UsageError  # noqa: E402
from edgeseg.evaluation.evaluate import evaluate  # noqa: E402
from edgeseg.networks.checkpoints import load_network  # noqa: E402
from edgeseg.networks.predictor import TorchPredictor  # noqa: E402
from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import Optimizer, Schedule, Stage  # noqa: E402
from edgeseg.training.state import load_place, load_state  # noqa: E402
from edgeseg.training.step import DivergedError  # noqa: E402
from tests.runs import (  # noqa: E402
    TOML,
    differing,
    final,
    records,
    run,
    start_program,
    tensors,
    tiny,
)
from tests.test_cli import one_line, run_main  # noqa: E402

STAGES = (Stage(part="last", steps=4), Stage(steps=5, lr=1e-3, crop="32x64", scale=0.5))


@pytest.fixture(autouse=True)
def threads():
    """Runs set the threads of torch; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def staged():
    """Two stages and a look at two held-out frames after every second step."""
    return tiny(source={"hold_out": 2}, stage=STAGES, evaluate_every=2)


@pytest.fixture(scope="module")
def uninterrupted(staged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(staged, folder)
    return folder


# --- killed and resumed


def begin_and_kill(folder, arguments, step):
    """Run the program and kill it with signal 9 once ``step`` stands in the metrics."""
    process = start_program("train", "midenet", "-o", folder, *arguments)
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 1200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    # A worker left behind would keep the pipes open.
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert not list(folder.glob("*.safetensors")), "the run was over before the kill"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stages", "steps", "step"),
    [("", 60, 10), ("[[stage]]\nsteps = 9\nlr = 1e-3\nfreeze_batchnorm = true\n", 40, 50)],
    ids=["in its only stage", "in its second stage"],
)
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, stages, steps, step):
    pytest.importorskip("tomllib", reason="recipes need Python 3.11")
    recipe = tmp_path / "kill.toml"
    recipe.write_text(TOML + stages)
    arguments = ["--recipe", recipe, "--steps", steps, "--threads", 1, "--device", "cpu"]
    arguments += ["--precision", "float32"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    begin_and_kill(killed, [*arguments, "--workers", 1], step)
    begun = load_place(killed / "checkpoints" / "last.safetensors").step
    assert begun % 7 == 0 or begun == steps
    assert 0 < begun < steps * (1 + bool(stages))
    for folder, options in ((killed, ["--resume"]), (whole, [])):
        process = start_program(
            "train", "midenet", "-o", folder, *arguments, "--workers", 0, *options
        )
        _, err = process.communicate(timeout=1200)
        assert process.returncode == 0, err
        assert f"going on at step {begun}" in err or not options
    assert differing(final(killed), final(whole)) == set()
    assert records(killed) == records(whole)
    numbers = [record["step"] for record in records(killed)]
    assert numbers == list(range(10, steps * (1 + bool(stages)) + 1, 10))


@pytest.mark.parametrize("step", range(10))
def test_a_run_that_stops_before_any_step_goes_on_to_the_same_weights(
    tmp_path, staged, uninterrupted, step
):
    folder = tmp_path / "o"
    stopped = run(staged, folder, stop_after=step)
    if step < 9:
        assert stopped.weights is None
        assert not list(folder.glob("*.safetensors"))
    outcome = run(staged, folder, resume=True)
    assert outcome.steps == 9
    assert differing(final(folder), final(uninterrupted)) == set()
    for name in ("last", "best"):
        path = f"checkpoints/{name}.safetensors"
        assert differing(tensors(folder / path), tensors(uninterrupted / path)) == set()
    assert records(folder) == records(uninterrupted)


@pytest.mark.parametrize("optimizer", [Optimizer("sgd", lr=0.02), Optimizer("adam")], ids=str)
def test_the_state_of_every_optimiser_is_resumed(tmp_path, optimizer):
    recipe = tiny(optimizer=optimizer, schedule=Schedule("cosine", warmup=0.3))
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "o", stop_after=5)
    run(recipe, tmp_path / "o", resume=True)
    assert differing(final(tmp_path / "o"), final(tmp_path / "whole")) == set()


def test_records_of_steps_that_are_done_again_stand_there_once(tmp_path):
    recipe = tiny(stage=(Stage(steps=21),), checkpoint_every=8)
    run(recipe, tmp_path / "o", stop_after=12)
    assert [r["step"] for r in records(tmp_path / "o")] == [10]
    run(recipe, tmp_path / "o", resume=True)
    assert [r["step"] for r in records(tmp_path / "o")] == [10, 20, 21]


def test_what_a_kill_in_the_middle_of_writing_leaves_does_not_matter(
    tmp_path, staged, uninterrupted
):
    folder = tmp_path / "o"
    run(staged, folder, stop_after=5)
    (folder / "checkpoints" / ".last.safetensors.k3x").write_bytes(b"half a checkpoint")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "miou_per')
    run(staged, folder, resume=True)
    assert differing(final(folder), final(uninterrupted)) == set()
    assert records(folder) == records(uninterrupted)


def test_a_run_that_is_over_can_be_resumed_to_the_same_end(tmp_path, staged, uninterrupted):
    folder = tmp_path / "o"
    shutil.copytree(uninterrupted, folder)
    (folder / "midenet.safetensors").unlink()
    run(staged, folder, resume=True)
    assert differing(final(folder), final(uninterrupted)) == set()
    assert records(folder) == records(uninterrupted)


def test_resume_begins_a_run_where_there_is_none(tmp_path, staged, uninterrupted):
    run(staged, tmp_path / "o", resume=True)
    assert differing(final(tmp_path / "o"), final(uninterrupted)) == set()


# From Python 3.12 on, forking while torch has threads warns; the workers do not use torch.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_do_not_change_the_weights(tmp_path):
    for workers in (0, 1):
        run(tiny(data={"accumulate": 2}), tmp_path / str(workers), workers=workers)
    assert differing(final(tmp_path / "0"), final(tmp_path / "1")) == set()


# --- what may not be resumed


CHANGES = {
    "learning rate": {"optimizer": Optimizer(lr=1e-3)},
    "seed": {"seed": 6},
    "steps": {"stage": (Stage(steps=9),)},
    "frames": {"source": {"count": 7}},
    "micro-batches": {"data": {"accumulate": 2}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_is_not_resumed_under_another_recipe_or_data(tmp_path, change):
    run(tiny(), tmp_path / "o", stop_after=4)
    before = {p: p.read_bytes() for p in (tmp_path / "o").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=r"another recipe, other data.*another folder with -o"):
        run(tiny(**change), tmp_path / "o", resume=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "o").rglob("*") if p.is_file()}


def test_a_run_is_not_resumed_with_other_weights_precision_or_teacher(tmp_path):
    run(tiny(), tmp_path / "o", stop_after=4)
    other = fresh_network(tiny(seed=9))
    for given in ({"net": other}, {"precision": "bf16"}, {"teacher": other}):
        with pytest.raises(UsageError, match="begun with another recipe"):
            run(tiny(), tmp_path / "o", resume=True, **given)


def test_a_new_name_of_the_recipe_is_no_other_recipe(tmp_path):
    run(tiny(), tmp_path / "o", stop_after=4)
    run(replace(tiny(), name="renamed", about="by hand"), tmp_path / "o", resume=True)


def test_a_full_folder_is_refused_without_resume(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; go on with --resume") as caught:
        run(tiny(), tmp_path / "o")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="is a file"):
        run(tiny(), tmp_path / "o" / "notes.txt")


def test_a_damaged_checkpoint(tmp_path):
    run(tiny(), tmp_path / "o", stop_after=4)
    path = tmp_path / "o" / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtefactError, match=r"last\.safetensors' is damaged"):
        run(tiny(), tmp_path / "o", resume=True)


# --- no finite loss


def test_a_loss_that_is_not_finite_is_named_by_step_and_frames(tmp_path):
    recipe = tiny(optimizer=Optimizer("sgd", lr=1e30), checkpoint_every=1)
    with pytest.raises(DivergedError) as caught:
        run(recipe, tmp_path / "o")
    text = str(caught.value)
    assert "\n" not in text
    step = load_place(tmp_path / "o" / "checkpoints" / "last.safetensors").step
    assert f"at step {step}, micro-batch 0" in text
    assert text.count("'synthetic-0-0000") == 2
    net = fresh_network(recipe)
    load_state(tmp_path / "o" / "checkpoints" / "last.safetensors", net, None)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_poisoned_weight_is_found_in_the_first_micro_batch(tmp_path, accumulate):
    recipe = tiny(data={"accumulate": accumulate})
    net = fresh_network(recipe)
    with torch.no_grad():
        net.classifier.weight[3, 5] = float("nan")
    with pytest.raises(DivergedError, match="loss is nan at step 0, micro-batch 0"):
        run(recipe, tmp_path / "o", net)
    assert not (tmp_path / "o" / "checkpoints").exists()


def test_the_program_ends_with_one_sentence_where_training_diverges(monkeypatch, capfd, tmp_path):
    pytest.importorskip("tomllib", reason="recipes need Python 3.11")
    (tmp_path / "r.toml").write_text(TOML.replace("lr = 2e-3", 'lr = 1e30\nname = "sgd"'))
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    code, out, err = run_main(
        monkeypatch, capfd, "train", "midenet", "--recipe", tmp_path / "r.toml",
        "-o", tmp_path / "o", "--workers", 0, "--threads", 1, "--device", "cpu",
    )  # fmt: skip
    assert (code, out) == (1, "")
    last = err.splitlines()[-1] + "\n"
    assert "training diverged" in one_line(last)
    assert "Traceback" not in err


# --- what a run leaves


def test_a_run_leaves_one_file_of_weights_that_loads(tmp_path, uninterrupted, staged):
    (path,) = uninterrupted.glob("*.safetensors")
    assert path.name == "midenet.safetensors"
    assert not list(uninterrupted.rglob("*.tmp"))
    net = load_network("midenet", path)
    assert net.structure.num_outputs == 20
    assert not net.training
    document = json.loads((uninterrupted / "recipe.json").read_text())
    assert document == staged.document()


def test_the_terms_of_the_data_stand_in_the_weights(tmp_path):
    run(tiny(), tmp_path / "o", license="research only")
    net = load_network("midenet", tmp_path / "o" / "midenet.safetensors")
    assert net.provenance["license"] == "research only"
    assert net.provenance["weights_name"] == "tiny"


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_or_the_last_weights_are_kept(tmp_path, keep):
    """Two good steps, then a learning rate that destroys what they taught."""
    stages = (Stage(steps=6), Stage(steps=4, lr=3.0))
    recipe = tiny(
        keep=keep,
        source={"hold_out": 2},
        evaluate_every=1,
        stage=stages,
        schedule=Schedule("constant"),
    )
    outcome = run(recipe, tmp_path / "o")
    looks = [r["miou_percent"] for r in records(tmp_path / "o") if "miou_percent" in r]
    assert len(looks) == 10
    assert max(looks[:6]) > max(looks[7:]) + 0.5
    assert outcome.kept == keep
    assert outcome.miou_percent == (max(looks) if keep == "best" else looks[-1])
    kept = tensors(tmp_path / "o" / "checkpoints" / f"{keep}.safetensors")
    left = final(tmp_path / "o")
    assert all(torch.equal(left[k], kept[f"net.{k}"]) for k in left)
    net = load_network("midenet", tmp_path / "o" / "midenet.safetensors")
    held_out = SyntheticScenes(8, 64, 128)
    held_out._samples = held_out._samples[6:]
    state = evaluate(TorchPredictor(net), held_out, size=(64, 128))
    assert state.miou_percent() == pytest.approx(outcome.miou_percent)


def test_the_seed_decides_the_weights(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(tiny(seed=seed, stage=(Stage(steps=2),)), tmp_path / name)
    a, b, c = (final(tmp_path / name) for name in "abc")
    assert differing(a, b) == set()
    assert len(differing(a, c)) > 30


def test_void_pixels_are_left_out_where_there_is_no_void_output(tmp_path):
    labels = [sample.load_label() for sample in SyntheticScenes(8, 64, 128)]
    assert any((label == 19).any() for label in labels)
    outcome = run(tiny(structure={"num_outputs": 19}), tmp_path / "o")
    assert load_network("midenet", outcome.weights).structure.num_outputs == 19
