"""Signed bundles: what is not exactly what was signed is refused, and nothing else is read."""

import base64
import json
import os
import stat
import sys

import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, InputError, MissingDependencyError, UsageError
from edgeseg.files import replacing
from edgeseg.runtime import signing
from edgeseg.runtime.signing import SIGNATURE, sign_bundle, verified_copy, verify_bundle
from edgeseg.runtime.signing_keys import make_keys
from tests.bundles import make_bundle

pytest.importorskip("cryptography")

NAMES = ["body.onnx", "bundle.json", "head.safetensors", "notes.txt"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    private = tmp_path_factory.mktemp("keys") / "fleet.pem"
    public, _ = make_keys(private)
    return private, public


@pytest.fixture
def signed(tmp_path, keys):
    folder = make_bundle(tmp_path / "small")
    (folder / "notes.txt").write_text("not in the manifest, and signed all the same")
    sign_bundle(folder, keys[0])
    return folder


# --- keys


def test_a_private_key_is_for_its_owner_alone_and_never_overwritten(tmp_path, keys):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.name == "fleet.pub.pem"
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(private)
    assert (private.read_bytes(), public.read_bytes()) == before
    # The public one alone is enough to stop: its private one may lie elsewhere.
    (tmp_path / "a.pub.pem").write_text("x")
    with pytest.raises(UsageError, match=r"a\.pub\.pem"):
        make_keys(tmp_path / "a.pem")
    assert not (tmp_path / "a.pem").exists()


def test_a_folder_that_is_not_there_gets_no_key(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        make_keys(tmp_path / "nowhere" / "a.pem")


def test_a_passphrase_is_asked_for_and_checked(tmp_path):
    folder = make_bundle(tmp_path / "small")
    make_keys(tmp_path / "a.pem", b"open sesame")
    with pytest.raises(UsageError, match="needs a passphrase"):
        sign_bundle(folder, tmp_path / "a.pem")
    with pytest.raises(UsageError, match="is wrong"):
        sign_bundle(folder, tmp_path / "a.pem", b"sesame")
    assert not (folder / SIGNATURE).exists()
    sign_bundle(folder, tmp_path / "a.pem", b"open sesame")
    assert verify_bundle(folder, tmp_path / "a.pub.pem").files


def test_other_keys_are_refused(tmp_path, signed, keys):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    elliptic = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "ec.pem").write_bytes(
        elliptic.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    for path in (tmp_path / "ec.pem", keys[0], signed / "body.onnx"):
        with pytest.raises(ArtefactError, match="not a public ed25519 key"):
            verify_bundle(signed, path)
    with pytest.raises(ArtefactError, match="not a private ed25519 key"):
        sign_bundle(signed, keys[1])
    with pytest.raises(InputError, match="keygen"):
        verify_bundle(signed, tmp_path / "none.pem")


def test_without_cryptography_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingDependencyError, match=r"edgeseg\[sign\]"):
        make_keys(tmp_path / "a.pem")


# --- signatures


def test_a_signed_bundle_verifies_and_opens_as_before(signed, keys):
    found = verify_bundle(signed, keys[1])
    assert list(found.files) == NAMES
    assert found.uncovered == ()
    assert Bundle.open(signed).manifest.network == "erfnet"
    document = json.loads((signed / SIGNATURE).read_text())
    assert document["key_id"] == found.key_id
    assert len(found.key_id) == 16


def change(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")


def link(folder, name):
    path = folder / name
    path.rename(folder.parent / name)
    path.symlink_to(folder.parent / name)


def swap(folder, _):
    document = json.loads((folder / SIGNATURE).read_text())
    files = document["files"]
    first, second = sorted(files)[:2]
    files[first], files[second] = files[second], files[first]
    (folder / SIGNATURE).write_text(json.dumps(document))


def relabel(folder, _):
    """A list that fits the altered folder, with the signature of another."""
    (folder / "notes.txt").write_text("changed")
    document = json.loads((folder / SIGNATURE).read_text())
    document["files"]["notes.txt"] = signing._entry(b"changed")
    (folder / SIGNATURE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("alter", "name", "says"),
    [
        (change, "body.onnx", "'body.onnx' was changed"),
        (change, "bundle.json", "'bundle.json' was changed"),
        (change, "notes.txt", "'notes.txt' was changed"),
        (lambda f, n: (f / n).unlink(), "notes.txt", "'notes.txt' is missing"),
        (lambda f, n: (f / n).unlink(), "body.onnx", "'body.onnx' is missing"),
        (lambda f, n: (f / n).write_text("x"), "golden.safetensors", "'golden.safetensors' was ad"),
        (lambda f, n: (f / n).write_text("x"), ".hidden", "'.hidden' was added"),
        (lambda f, n: (f / n).mkdir(), "more", "'more', which is not a plain file"),
        (link, "head.safetensors", "'head.safetensors', which is not a plain file"),
        (lambda f, n: os.mkfifo(f / n), "pipe", "'pipe', which is not a plain file"),
        (lambda f, n: (f / n).unlink(), SIGNATURE, "is not signed"),
        (swap, "", "is wrong"),
        (relabel, "", "is wrong"),
    ],
)
def test_what_was_altered_is_refused(signed, keys, alter, name, says):
    alter(signed, name)
    with pytest.raises(ArtefactError) as caught:
        verify_bundle(signed, keys[1])
    assert says in str(caught.value)
    with pytest.raises(ArtefactError), verified_copy(signed, keys[1]):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"schema": "edgeseg.signature/2", "algorithm": "ed25519"}).encode(),
        json.dumps(
            {
                "schema": "edgeseg.signature/1",
                "algorithm": "ed25519",
                "key_id": "0" * 16,
                "signature": "",
                "files": {"body.onnx": {"bytes": 1, "sha256": "0"}},
            }
        ).encode(),
    ],
)
def test_a_signature_of_another_form_is_refused(signed, keys, content):
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(ArtefactError, match="not a signature that this version reads"):
        verify_bundle(signed, keys[1])


