"""Bundles: written whole or not at all, opened only if every byte is what it was."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeseg.bundle import BODY, HEAD, MANIFEST, Bundle, head_to_files, write_bundle
from edgeseg.errors import ArtefactError, EdgesegError, InputError, UsageError
from edgeseg.safetensors import write_safetensors
from edgeseg.scoring.head import Head, IsoMaxPlus
from tests.bundles import make_bundle


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "b"))


def edit(folder, change):
    """Change the manifest as JSON; ``change`` gets the document and may give another."""
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document) or document))


def relist(folder, name, content):
    """Put a file into the bundle so that size and hash are right."""
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda d: d["files"].update({name: {"sha256": digest, "bytes": len(content)}}))


def refused(folder, match=None, error=ArtefactError):
    with pytest.raises(error, match=match) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def refusal(folder):
    """The sentence with which the bundle is refused, or "" where it opens."""
    try:
        Bundle.open(folder)
    except ArtefactError as error:
        return str(error)
    return ""


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- what is written comes back


def test_round_trip(folder):
    opened = Bundle.open(folder)
    assert opened.size == (64, 128)
    assert opened.body_path.read_bytes() == (folder / BODY).read_bytes()
    assert opened.body_sha256 == hashlib.sha256((folder / BODY).read_bytes()).hexdigest()
    assert opened.file_bytes == sum((folder / n).stat().st_size for n in (BODY, HEAD, MANIFEST))
    assert opened.scorer_defaults("void").threshold == 0.3
    again = write_bundle(
        folder.parent / "again",
        opened.manifest,
        {BODY: opened.body_path.read_bytes(), HEAD: head_to_files(opened.head)[1]},
    )
    assert tree(again) == tree(folder)


@pytest.mark.parametrize("isomax", [None, IsoMaxPlus(1.5, np.linspace(-1, 1, 20, dtype="f4"))])
def test_every_kind_of_head_comes_back(folder, isomax):
    rng = np.random.default_rng(0)
    heads = [
        Head("deconv2x2", 20, 19, 19, 2, *_weights(rng, 2), isomax=isomax, layout="nhwc"),
        Head("deconv3x3", 20, 19, 19, 2, *_weights(rng, 3), isomax=isomax),
        Head("bilinear", 20, 19, 19, 8, isomax=isomax),
        Head("identity", 20, 19, 19, 1, isomax=isomax),
    ]
    for head in heads:
        entry, content = head_to_files(head)
        relist(folder, HEAD, content)
        edit(folder, lambda d, entry=entry: d.update(head=entry))
        back = Bundle.open(folder).head
        features = rng.normal(size=(head.channels_in, 3, 4)).astype(np.float32)
        np.testing.assert_array_equal(back.logits(features), head.logits(features))
        assert (back.kind, back.layout, back.void_index) == (
            head.kind,
            head.layout,
            head.void_index,
        )


def _weights(rng, kernel):
    weight = rng.normal(size=(16, 20, kernel, kernel)).astype(np.float32)
    return weight, rng.normal(size=20).astype(np.float32)


def test_files_beside_a_bundle_do_not_matter(folder):
    (folder / "engine.cache").write_bytes(b"anything")
    Bundle.open(folder)


def test_unknown_fields_of_a_newer_minor_version_do_not_matter(folder):
    edit(folder, lambda d: d.update(motto="hello"))
    Bundle.open(folder)


def test_a_scorer_that_the_bundle_lacks_is_a_usage_error_that_names_what_it_has(tmp_path):
    opened = Bundle.open(make_bundle(tmp_path / "b", void=False))
    with pytest.raises(UsageError, match=r"'void'.*msp, maxlogit, entropy, energy"):
        opened.scorer_defaults("void")


# --- damage


def test_no_folder(tmp_path):
    refused(tmp_path / "absent", "does not exist", InputError)


def test_a_folder_or_file_that_is_no_bundle(tmp_path):
    refused(tmp_path, "is not a bundle")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file", "is not a bundle")


@pytest.mark.parametrize("name", [BODY, HEAD])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", [BODY, HEAD])
def test_a_truncated_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert name in refused(folder, "bytes where the manifest says")


@pytest.mark.parametrize("name", [BODY, HEAD])
def test_a_flipped_byte_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert name in refused(folder, "sha256")


def test_a_folder_in_place_of_a_file(folder):
    (folder / BODY).unlink()
    (folder / BODY).mkdir()
    refused(folder, BODY)


@pytest.mark.parametrize("name", [BODY, HEAD])
def test_a_bundle_that_does_not_list_what_it_needs(folder, name):
    edit(folder, lambda d: d["files"].pop(name) and None)
    refused(folder, f"does not list {name}")


def test_every_truncation_of_the_manifest_is_noticed(folder):
    content = (folder / MANIFEST).read_bytes().rstrip()
    for length in range(0, len(content), 97):
        (folder / MANIFEST).write_bytes(content[:length])
        refused(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"schema": 1}',
        b'{"schema": "edgeseg.bundle/1"}',
        b'{"schema": "edgeseg.bundle/1", "height": ' + b"9" * 9999 + b"}",
        b" " * (5 << 20),
    ],
    ids=lambda c: repr(c[:24]),
)
def test_a_manifest_that_is_none(folder, content):
    (folder / MANIFEST).write_bytes(content)
    refused(folder)


def test_another_schema_names_both(folder):
    edit(folder, lambda d: d.update(schema="edgeseg.bundle/2"))
    refused(folder, r"'edgeseg\.bundle/2'.*'edgeseg\.bundle/1'")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "x\0y", "n" * 5000, "\ud800"]
)
def test_file_names_stay_inside_the_folder(folder, name):
    (folder.parent / "secret").write_bytes(b"secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    edit(folder, lambda d: d["files"].update({name: entry}))
    refused(folder)


INF, NAN = float("inf"), float("nan")
WRONG = [None, True, -1, 0, 2.5, 10**400, INF, NAN, "x", [], [1], {}, {"a": 1}, [[]], [None]]
# What may stand there besides what is written: those values are right for these fields.
RIGHT = {
    "weights_name": ["x"],
    "license": ["x"],
    "created_by": ["x"],
    "structure": [{}, {"a": 1}],
    "counts": [{}, {"a": 1}],
    "calibration": [{}, {"a": 1}],
    "accuracy": [{}, {"a": 1}],
    "network": ["x"],
}


@pytest.mark.parametrize(
    "field",
    [
        "network", "structure", "classes", "palette", "height", "width", "head", "scorers",
        "precision", "compute_precision", "weights_name", "license", "counts", "calibration",
        "accuracy", "created_by", "files", "schema",
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_refused(folder, field):
    good = (folder / MANIFEST).read_text()
    for value in WRONG:
        if value in RIGHT.get(field, ()):
            continue
        (folder / MANIFEST).write_text(good)
        edit(folder, lambda d, value=value: d.update({field: value}))
        sentence = refusal(folder)
        assert sentence, f"{field} = {value!r} was accepted"
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("field", "values"),
    {
        ("kind",): ["cubic", [], None, 3],
        ("factor",): [0, -2, 3, INF, NAN, 10**400, "two", None, 2.5, []],
        ("num_outputs",): [0, 19, 65, INF, NAN, 20.5, None, "20", []],
        ("num_known",): [0, -1, 18, 21, INF, NAN, 19.5, None, []],
        ("void_index",): [0, 18, 20, -1, INF, NAN, 19.5, "19", []],
        ("layout",): ["hwc", None, [], 1],
        ("isomax_distance_scale",): [1.0, INF, NAN, "x", [], True],
    }.items(),
)
def test_a_wrong_head_is_refused(folder, field, values):
    good = (folder / MANIFEST).read_text()
    for value in values:
        (folder / MANIFEST).write_text(good)
        edit(folder, lambda d, value=value: d["head"].update({field[0]: value}))
        sentence = refusal(folder)
        assert sentence, f"{field[0]} = {value!r} was accepted"
        assert "\n" not in sentence


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": np.zeros((16, 20, 2, 2), np.float32)},
        {"weight": np.float32(1), "bias": np.zeros(20, np.float32)},
        {"weight": np.zeros(3, np.float32), "bias": np.zeros(20, np.float32)},
        {"weight": np.zeros((0, 20, 2, 2), np.float32), "bias": np.zeros(20, np.float32)},
        {"weight": np.zeros((16, 20, 2, 2), np.float32), "bias": np.float32(0)},
        {"weight": np.zeros((16, 20, 3, 3), np.float32), "bias": np.zeros(20, np.float32)},
        {"weight": np.full((16, 20, 2, 2), NAN, np.float32), "bias": np.zeros(20, np.float32)},
    ],
    ids=["nothing", "no bias", "0-d", "1-d", "no channels", "0-d bias", "other kernel", "NaN"],
)
def test_head_weights_that_do_not_fit_are_refused(folder, tensors):
    relist(folder, HEAD, write_safetensors(tensors))
    refused(folder, "head")


@pytest.mark.parametrize("scale", [INF, NAN, "x"])
def test_an_isomax_scale_must_be_a_number(folder, scale):
    tensors = {"isomax_prototypes": np.zeros(20, np.float32)}
    relist(folder, HEAD, write_safetensors(tensors))
    edit(folder, lambda d: d["head"].update(kind="identity", factor=1, isomax_distance_scale=scale))
    refused(folder)


@pytest.mark.parametrize(
    "defaults",
    [
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": NAN},
        {"temperature": INF},
        {"temperature": "1"},
        {"temperature": True},
        {"threshold": NAN},
        {"threshold": INF},
        {"threshold": "1"},
        {"threshold": []},
        {"colour": 1},
        [],
        None,
    ],
    ids=repr,
)
def test_scorer_defaults_that_are_no_numbers_are_refused(folder, defaults):
    edit(folder, lambda d: d["scorers"].update(msp=defaults))
    refused(folder)


def test_void_without_a_void_output_is_refused(tmp_path):
    path = make_bundle(tmp_path / "b", void=False)
    edit(path, lambda d: d["scorers"].update(void={"threshold": None, "temperature": 1.0}))
    refused(path, "void")


def test_unknown_scorers_are_refused(folder):
    edit(folder, lambda d: d["scorers"].update(magic={}))
    refused(folder, "magic")


def test_sides_that_the_head_cannot_reach_are_refused(folder):
    edit(folder, lambda d: d.update(height=63))
    refused(folder)


def test_random_damage_never_escapes(folder):
    rng = np.random.default_rng(0)
    content = (folder / MANIFEST).read_bytes()
    for _ in range(400):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(32, 127)
        (folder / MANIFEST).write_bytes(damaged)
        assert "\n" not in refusal(folder)


# --- writing


def rewrite(pristine, destination):
    opened = Bundle.open(pristine)
    files = {BODY: opened.body_path.read_bytes(), HEAD: head_to_files(opened.head)[1]}
    return write_bundle(destination, opened.manifest, files)


def test_parents_are_made_and_nothing_lies_beside(pristine, tmp_path):
    rewrite(pristine, tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path / "a" / "b") == ["c"]
    Bundle.open(tmp_path / "a" / "b" / "c")


def test_everybody_may_read_a_bundle(pristine, tmp_path):
    written = rewrite(pristine, tmp_path / "b")
    assert written.stat().st_mode & 0o777 == 0o755


def test_an_existing_bundle_is_replaced_whole(folder, pristine):
    (folder / "engine.plan").write_bytes(b"of the old bundle")
    (folder / BODY).write_bytes(b"old")
    rewrite(pristine, folder)
    assert tree(folder) == tree(pristine)
    assert os.listdir(folder.parent) == [folder.name]


def test_an_empty_folder_is_used(pristine, tmp_path):
    (tmp_path / "b").mkdir()
    rewrite(pristine, tmp_path / "b")
    assert tree(tmp_path / "b") == tree(pristine)


def test_a_relative_name_is_used_and_the_current_folder_is_not(pristine, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="current folder"):
        rewrite(pristine, ".")
    rewrite(pristine, "b")
    assert tree(tmp_path / "here" / "b") == tree(pristine)


def test_another_folder_is_refused_and_untouched(pristine, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="other files") as caught:
        rewrite(pristine, tmp_path / "b")
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == {"b/thesis.txt": b"dear"}


def test_a_file_is_refused_as_folder_and_as_parent(pristine, tmp_path):
    (tmp_path / "file").write_text("x")
    for destination in (tmp_path / "file", tmp_path / "file" / "b", tmp_path / "file" / "b" / "c"):
        with pytest.raises(UsageError, match="file"):
            rewrite(pristine, destination)
    assert tree(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_full_disk_leaves_what_was_there(pristine, tmp_path, monkeypatch, existing, at):
    destination = tmp_path / "b"
    if existing:
        make_bundle(destination, seed=5)
    before = tree(tmp_path)
    written = []
    original = os.fsync

    def fail(descriptor):
        if len(written) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(descriptor)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EdgesegError, match="No space left") as caught:
        rewrite(pristine, destination)
    assert str(destination) in str(caught.value)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == (["b"] if existing else [])


def test_the_old_bundle_comes_back_where_the_new_one_cannot_be_put(pristine, tmp_path, monkeypatch):
    destination = make_bundle(tmp_path / "b", seed=5)
    before = tree(tmp_path)
    original = os.rename
    tried = []

    def rename(source, target):
        if Path(target) == destination and not tried:
            tried.append(source)
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(EdgesegError):
        rewrite(pristine, destination)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["b"]


def test_the_old_bundle_is_never_deleted_while_it_is_the_only_one(pristine, tmp_path, monkeypatch):
    destination = make_bundle(tmp_path / "b", seed=5)
    before = set(tree(tmp_path).values())
    original = os.rename

    def rename(source, target):
        if Path(target) == destination:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(EdgesegError) as caught:
        rewrite(pristine, destination)
    assert before <= set(tree(tmp_path).values())
    (rest,) = os.listdir(tmp_path)
    assert rest in str(caught.value)  # says where it lies


def test_a_link_to_a_bundle_keeps_its_target(pristine, tmp_path):
    target = make_bundle(tmp_path / "real", seed=5)
    before = tree(target)
    (tmp_path / "link").symlink_to("real")
    rewrite(pristine, tmp_path / "link")
    assert tree(target) == before
    assert tree(tmp_path / "link") == tree(pristine)


def test_a_path_that_cannot_be_looked_at_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="File name too long"):
        Bundle.open(tmp_path / ("a" * 300))

    def refuse(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        Bundle.open(tmp_path)
