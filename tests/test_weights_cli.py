"""``edgeseg weights``: what can be fetched, on which terms, and where it is kept."""

import fcntl
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgeseg.cli import weights as weights_module
from edgeseg.errors import InputError, UsageError
from edgeseg.networks.published import MIRROR, PUBLISHED, find_published, weights_folder
from edgeseg.networks.zoo import NETWORKS
from tests.test_cli import run_main
from tests.weights_server import (
    ACCEPT,
    CONTENT,
    NAME,
    blob_id,
    gets,
    last_line,
    leave_part,
    part_of,
    pinned_cache,
    serving,
)

AS_PUBLISHED = dict(PUBLISHED)


@pytest.fixture
def server(monkeypatch, cache):
    """A server that has every published file, all with the same small content."""
    monkeypatch.delenv("https_proxy", raising=False)
    with serving() as server:
        monkeypatch.setenv(MIRROR, server.address)
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return pinned_cache(monkeypatch, tmp_path)


@pytest.fixture
def program(monkeypatch, capfd):
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
    return lambda *arguments: run_main(monkeypatch, capfd, "weights", *arguments)


@pytest.fixture
def terminal(monkeypatch):
    """Lets a test type an answer."""
    monkeypatch.setattr(weights_module, "_is_terminal", lambda stream: True)
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


# --- list