@pytest.mark.parametrize("text", ["", "!", base64.b64encode(b"x" * 64).decode()])
def test_a_wrong_signature_value_is_refused(signed, keys, text):
    document = json.loads((signed / SIGNATURE).read_text())
    (signed / SIGNATURE).write_text(json.dumps({**document, "signature": text}))
    with pytest.raises(ArtefactError, match="is wrong"):
        verify_bundle(signed, keys[1])


def test_another_key_is_named_and_does_not_help_by_its_name(tmp_path, signed, keys):
    public, other = make_keys(tmp_path / "other.pem")
    with pytest.raises(ArtefactError, match=f"is key {other}"):
        verify_bundle(signed, public)
    document = json.loads((signed / SIGNATURE).read_text())
    (signed / SIGNATURE).write_text(json.dumps({**document, "key_id": other}))
    with pytest.raises(ArtefactError, match="is wrong"):
        verify_bundle(signed, public)


def test_what_is_no_folder_is_said(tmp_path, keys):
    for path in (tmp_path / "nowhere", keys[1]):
        with pytest.raises(InputError, match="name the folder of one"):
            verify_bundle(path, keys[1])


def test_a_damaged_bundle_is_not_signed(tmp_path, keys):
    folder = make_bundle(tmp_path / "small")
    change(folder, "body.onnx")
    with pytest.raises(ArtefactError, match="damaged"):
        sign_bundle(folder, keys[0])
    assert not (folder / SIGNATURE).exists()


def test_signing_again_replaces_the_signature(signed, keys):
    (signed / "notes.txt").unlink()
    assert "notes.txt" not in sign_bundle(signed, keys[0]).files
    assert verify_bundle(signed, keys[1])


# --- what is read


def test_a_change_after_the_check_has_no_effect(signed, keys):
    before = (signed / "body.onnx").read_bytes()
    with verified_copy(signed, keys[1]) as (copy, _):
        change(signed, "body.onnx")
        assert (copy / "body.onnx").read_bytes() == before
        assert Bundle.open(copy).path == copy
        assert copy.name == signed.name
        assert stat.S_IMODE(copy.stat().st_mode) == 0o700
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    assert not copy.parent.exists()


def test_a_file_is_read_once_and_what_was_read_is_what_is_used(signed, keys, monkeypatch):
    """The bytes change under the reader: what is used is what was hashed."""
    read, seen = signing._read, []

    def reading(path, *limit):
        content = read(path, *limit)
        seen.append(path.name)
        if path.name == "body.onnx":
            change(signed, "body.onnx")
        return content

    monkeypatch.setattr(signing, "_read", reading)
    with verified_copy(signed, keys[1]) as (copy, _):
        Bundle.open(copy)
    assert sorted(seen) == sorted([SIGNATURE, *NAMES])


def test_engines_built_later_are_named_and_not_used(signed, keys):
    for name in ("void.engine", "void.engine.json", "tensorrt.timing", ".engines.lock"):
        (signed / name).write_bytes(b"from anybody")
    assert verify_bundle(signed, keys[1]).uncovered == ("void.engine", "void.engine.json")
    with verified_copy(signed, keys[1]) as (copy, _):
        assert sorted(p.name for p in copy.iterdir()) == NAMES
    # Signed, they are used; and then they too must stay what they are.
    sign_bundle(signed, keys[0])
    with verified_copy(signed, keys[1]) as (copy, found):
        assert (copy / "void.engine").is_file()
        assert not (copy / "tensorrt.timing").exists()
        assert found.uncovered == ()
    (signed / "tensorrt.timing").write_bytes(b"rewritten by the next build")
    verify_bundle(signed, keys[1])
    change(signed, "void.engine")
    with pytest.raises(ArtefactError, match=r"'void\.engine' was changed"):
        verify_bundle(signed, keys[1])


