"""``train``, ``finetune-void`` and ``distill`` as users start them, and what they refuse."""

import json
import re
import sys

import pytest

pytest.importorskip("cv2", reason="training needs OpenCV")
pytest.importorskip("tomllib", reason="recipes need Python 3.11")
torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.networks import build  # noqa: E402
from edgeseg.networks.checkpoints import load_network, save_network  # noqa: E402
from tests.runs import TOML, differing, final, records  # noqa: E402
from tests.test_cli import one_line, run_main  # noqa: E402
from tests.test_sampling import photos  # noqa: E402

QUICK = ("--workers", 0, "--threads", 1, "--device", "cpu", "--precision", "float32")


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Runs set the threads of torch; give them back."""
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def program(monkeypatch, capfd):
    """Exit code, stdout and stderr of a command that trains."""
    return lambda *arguments: run_main(monkeypatch, capfd, *arguments, *QUICK)


@pytest.fixture
def recipe(tmp_path):
    """A recipe of small crops; ``recipe(old, new, …)`` replaces in it."""

    def write(*changes, name="tiny"):
        text = TOML
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


def weights(path, network="midenet", **structure):
    """Random weights in a file, and the network that has them."""
    torch.manual_seed(2)
    net = build(network, structure).eval()
    save_network(net, path, {"weights_name": "random", "license": "none"})
    return net


def document(result):
    code, out, err = result
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


# --- train


@pytest.mark.slow
def test_training_needs_nothing_but_a_folder_to_write_to(program, tmp_path):
    """Without --data scenes are drawn, and the default recipe is big enough for real photos."""
    folder = tmp_path / "run"
    result = document(program("train", "midenet", "-o", folder, "--steps", 1, "--json"))
    assert result == {
        "schema": "edgeseg.train/1",
        "network": "midenet",
        "recipe": "midenet-default",
        "weights": str(folder / "midenet.safetensors"),
        "steps": 1,
        "hours": result["hours"],
        "miou_percent": None,
        "kept": "last",
    }
    assert load_network("midenet", folder / "midenet.safetensors").structure.num_outputs == 20


def test_a_recipe_names_its_run(program, recipe, tmp_path):
    path = recipe("size =", "hold_out = 2\nsize =")
    result = document(
        program("train", "midenet", "--recipe", path, "-o", tmp_path / "o", "--steps", 3, "--json")
    )
    assert (result["schema"], result["recipe"], result["steps"]) == ("edgeseg.train/1", "tiny", 3)
    assert (result["kept"], result["miou_percent"] >= 0) == ("best", True)
    assert records(tmp_path / "o")[-1]["step"] == 3


def test_without_json_the_next_command_is_named(program, recipe, tmp_path):
    code, out, err = program(
        "train", "midenet", "--recipe", recipe(), "-o", tmp_path / "o", "--steps", 2
    )
    assert code == 0
    assert re.search(r"midenet\.safetensors: midenet, 2 steps\nnext: edgeseg export midenet", out)
    assert "begins: 2 steps of 2 frames (8 frames, 0 held out), float32 on cpu" in err


def test_training_reads_labelled_folders(program, recipe, tmp_path):
    photos(tmp_path / "data" / "mine", "abcd")
    path = recipe('folder = "synthetic"\ncount = 8\nsize = "64x128"', 'folder = "mine"')
    arguments = ("train", "midenet", "--recipe", path, "--steps", 2, "--json")
    document(program(*arguments, "-o", tmp_path / "o", "--data", tmp_path / "data"))
    (tmp_path / "data" / "mine").rename(tmp_path / "elsewhere")
    moved = ("--data", tmp_path / "data", "--source", f"mine={tmp_path / 'elsewhere'}")
    document(program(*arguments, "-o", tmp_path / "p", *moved))
    assert differing(final(tmp_path / "o"), final(tmp_path / "p")) == set()
    code, out, err = program(*arguments, "-o", tmp_path / "q")
    assert (code, out) == (2, "")
    assert "reads 'mine', so it needs --data DIR" in one_line(err)
    code, out, err = program(*arguments, "-o", tmp_path / "q", "--data", tmp_path / "data")
    assert (code, out) == (7, "")
    assert re.search(r"mine' does not exist", one_line(err))
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("loss", ["isomax+focal", "isomax"])
def test_isomax_goes_into_the_structure(program, recipe, tmp_path, loss):
    arguments = ("train", "midenet", "--recipe", recipe(), "--loss", loss, "--steps", 2, "--json")
    document(program(*arguments, "-o", tmp_path / "o"))
    net = load_network("midenet", tmp_path / "o" / "midenet.safetensors")
    assert net.structure.isomax
    assert net.isomax is not None
    assert not torch.equal(net.isomax.distance_scale, torch.ones(1))
    kept = json.loads((tmp_path / "o" / "recipe.json").read_text())
    assert kept["loss"]["name"] == ("focal+isomax" if "focal" in loss else "isomax")


def test_training_goes_on_from_given_weights(program, recipe, tmp_path):
    given = weights(tmp_path / "w.safetensors").state_dict()
    path = recipe("steps = 20", 'steps = 1\npart = "last"')
    document(
        program(
            "train", "midenet", "--recipe", path, "--weights", tmp_path / "w.safetensors",
            "-o", tmp_path / "o", "--json",
        )
    )  # fmt: skip
    left = final(tmp_path / "o")
    assert differing(left, {k: given[k] for k in left}) == {"classifier.weight", "classifier.bias"}


def test_tensorboard_gets_what_the_metrics_hold(program, recipe, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ("train", "midenet", "--recipe", recipe(), "-o", tmp_path / "o", "--steps", 10)
    document(program(*arguments, "--json"))
    events = EventAccumulator(str(tmp_path / "o" / "tensorboard"))
    events.Reload()
    (logged,) = events.Scalars("loss")
    (record,) = records(tmp_path / "o")
    assert logged.step == record["step"] == 10
    assert logged.value == pytest.approx(record["loss"])


def test_a_run_without_tensorboard(program, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ("train", "midenet", "--recipe", recipe(), "-o", tmp_path / "o", "--steps", 1)
    document(program(*arguments, "--json"))
    assert not (tmp_path / "o" / "tensorboard").exists()


# --- mistakes


MISTAKES = {
    "network": (("train", "unet"), 2, "'unet' .*enet, erfnet, bisenet, midenet"),
    "loss": (("train", "midenet", "--loss", "hinge"), 2, "--loss hinge: give one of ce, focal"),
    "two bases": (("train", "midenet", "--loss", "ce+focal"), 2, "--loss ce.focal: give one"),
    "device": (("train", "midenet", "--device", "tpu"), 2, "--device 'tpu' is unknown"),
    "precision": (("train", "midenet", "--precision", "int8"), 2, "--precision 'int8' is unknown"),
    "recipe": (("train", "midenet", "--recipe", "nowhere"), 7, "'nowhere' is neither a file nor"),
    "data": (("train", "midenet", "--data", "nowhere"), 7, "--data 'nowhere' is not a folder"),
    "source": (("train", "midenet", "--source", "a=nowhere"), 2, "--source 'a=nowhere' is not"),
    "weights": (("train", "midenet", "--weights", "nowhere"), 7, "'nowhere'"),
    "teacher file": (
        ("distill", "midenet", "--teacher", "erfnet:nowhere.safetensors"),
        7,
        r"'nowhere\.safetensors'",
    ),
    "teacher": (("distill", "midenet", "--teacher", "unet:x"), 2, "'unet'"),
    "void": (("finetune-void", "midenet", "--weights", "nowhere"), 7, "'nowhere'"),
}


@pytest.mark.parametrize(("arguments", "expected", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(monkeypatch, capfd, tmp_path, arguments, expected, message):
    folder = tmp_path / "o"
    code, out, err = run_main(monkeypatch, capfd, *arguments, "--workers", 0, "-o", folder)
    assert (code, out) == (expected, "")
    assert re.search(message, one_line(err))
    assert not folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(monkeypatch, capfd, tmp_path):
    folder = tmp_path / "o"
    code, _, err = run_main(
        monkeypatch, capfd, "train", "midenet", "--device", "cuda", "-o", folder
    )
    assert code == 3
    assert "torch finds no CUDA device" in one_line(err)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "expected", "message"),
    [
        (("batch = 2", "batches = 2"), 2, "there is no 'data.batches'; known here"),
        (("batch = 2", 'batch = "2"'), 2, "'data.batch' is '2', which is not of the right type"),
        (("lr = 2e-3", "lr = 0.0"), 2, "lr is above 0"),
        (("[data]", "network = 'enet'\n[data]"), 2, "is for enet, and midenet was asked for"),
        (("[data]", "[data"), 2, "is not valid TOML"),
        (("recipe/1", "recipe/9"), 2, "is of schema 'edgeseg.recipe/9'"),
        (("64x128", "60x128"), 2, "size 60x128 does not fit midenet"),
        (("count = 8", "count = 8\nhold_out = 8"), 7, "has 8 frames and 8 are to be held out"),
        (("[optimizer]", "[structure]\nwide = 1\n[optimizer]"), 4, "has no field 'wide'"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_followed(program, recipe, tmp_path, changes, expected, message):
    path = recipe(*changes)
    code, out, err = program("train", "midenet", "--recipe", path, "-o", tmp_path / "o")
    assert (code, out) == (expected, "")
    assert message in one_line(err)
    assert not (tmp_path / "o").exists()


def test_the_folder_and_resume(program, recipe, tmp_path):
    arguments = ("train", "midenet", "--recipe", recipe(), "-o", tmp_path / "o", "--steps", 1)
    document(program(*arguments, "--json"))
    before = final(tmp_path / "o")
    code, _, err = program(*arguments)
    assert (code, "is not empty; go on with --resume" in one_line(err)) == (2, True)
    other = recipe("lr = 2e-3", "lr = 1e-3")
    code, _, err = program(*arguments[:3], other, *arguments[4:], "--resume")
    assert (code, "another recipe" in one_line(err)) == (2, True)
    document(program(*arguments[:3], recipe(), *arguments[4:], "--resume", "--json"))
    assert differing(final(tmp_path / "o"), before) == set()


# --- finetune-void


@pytest.mark.parametrize(
    ("network", "layer"),
    [("midenet", "classifier"), ("enet", "fullconv"), ("erfnet", "decoder.output_conv")],
)
def test_a_void_output_is_added_and_the_last_layer_alone_learns(
    program, recipe, tmp_path, network, layer
):
    given = weights(tmp_path / "w.safetensors", network, num_outputs=19).state_dict()
    path = recipe("steps = 20", 'steps = 2\npart = "last"')
    result = document(
        program(
            "finetune-void", network, "--weights", tmp_path / "w.safetensors", "--recipe", path,
            "-o", tmp_path / "o", "--json",
        )
    )  # fmt: skip
    assert result["schema"] == "edgeseg.finetune-void/1"
    assert load_network(network, tmp_path / "o" / f"{network}.safetensors").structure.void_index
    left = final(tmp_path / "o")
    changed = {k for k in left if not torch.equal(left[k], given[k])}
    # ERFNet's second classifier is made wider too, and learns nothing.
    auxiliary = {k for k in left if k.startswith("encoder.output_conv")}
    assert changed - auxiliary == {k for k in left if k.startswith(f"{layer}.")}
    assert all(torch.equal(left[k][:19], given[k]) for k in auxiliary)
    for name in changed - auxiliary:
        axis = next(i for i, n in enumerate(left[name].shape) if n == 20)
        moved = (left[name].narrow(axis, 0, 19) - given[name]).abs()
        assert 0 < moved.max() < 0.02


def test_void_is_taught_to_isomax_weights_without_a_recipe(program, recipe, tmp_path, monkeypatch):
    from edgeseg.training import recipe as recipes

    small = recipes.load_recipe(recipe("steps = 20", 'steps = 1\npart = "last"'), "midenet")
    monkeypatch.setattr(recipes, "void_recipe", lambda _: small)
    weights(tmp_path / "w.safetensors", num_outputs=19, isomax=True)
    arguments = ("finetune-void", "midenet", "--weights", tmp_path / "w.safetensors")
    document(program(*arguments, "-o", tmp_path / "o", "--json"))
    structure = load_network("midenet", tmp_path / "o" / "midenet.safetensors").structure
    assert structure.isomax
    assert structure.void_index == 19
    kept = json.loads((tmp_path / "o" / "recipe.json").read_text())
    assert kept["loss"]["name"] == "isomax"


@pytest.mark.parametrize(
    ("command", "loss", "fitting"),
    [
        (("finetune-void", "midenet"), "ce", "isomax"),
        (("distill", "midenet", "--teacher", "TEACHER"), "focal", "focal+isomax"),
    ],
    ids=["finetune-void", "distill"],
)
def test_a_loss_that_does_not_fit_is_mended_in_the_recipe(
    program, recipe, tmp_path, command, loss, fitting
):
    weights(tmp_path / "w.safetensors", isomax=True)
    weights(tmp_path / "t.safetensors")
    command = [f"midenet:{tmp_path / 't.safetensors'}" if c == "TEACHER" else c for c in command]
    path = recipe("[optimizer]", f'[loss]\nname = "{loss}"\n[optimizer]')
    code, out, err = program(
        *command, "--weights", tmp_path / "w.safetensors", "--recipe", path, "-o", tmp_path / "o"
    )
    assert (code, out) == (2, "")
    assert f'set name = "{fitting}" under [loss] in the --recipe' in one_line(err)
    assert not (tmp_path / "o").exists()


# --- distill


def test_an_isomax_student_needs_no_recipe(program, recipe, tmp_path, monkeypatch):
    from edgeseg.training import recipe as recipes

    small = recipes.load_recipe(recipe("steps = 20", "steps = 1"), "midenet")
    monkeypatch.setattr(recipes, "default_recipe", lambda _: small)
    weights(tmp_path / "w.safetensors", isomax=True)
    weights(tmp_path / "t.safetensors")
    teacher = f"midenet:{tmp_path / 't.safetensors'}"
    arguments = ("distill", "midenet", "--teacher", teacher, "-o", tmp_path / "o", "--json")
    document(program(*arguments, "--weights", tmp_path / "w.safetensors"))
    assert load_network("midenet", tmp_path / "o" / "midenet.safetensors").structure.isomax


def test_a_student_learns_from_a_teacher(program, recipe, tmp_path):
    master = weights(tmp_path / "t.safetensors", "erfnet")
    arguments = ("--recipe", recipe(), "--steps", 2, "--json")
    taught = program(
        "distill", "midenet", "--teacher", f"erfnet:{tmp_path / 't.safetensors'}",
        "-o", tmp_path / "taught", *arguments,
    )  # fmt: skip
    assert document(taught)["schema"] == "edgeseg.distill/1"
    document(program("train", "midenet", "-o", tmp_path / "alone", *arguments))
    assert differing(final(tmp_path / "taught"), final(tmp_path / "alone"))
    again = load_network("erfnet", tmp_path / "t.safetensors")
    assert differing(again.state_dict(), master.state_dict()) == set()
