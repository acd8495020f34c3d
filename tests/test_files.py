"""Files and folders written whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from edgeseg.errors import InputError
from edgeseg.files import is_unfinished, replacing, write_folder_whole, write_text, write_whole


def test_a_file_takes_the_place_of_another_and_its_folder_is_made(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("bad")])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "kept"
    path.write_bytes(b"old")

    def interrupted():
        with replacing(path) as new:
            new.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_whole(tmp_path / "f", b"x")
    assert calls == ["sync", "rename"]
    write_whole(tmp_path / "f", b"y", sync=False)
    assert calls == ["sync", "rename", "rename"]


def test_the_umask_decides_who_may_read(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "file", b"")
        write_folder_whole(tmp_path / "folder", {"a": b""})
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["x" * 255, "\N{SNOWMAN}" * 85])
def test_names_as_long_as_a_file_system_takes(tmp_path, name):
    write_whole(tmp_path / name, b"long")
    assert os.listdir(tmp_path) == [name]


def test_permissions_stay_when_a_file_is_replaced(tmp_path):
    path = tmp_path / "f"
    path.touch()
    path.chmod(0o664)
    before = os.umask(0o077)
    try:
        write_whole(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("sub/real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "sub" / "real").read_bytes() == b"new"
    assert os.listdir(tmp_path / "sub") == ["real"]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(path, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert path.is_fifo()


def test_a_device_is_not_replaced():
    write_whole(Path(os.devnull), b"gone")
    assert Path(os.devnull).is_char_device()
    assert not list(Path(os.devnull).parent.glob(".null.*"))


def test_unfinished_files_are_known_by_their_names(tmp_path):
    with replacing(tmp_path / "void.engine.json") as new:
        assert is_unfinished(new.name)
    assert not any(map(is_unfinished, ("void.engine", ".engines.lock", "bundle.json", ".a.123")))


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "f"
    contents = [bytes([i]) * 100_000 for i in range(8)]
    threads = [
        threading.Thread(target=write_whole, args=(path, content), kwargs={"sync": False})
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["f"]


def test_text_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for below in ("a", "a/b"):
        with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name"):
            write_text(tmp_path / "file" / below, "")


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    write_folder_whole(target, {"a": b"1", "b": b"2"})
    write_folder_whole(target, {"a": b"3"})
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"a": b"3"}
    assert os.listdir(target.parent) == ["folder"]


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "real").mkdir()
    Path(tmp_path / "real" / "old").touch()
    (tmp_path / "link").symlink_to("real")
    write_folder_whole(tmp_path / "link", {"new": b""})
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    assert os.listdir(tmp_path / "real") == ["old"]
    assert os.listdir(tmp_path / "link") == ["new"]
