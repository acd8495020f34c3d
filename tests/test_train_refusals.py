"""What a training run refuses before there is a folder of it, and what it says of its frames."""

import re

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="training needs OpenCV")
torch = pytest.importorskip("torch", reason="training needs torch")

from edgeseg.errors import InputError, UsageError  # noqa: E402
from edgeseg.networks import build  # noqa: E402
from edgeseg.taxonomy import IGNORE  # noqa: E402
from edgeseg.training.initial import fresh_network  # noqa: E402
from edgeseg.training.recipe import Loss, Source, Stage, load_recipe  # noqa: E402
from edgeseg.training.sampling import Mixture, open_source  # noqa: E402
from edgeseg.training.step import check_fit  # noqa: E402
from tests.runs import run, tiny  # noqa: E402
from tests.test_sampling import folders, photos  # noqa: E402
from tests.test_train_cli import QUICK, one_line, run_main  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
UNLABELLED = np.full((64, 128), IGNORE)


# --- held-out frames


def test_held_out_frames_that_all_are_trained_on_elsewhere_are_refused(tmp_path):
    photos(tmp_path / "a", "abcd")
    photos(tmp_path / "b", "abcd")
    recipe = folders(Source("a", hold_out=2), Source("b"))
    with pytest.raises(UsageError, match="none of the 2 frames to be held out is left"):
        run(recipe, tmp_path / "o", data=tmp_path)
    assert not (tmp_path / "o").exists()


def test_the_log_says_how_many_are_not_held_out(tmp_path, capfd):
    photos(tmp_path / "a", "abcd")
    photos(tmp_path / "b", "cxyz")
    recipe = folders(Source("a", hold_out=2), Source("b"), stage=(Stage(steps=1),))
    run(recipe, tmp_path / "o", data=tmp_path)
    assert "(6 frames, 1 held out and 1 not, since a source trains on" in capfd.readouterr().err
    assert Mixture(folders(Source("a", hold_out=2)), tmp_path).not_held_out == 0


# --- labels without a class


@pytest.mark.parametrize("rule", ["sqrt", "enet", "erfnet"])
def test_classes_cannot_be_weighted_where_none_is_labelled(tmp_path, rule):
    photos(tmp_path / "a", "ab", UNLABELLED)
    recipe = folders(Source("a"), loss=Loss(class_weights=rule))
    with pytest.raises(InputError, match="no label has a pixel of a known class"):
        run(recipe, tmp_path / "o", data=tmp_path)
    assert not (tmp_path / "o").exists()


def test_frames_cannot_be_drawn_by_a_class_where_none_is_labelled(tmp_path):
    photos(tmp_path / "a", "ab", UNLABELLED)
    with pytest.raises(InputError, match="none of its labels has 32 pixels of a known class"):
        run(folders(Source("a", rare=0.5)), tmp_path / "o", data=tmp_path)
    assert not (tmp_path / "o").exists()


def test_the_program_exits_with_7_where_no_class_is_labelled(monkeypatch, capfd, tmp_path):
    photos(tmp_path / "a", "ab", UNLABELLED)
    code, out, err = run_main(
        monkeypatch, capfd, "train", "midenet", "--data", tmp_path / "a", "-o", tmp_path / "o",
        "--steps", 1, *QUICK,
    )  # fmt: skip
    assert (code, out) == (7, "")
    assert "known class" in one_line(err)
    assert not (tmp_path / "o").exists()


# --- networks that do not fit


def test_a_teacher_that_cannot_take_the_crop_is_refused(tmp_path):
    recipe = tiny(data={"crop": "72x128"})
    with pytest.raises(UsageError, match="72x128 does not fit bisenet"):
        run(recipe, tmp_path / "o", teacher=build("bisenet", {}))
    assert not (tmp_path / "o").exists()


def test_bisenet_does_not_learn_from_one_frame(tmp_path):
    recipe = tiny("bisenet", data={"batch": 1, "accumulate": 2})
    with pytest.raises(UsageError, match="bisenet cannot learn from batches of one frame"):
        run(recipe, tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_one_frame_is_enough_where_no_statistic_is_made():
    for stage in (Stage("last", steps=1), Stage(steps=1, freeze_batchnorm=True)):
        recipe = tiny("bisenet", data={"batch": 1}, stage=(stage,))
        check_fit(recipe, fresh_network(recipe))
    recipe = tiny("bisenet", data={"batch": 1})
    check_fit(recipe, fresh_network(recipe), processes=2)
    check_fit(tiny("erfnet", data={"batch": 1}), fresh_network(tiny("erfnet")))


# --- sources


@pytest.mark.parametrize("name", ["typo", "synthetic"])
def test_a_place_of_no_source_is_refused(tmp_path, name):
    photos(tmp_path / "a", "ab")
    recipe = folders(Source("a"), Source("synthetic", count=2, size="64x128"))
    with pytest.raises(UsageError, match=f"--source '{name}=.*reads 'a'$"):
        Mixture(recipe, tmp_path, {name: tmp_path / "a"})
    assert len(Mixture(recipe, tmp_path, {"a": tmp_path / "a"})) == 4


def test_a_place_needs_no_data(tmp_path):
    photos(tmp_path / "a", "abc")
    for name in (".", "city"):
        assert len(open_source(Source(name), None, {name: tmp_path / "a"})) == 3


@pytest.mark.parametrize(
    ("names", "says"), [(("typo",), "replaces nothing"), ((".", "."), "names '.' twice")]
)
def test_a_source_that_changes_nothing_exits_with_2(monkeypatch, capfd, tmp_path, names, says):
    photos(tmp_path / "a", "ab")
    sources = [text for name in names for text in ("--source", f"{name}={tmp_path / 'a'}")]
    code, out, err = run_main(
        monkeypatch, capfd, "train", "midenet", "-o", tmp_path / "o", *sources, *QUICK
    )
    assert (code, out) == (2, "")
    assert re.search(says, one_line(err))
    assert not (tmp_path / "o").exists()


# --- recipes


@pytest.mark.parametrize("share", [0.0, 0.0009])
def test_a_source_that_is_never_drawn_is_refused(share):
    with pytest.raises(UsageError, match="whose frames would never be drawn"):
        folders(Source("a"), Source("b", share=share)).check()


def test_a_source_of_a_thousandth_is_drawn(tmp_path):
    photos(tmp_path / "a", "a")
    photos(tmp_path / "b", "b")
    recipe = folders(Source("a", share=0.999), Source("b", share=0.001))
    recipe.check()
    mixture = Mixture(recipe, tmp_path)
    drawn = {mixture.item(number, Stage(steps=1))[2] for number in range(1000)}
    assert drawn == {"a", "b"}


def test_a_deeply_nested_recipe_is_refused(tmp_path):
    path = tmp_path / "deep.toml"
    text = 'schema = "edgeseg.recipe/1"\n[[stage]]\nsteps = 1\n[structure]\na = '
    path.write_text(text + "[" * 5000 + "]" * 5000)
    with pytest.raises(UsageError, match="is not valid TOML"):
        load_recipe(path, "midenet")


def test_a_folder_that_cannot_be_made_exits_with_2(monkeypatch, capfd, tmp_path):
    (tmp_path / "file").touch()
    arguments = ["train", "midenet", "-o", tmp_path / "file" / "run", *QUICK]
    code, _, err = run_main(monkeypatch, capfd, *arguments)
    assert code == 2
    assert "--output" in one_line(err)
    assert "cannot be written (Not a directory)" in err