def test_the_users_cache_is_out_of_sight_where_it_holds_engines(signed, keys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/users/cache")
    with verified_copy(signed, keys[1], own_cache=True) as (copy, _):
        assert os.environ["XDG_CACHE_HOME"] == str(copy.parent)
    assert os.environ["XDG_CACHE_HOME"] == "/users/cache"
    with verified_copy(signed, keys[1]):
        assert os.environ["XDG_CACHE_HOME"] == "/users/cache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with verified_copy(signed, keys[1], own_cache=True):
        pass
    assert "XDG_CACHE_HOME" not in os.environ


# --- the commands


def test_keygen_sign_verify(edgeseg, tmp_path):
    folder = make_bundle(tmp_path / "small")
    key, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    code, out, _ = edgeseg("bundle", "keygen", key)
    assert code == 0
    assert "keep it secret" in out
    assert edgeseg("bundle", "verify", folder, "--key", public)[0] == 4
    code, out, _ = edgeseg("bundle", "sign", folder, "--key", key, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["schema"] == "edgeseg.bundle-sign/1"
    assert document["files"] == ["body.onnx", "bundle.json", "head.safetensors"]
    code, out, _ = edgeseg("bundle", "verify", folder, "--key", public)
    assert (code, document["key_id"] in out) == (0, True)
    (folder / "more.engine").write_bytes(b"x")
    code, out, _ = edgeseg("bundle", "verify", folder, "--key", public)
    assert (code, "not covered: more.engine" in out) == (0, True)
    change(folder, "body.onnx")
    code, out, err = edgeseg("bundle", "verify", folder, "--key", public)
    assert (code, out) == (4, "")
    assert err.count("\n") == 1


def test_a_passphrase_comes_from_a_file_or_the_environment(edgeseg, tmp_path, monkeypatch):
    folder, secret = make_bundle(tmp_path / "small"), tmp_path / "secret"
    secret.write_text("open sesame\r\nanything")
    key = tmp_path / "k.pem"
    assert edgeseg("bundle", "keygen", key, "--passphrase-file", secret)[0] == 0
    assert b"ENCRYPTED" in key.read_bytes()
    assert edgeseg("bundle", "sign", folder, "--key", key)[0] == 2
    monkeypatch.setenv("EDGESEG_KEY_PASSPHRASE", "open sesame")
    assert edgeseg("bundle", "sign", folder, "--key", key)[0] == 0
    secret.write_text("\n")
    code, _, err = edgeseg("bundle", "sign", folder, "--key", key, "--passphrase-file", secret)
    assert (code, "no passphrase in its first line" in err) == (2, True)
    code, _, err = edgeseg(
        "bundle", "sign", folder, "--key", key, "--passphrase-file", tmp_path / "none"
    )
    assert (code, "cannot be read" in err) == (7, True)


def test_a_run_that_requires_a_signature(edgeseg, signed, keys, tmp_path):
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    image = tmp_path / "frame.png"
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    assert cv2.imwrite(str(image), noise)
    # Where it is the bundle that is refused, the input has not been looked for.
    asked = ("run", signed, "--backend", "onnxruntime", "--threads", 1, "--json")
    required = ("--require-signature", keys[1])
    code, out, err = edgeseg(
        *asked, "--input", image, *required, "--events", tmp_path / "events.jsonl"
    )
    assert code == 0, err
    key = json.loads((signed / SIGNATURE).read_text())["key_id"]
    assert json.loads(out)["signed_by"] == key
    started = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert (started["event"], started["signed_by"]) == ("run_started", key)
    code, out, _ = edgeseg(*asked, "--input", image)
    assert "signed_by" not in json.loads(out)
    change(signed, "notes.txt")
    code, out, err = edgeseg(*asked, "--input", "nowhere.png", *required)
    assert (code, out) == (4, "")
    assert "'notes.txt' was changed" in err
    (signed / SIGNATURE).unlink()
    code, _, err = edgeseg(*asked, "--input", "nowhere.png", *required)
    assert (code, "not signed" in err) == (4, True)


def test_an_engine_that_is_being_built_beside_a_signed_bundle_is_no_change(signed, keys):
    with replacing(signed / "void.engine") as new:
        new.write_bytes(b"half")
        assert verify_bundle(signed, keys[1]).uncovered == ()
        with verified_copy(signed, keys[1]) as (copy, _):
            assert new.name not in os.listdir(copy)
    assert verify_bundle(signed, keys[1]).uncovered == ("void.engine",)
