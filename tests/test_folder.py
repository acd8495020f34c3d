"""Labelled folders of any layout and numbering, and scenes that are drawn when asked for."""

import builtins
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.data import CamVid, Cityscapes, LabelledFolder, PairedFolder, open_labelled
from edgeseg.errors import InputError, UsageError
from edgeseg.taxonomy import CLASSES

PHOTO = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    """Write a picture in the format of the extension; colours are BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[:, :, ::-1] if array.ndim == 3 else array).save(path)
    return path


def labels(*values: int) -> np.ndarray:
    return np.resize(np.uint8(values), (4, 5))


def labelled(root: Path, *values: int, mapping: object = None) -> Path:
    """A folder of one frame whose map holds ``values``."""
    save(root / "images" / "a.png", PHOTO)
    save(root / "labels" / "a.png", labels(*values))
    if isinstance(mapping, dict):
        (root / "labels.json").write_text(json.dumps(mapping))
    elif mapping is not None:
        (root / "labels.toml").write_text(str(mapping))
    return root


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert ". " not in text
    return text


def test_a_json_file_says_what_the_values_mean(tmp_path: Path) -> None:
    mapping = {"0": "road", "3": "traffic light", "4": 18, "7": "void", "9": "ignore"}
    data = LabelledFolder(labelled(tmp_path, 0, 3, 4, 7, 9, mapping=mapping))
    frame, label = data[0].load()
    np.testing.assert_array_equal(frame, PHOTO)
    np.testing.assert_array_equal(label, labels(0, 6, 18, 19, 255))
    assert (data.kind, data.name) == ("semantic", tmp_path.name)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_a_toml_file_does_too(tmp_path: Path) -> None:
    text = '# our own classes\n0 = "road"\n"1" = 11\n2 = "void"\n255 = "ignore"\n'
    data = LabelledFolder(labelled(tmp_path, 0, 1, 2, 255, mapping=text))
    np.testing.assert_array_equal(data[0].load_label(), labels(0, 11, 19, 255))


def test_every_class_has_its_name(tmp_path: Path) -> None:
    mapping = {str(100 + k): name for k, name in enumerate(CLASSES)}
    data = LabelledFolder(labelled(tmp_path, *range(100, 119), mapping=mapping))
    np.testing.assert_array_equal(data[0].load_label(), labels(*range(19)))


def test_without_a_file_the_values_are_train_ids_and_void(tmp_path: Path) -> None:
    data = LabelledFolder(labelled(tmp_path, 0, 18, 19, 255))
    np.testing.assert_array_equal(data[0].load_label(), labels(0, 18, 19, 255))
    labelled(tmp_path, 20)
    with pytest.raises(InputError, match=r"a\.png' holds the value 20, .* has 0-19, 255") as error:
        data[0].load_label()
    assert "labels.toml" in one_sentence(error)
    assert PairedFolder is LabelledFolder


def test_a_value_that_the_file_leaves_out_is_refused(tmp_path: Path) -> None:
    data = LabelledFolder(labelled(tmp_path, 1, 2, mapping={"1": "car"}))
    with pytest.raises(InputError, match=r"value 2, .* has 1; add the value to 'labels\.json'"):
        data[0].load_label()


def test_where_void_must_not_come_out_it_is_ignored(tmp_path: Path) -> None:
    folder = labelled(tmp_path, 0, 1, mapping={"0": "road", "1": "void"})
    np.testing.assert_array_equal(
        LabelledFolder(folder, void=False)[0].load_label(), labels(0, 255)
    )


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"0": "rode"}, "maps 0 to 'rode', which is no class; did you mean 'road'"),
        ({"0": "Traffic_Light"}, "did you mean 'traffic light'"),
        ({"0": "spaceship"}, "which is no class; use a class name, a trainId 0-18"),
        ({"256": "road"}, "maps '256'; .* from 0 to 255"),
        ({"-1": "road"}, "maps '-1'"),
        ({"01": "road"}, "maps '01'"),
        ({"road": 0}, "maps 'road'"),
        ({"0": 20}, "maps 0 to 20; use a class name"),
        ({"0": -1}, "maps 0 to -1"),
        ({"0": True}, "maps 0 to True"),
        ({"0": 1.0}, r"maps 0 to 1\.0"),
        ({"0": None}, "maps 0 to None"),
        ({"0": ["road"]}, r"maps 0 to \['road'\]"),
        ({}, "maps nothing"),
    ],
)
def test_what_a_mapping_file_cannot_say_is_named(tmp_path: Path, mapping: dict, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        LabelledFolder(labelled(tmp_path, 0, mapping=mapping))
    assert "labels.json" in one_sentence(error)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b'{"0": "road", "0": "car"}', "a key is given twice"),
        (b"[1, 2]", "is not a mapping"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 200_000, "is not valid JSON"),
    ],
)
def test_an_unreadable_json_file_is_one_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    (labelled(tmp_path, 0) / "labels.json").write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        LabelledFolder(tmp_path)
    one_sentence(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_an_unreadable_toml_file_is_one_sentence(tmp_path: Path) -> None:
    for content, says in (("0 = road", "is not valid TOML"), ("0.5 = 'road'", "maps 0 to {'5'")):
        with pytest.raises(InputError, match=says) as error:
            LabelledFolder(labelled(tmp_path, 0, mapping=content))
        one_sentence(error)
    (tmp_path / "labels.toml").unlink()
    (tmp_path / "labels.toml").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        LabelledFolder(tmp_path)


def test_before_python_3_11_a_toml_file_asks_for_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_import = builtins.__import__

    def without_tomllib(name: str, *args: object, **kwargs: object) -> object:
        if name == "tomllib":
            raise ModuleNotFoundError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tomllib)
    with pytest.raises(InputError, match=r"needs Python 3\.11.*labels\.json"):
        LabelledFolder(labelled(tmp_path, 0, mapping='0 = "road"'))


def test_two_mapping_files_are_one_too_many(tmp_path: Path) -> None:
    labelled(tmp_path, 0, mapping={"0": "road"})
    labelled(tmp_path, 0, mapping='0 = "car"')
    with pytest.raises(InputError, match=r"both labels\.toml and labels\.json"):
        LabelledFolder(tmp_path)


def test_missing_folders_and_unpaired_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        LabelledFolder(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no folder 'labels'"):
        LabelledFolder(tmp_path)
    labelled(tmp_path, 0)
    save(tmp_path / "images" / "b.png", PHOTO)
    with pytest.raises(InputError, match=r"b\.png' has no label map"):
        LabelledFolder(tmp_path)


def official(root: Path, split: str) -> None:
    save(root / "leftImg8bit" / split / "ulm" / "ulm_1_leftImg8bit.png", PHOTO)
    save(root / "gtFine" / split / "ulm" / "ulm_1_gtFine_labelTrainIds.png", labels(0, 255))


def camvid(root: Path, split: str) -> None:
    save(root / split / "1.png", PHOTO)
    save(root / f"{split}annot" / "1.png", labels(3, 11))


def split_pairs(root: Path, split: str) -> None:
    labelled(root / split, 0, 255)


@pytest.mark.parametrize(
    ("build", "kind"),
    [(official, Cityscapes), (camvid, CamVid), (split_pairs, LabelledFolder)],
)
def test_a_layout_is_known_by_what_is_there(tmp_path: Path, build: object, kind: type) -> None:
    build(tmp_path, "train")
    data = open_labelled(tmp_path)
    assert type(data) is kind
    np.testing.assert_array_equal(data[0].load_label(), labels(0, 255))
    build(tmp_path, "holdout")
    assert len(open_labelled(tmp_path, "holdout")) == 1


@pytest.mark.parametrize("build", [official, camvid, split_pairs])
def test_val_is_never_taken_for_train(tmp_path: Path, build: object) -> None:
    build(tmp_path, "val")
    with pytest.raises(InputError, match=r"no split 'train' \(it has .*val") as error:
        open_labelled(tmp_path)
    one_sentence(error)


def test_a_plain_folder_is_taken_whole(tmp_path: Path) -> None:
    folder = labelled(tmp_path, 5, mapping={"5": "bus"})
    np.testing.assert_array_equal(open_labelled(folder)[0].load_label(), labels(15))


def test_a_mapping_file_may_lie_above_the_splits(tmp_path: Path) -> None:
    labelled(tmp_path / "train", 5)
    (tmp_path / "labels.json").write_text('{"5": "bus"}')
    np.testing.assert_array_equal(open_labelled(tmp_path)[0].load_label(), labels(15))
    (tmp_path / "train" / "labels.json").write_text('{"5": "car"}')
    np.testing.assert_array_equal(open_labelled(tmp_path)[0].load_label(), labels(13))


def test_an_unknown_layout_names_what_each_needs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leftImg8bit/train/.*trainannot/.*images/ and labels/"):
        open_labelled(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_labelled(tmp_path / "nowhere")


@pytest.mark.data
def test_shared_sets_open_by_what_they_are(shared_data: Path) -> None:
    assert len(open_labelled(shared_data / "cityscapes")) == 10
    assert len(open_labelled(shared_data / "cityscapes256", "val")) == 500
    assert len(open_labelled(shared_data / "camvid")) == 367


def test_scenes_are_a_data_set() -> None:
    pytest.importorskip("cv2", reason="the generator draws with OpenCV")
    from edgeseg.data.synthetic import SyntheticScenes, scene

    data = SyntheticScenes(count=4, height=32, width=64, seed=0)
    assert (data.name, data.kind, len(data)) == ("synthetic", "semantic", 4)
    assert len({sample.name for sample in data}) == 4
    frame, label = scene(3, 32, 64)
    np.testing.assert_array_equal(data[3].load_image(), frame)
    np.testing.assert_array_equal(data[3].load_label(), label)
    drawn = data[-1].load()
    drawn[0][:] = 0  # what a caller does to a frame stays with the caller
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data[3])).load()[0], frame)
    others = SyntheticScenes(count=4, height=32, width=64, seed=1)
    maps = {sample.load_label().tobytes() for sample in (*data, *others)}
    assert len(maps) == 8
    again = SyntheticScenes(count=2, height=32, width=64, seed=1)
    np.testing.assert_array_equal(again[1].load_image(), others[1].load_image())


@pytest.mark.parametrize("numbers", [(0, 64, 64, 0), (1, 8, 64, 0), (1, 64, 64, -1)])
def test_scenes_that_cannot_be_drawn_are_refused_at_once(numbers: tuple[int, ...]) -> None:
    pytest.importorskip("cv2", reason="the generator draws with OpenCV")
    from edgeseg.data.synthetic import SyntheticScenes

    with pytest.raises(UsageError):
        SyntheticScenes(*numbers)