def test_the_list_has_every_network_with_terms_and_address(program):
    code, out, err = program("list", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "edgeseg.weights/1"
    rows = {row["name"]: row for row in document["weights"]}
    assert set(PUBLISHED) < set(rows)
    assert {row["network"] for row in rows.values()} == set(NETWORKS)
    for row in rows.values():
        assert row["terms"]
        if row["source"] == "published":
            assert row["address"].startswith("https://raw.githubusercontent.com/")
            assert (row["cached"], row["path"]) == (False, None)
        else:
            assert Path(row["path"]).is_file()


def test_the_list_for_people_does_not_break_addresses(program):
    code, out, _ = program("list")
    assert code == 0
    for entry in PUBLISHED.values():
        assert f"{entry.address}\n" in out
        assert f"{entry.name} ({entry.network}, not fetched)" in out
    assert "edgeseg-midenet (midenet, shipped)" in out


def test_what_was_fetched_is_listed_as_cached(server, program, cache):
    assert program(*ACCEPT)[0] == 0
    rows = {row["name"]: row for row in json.loads(program("list", "--json")[1])["weights"]}
    assert rows[NAME]["cached"] is True
    assert rows[NAME]["path"] == str(cache / f"{NAME}.pth")
    (cache / f"{NAME}.pth").write_bytes(CONTENT[:-1])
    rows = {row["name"]: row for row in json.loads(program("list", "--json")[1])["weights"]}
    assert rows[NAME]["cached"] is False


def test_names_and_pins_are_of_one_file_each():
    for entry in PUBLISHED.values():
        assert entry.network in NETWORKS
        assert re.fullmatch("[0-9a-f]{40}", entry.blob)
        assert re.fullmatch("[0-9a-f]{40}", entry.commit)
    assert len({entry.blob for entry in PUBLISHED.values()}) == len(PUBLISHED)
    assert len({entry.address for entry in PUBLISHED.values()}) == len(PUBLISHED)


@pytest.mark.parametrize("command", [[], ["list"], ["fetch"]])
def test_help(program, command):
    code, out, err = program(*command, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out or not command


def test_neither_listing_nor_fetching_needs_torch(server, cache):
    probe = (
        "import sys; sys.argv = ['edgeseg', 'weights', *sys.argv[1:]]\n"
        "import edgeseg.cli\n"
        "assert 'urllib.request' not in sys.modules\n"
        "try:\n edgeseg.cli.main()\n"
        "except SystemExit as end:\n code = end.code\n"
        "print(code or 0, [m for m in ('torch', 'numpy', 'cv2') if m in sys.modules])"
    )
    for arguments, code in ((["list"], 0), (["fetch", "midenet-void", "--accept-terms"], 4)):
        result = subprocess.run(
            [sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=True
        )
        assert result.stdout.splitlines()[-1] == f"{code} []"


# --- fetch


def test_fetching_prints_the_path_and_says_how_to_use_it(server, program, cache):
    code, out, err = program(*ACCEPT)
    path = cache / f"{NAME}.pth"
    assert (code, out) == (0, f"{path}\n")
    assert path.read_bytes() == CONTENT
    assert os.listdir(cache) == [path.name]
    entry = PUBLISHED[NAME]
    assert entry.terms in err
    assert "0.3 MB" in err
    assert "--weights" in last_line(err)
    assert set(server.paths) == {f"/{entry.repository}/{entry.commit}/{entry.path}"}


def test_a_verified_file_is_not_downloaded_again_and_not_asked_about(server, program, cache):
    assert program(*ACCEPT)[0] == 0
    server.requests.clear()
    code, out, err = program("fetch", NAME)
    assert (code, out) == (0, f"{cache / NAME}.pth\n")
    assert "already" in last_line(err)
    assert server.requests == []


def test_json(server, program, cache):
    for downloaded in (True, False):
        code, out, _ = program(*ACCEPT, "--json")
        assert code == 0
        entry = PUBLISHED[NAME]
        assert json.loads(out) == {
            "schema": "edgeseg.weights/1",
            "name": NAME,
            "network": "enet",
            "terms": entry.terms,
            "address": entry.address,
            "git_blob": blob_id(CONTENT),
            "size_bytes": len(CONTENT),
            "path": str(cache / f"{NAME}.pth"),
            "downloaded": downloaded,
        }


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_whoever_accepts_the_terms_gets_the_file(server, program, terminal, cache, answer):
    terminal(answer)
    code, out, err = program("fetch", NAME)
    assert (code, out) == (0, f"{cache / NAME}.pth\n")
    assert err.count("[y/N]") == 1
    assert err.index(PUBLISHED[NAME].terms) < err.index("[y/N]")
    assert err.index("0.3 MB") < err.index("[y/N]")


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_whoever_does_not_accept_the_terms_gets_nothing(server, program, terminal, cache, answer):
    terminal(answer)
    code, out, err = program("fetch", NAME)
    assert (code, out) == (2, "")
    assert "not accepted" in err
    assert not cache.exists()
    assert gets(server) == []


def test_without_a_terminal_the_terms_need_the_option(server, program, cache):
    code, out, err = program("fetch", NAME)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(r"Cityscapes.*--accept-terms", last_line(err))
    assert server.requests == []


@pytest.mark.parametrize("name", ["unet", "", "../enet-void", "ENET-VOID"])
def test_an_unknown_name(program, name):
    code, out, err = program("fetch", name, "--accept-terms")
    assert (code, out) == (2, "")
    assert "erfnet-cityscapes, erfnet-void" in last_line(err)


def test_unknown_names_raise_in_the_api_too():
    with pytest.raises(UsageError, match="midenet-void"):
        find_published("midenet")


@pytest.mark.data
@pytest.mark.parametrize("name", ["enet-void", "midenet-void"])
def test_pins_are_those_of_the_published_files_and_weights_can_be_used(
    server, program, cache, shared_data, monkeypatch, name
):
    copy = shared_data / "weights" / f"{name.replace('-', '_')}20.pth"
    server.content = copy.read_bytes()
    monkeypatch.setitem(PUBLISHED, name, AS_PUBLISHED[name])
    code, out, _ = program("fetch", name, "--accept-terms")
    assert code == 0
    pytest.importorskip("torch", reason="reading checkpoints needs torch")
    from edgeseg.networks.checkpoints import load_network

    network = load_network(PUBLISHED[name].network, out.strip())
    assert network.provenance["weights_name"] == name


# --- where it is kept


def test_a_cache_that_cannot_be_written(server, program, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code, _, err = program(*ACCEPT)
    assert code == 7
    assert re.search("cannot be written.*XDG_CACHE_HOME", last_line(err))


def test_a_full_disk(server, program, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = program(*ACCEPT)
    assert code == 7
    assert "No space left" in last_line(err)
    assert not (cache / f"{NAME}.pth").exists()


def test_no_home_folder(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        weights_folder()


def test_two_at_once_do_not_mix(server, program, cache):
    leave_part(cache, b"")
    with part_of(cache).open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, err = program(*ACCEPT)
    assert code == 7
    assert "another process" in last_line(err)
    assert part_of(cache).exists()
