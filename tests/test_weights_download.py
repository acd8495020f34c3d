"""Downloads of weights: those that broke off, wrong files, servers with faults, mirrors."""

import io
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from http.client import HTTPMessage

import pytest

from edgeseg.networks import download
from edgeseg.networks.published import MIRROR, PUBLISHED, find_published
from tests.test_cli import run_main
from tests.weights_server import (
    ACCEPT,
    CONTENT,
    NAME,
    gets,
    last_line,
    leave_part,
    part_of,
    pinned_cache,
    serving,
)


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


# --- downloads that go on


def test_a_broken_download_goes_on_where_it_stopped(server, program, cache):
    server.cut = 200_000
    code, out, err = program(*ACCEPT)
    assert (code, out) == (7, "")
    assert "broke off after 200,000 of 307,200 bytes" in last_line(err)
    assert os.listdir(cache) == [part_of(cache).name]
    server.cut = None
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == [None, "bytes=200000-"]
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT
    assert os.listdir(cache) == [f"{NAME}.pth"]


def test_a_server_that_stops_sending_is_given_up(server, program, cache, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT_S", 0.2)
    server.cut, server.stalls = 100_000, True
    code, _, err = program(*ACCEPT)
    assert code == 7
    assert re.search("broke off after .* of 307,200 bytes.*no answer within", last_line(err))
    assert CONTENT.startswith(part_of(cache).read_bytes())


def test_a_server_without_ranges_sends_all_again(server, program, cache):
    leave_part(cache, CONTENT[:1000])
    server.ranges = False
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == ["bytes=1000-"]
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "span", ["bytes 1200-307199/307200", "bytes */307200", "nonsense", "bytes 0-307199/307200"]
)
def test_a_server_that_sends_another_range_than_asked(server, program, cache, span):
    leave_part(cache, CONTENT[:1000])
    server.span = span
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == ["bytes=1000-", None]
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT


def test_a_part_that_is_wrong_is_started_anew(server, program, cache):
    leave_part(cache, b"x" * 1000)
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == ["bytes=1000-", None]
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_started_anew(server, program, cache):
    leave_part(cache, CONTENT + b"x")
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == [f"bytes={len(CONTENT) + 1}-", None]
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_download(server, program, cache):
    leave_part(cache, CONTENT)
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == []
    assert os.listdir(cache) == [f"{NAME}.pth"]


def test_an_interrupted_download_can_go_on(server, program, cache, monkeypatch):
    def interrupt(done, total):
        assert total == len(CONTENT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PUBLISHED[NAME].fetch(interrupt)
    begun = part_of(cache).read_bytes()
    assert 0 < len(begun) < len(CONTENT)
    assert program(*ACCEPT)[0] == 0
    assert gets(server) == [None, f"bytes={len(begun)}-"]


# --- wrong files


@pytest.mark.parametrize("content", [b"<html>log in</html>", CONTENT[:-1] + b"\0", b"x" * 99999])
def test_a_wrong_file_is_deleted(server, program, cache, content):
    server.content = content
    for _ in range(2):
        code, out, err = program(*ACCEPT)
        assert (code, out) == (4, "")
        assert "not the published file" in last_line(err)
        assert os.listdir(cache) == []


def test_a_wrong_file_in_the_cache_is_replaced(server, program, cache):
    cache.mkdir(parents=True)
    (cache / f"{NAME}.pth").write_bytes(b"old")
    assert program(*ACCEPT)[0] == 0
    assert (cache / f"{NAME}.pth").read_bytes() == CONTENT


def test_a_wrong_file_in_the_cache_is_gone_even_where_the_download_fails(server, program, cache):
    cache.mkdir(parents=True)
    (cache / f"{NAME}.pth").write_bytes(b"old")
    server.cut = 10
    assert program(*ACCEPT)[0] == 7
    assert os.listdir(cache) == [part_of(cache).name]


# --- servers with faults


def test_a_server_that_does_not_say_how_much_comes(server, program, cache):
    server.says_length = False
    code, _, err = program(*ACCEPT)
    assert code == 0
    assert "unknown" in err
    (cache / f"{NAME}.pth").unlink()
    # Without a length the end of a broken file is not noticed, but its content is.
    server.cut = 1000
    assert program(*ACCEPT)[0] == 4
    assert os.listdir(cache) == []


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_server_that_knows_no_head(server, program, status):
    server.head_status = status
    code, _, err = program(*ACCEPT)
    assert code == 0
    assert "unknown" in err


def test_what_is_too_large_by_its_length(server, program, cache):
    server.length = (512 << 20) + 1
    for server.head_status in (None, 405):
        code, _, err = program(*ACCEPT)
        assert code == 4
        assert "larger than 512 MiB" in last_line(err)
        assert not cache.exists() or os.listdir(cache) == []


def test_what_grows_too_large(server, program, cache, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 100_000)
    server.says_length = False
    code, _, err = program(*ACCEPT)
    assert code == 4
    assert "larger than" in last_line(err)
    assert os.listdir(cache) == []


@pytest.mark.parametrize(("status", "told"), [(404, "404.*not there"), (503, "503.*try again")])
@pytest.mark.parametrize("head", [None, 405])
def test_http_errors(server, program, cache, status, told, head):
    server.status, server.head_status = status, head
    code, out, err = program(*ACCEPT)
    assert (code, out) == (7, "")
    assert re.search(told, last_line(err))
    assert not (cache / f"{NAME}.pth").exists()


# --- networks, proxies, mirrors


def test_a_server_that_is_not_there(program, monkeypatch, cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv(MIRROR, f"http://localhost:{unused.getsockname()[1]}")
        code, out, err = program(*ACCEPT)
    assert (code, out) == (7, "")
    assert re.search(r"cannot be reached \(Connection refused\).*https_proxy", last_line(err))
    assert not cache.exists()


def test_a_name_that_does_not_resolve(program, monkeypatch):
    def offline(*arguments, **options):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    code, _, err = program(*ACCEPT)
    assert code == 7
    assert "raw.githubusercontent.com cannot be reached (Temporary failure" in last_line(err)


def test_something_that_does_not_speak_http(program, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"220 mail\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{listener.getsockname()[1]}")
        code, _, err = program(*ACCEPT)
        thread.join()
    assert code == 7
    assert "cannot be reached (220 mail" in last_line(err)


def test_the_proxy_of_the_environment_is_used(server, program, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", MIRROR):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("https_proxy", server.address)
    code, _, err = program(*ACCEPT)
    assert server.requests == [("CONNECT", "raw.githubusercontent.com:443")]
    assert code == 7
    assert "503" in last_line(err)


def test_this_machine_is_not_looked_for_behind_a_proxy(server, program, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert program(*ACCEPT)[0] == 0


def test_redirects_are_followed(server, program, monkeypatch):
    with serving(redirect=f"{server.address}/elsewhere") as first:
        monkeypatch.setenv(MIRROR, first.address)
        assert program(*ACCEPT)[0] == 0
    assert [command for command, _ in server.requests] == ["HEAD", "GET"]
    assert set(server.paths) == {"/elsewhere"}


@pytest.mark.parametrize("target", ["http://192.0.2.1/x", "ftp://127.0.0.1/x", "file:///etc/hosts"])
def test_redirects_to_what_is_not_encrypted_are_not_followed(server, program, cache, target):
    server.redirect = target
    code, _, err = program(*ACCEPT)
    assert code == 7
    assert re.search("302.*(without https|not allowed)", last_line(err))
    assert not cache.exists()


def test_https_is_not_left_for_http_not_even_on_this_machine():
    request = urllib.request.Request("https://mirror.test/x")
    with pytest.raises(urllib.error.HTTPError, match="without https") as caught:
        download._Redirects().redirect_request(
            request, io.BytesIO(), 302, "Found", HTTPMessage(), "http://127.0.0.1/x"
        )
    caught.value.close()


@pytest.mark.parametrize(
    "mirror",
    ["http://192.0.2.1", "http://mirror.test/x", "ftp://localhost", "file:///tmp", "nonsense",
     "https://", "https://[x", "https://a:b@c.test", "https://a.test/?q", "https://a.test:port"],
)  # fmt: skip
def test_a_mirror_that_is_none(program, monkeypatch, mirror):
    monkeypatch.setenv(MIRROR, mirror)
    for arguments in (["list"], ACCEPT):
        code, out, err = program(*arguments)
        assert (code, out) == (2, "")
        assert MIRROR in last_line(err)
        assert "a:b" not in err


@pytest.mark.parametrize(
    "mirror", ["https://mirror.test/raw/", "http://[::1]:80", "http://localhost"]
)
def test_a_mirror_stands_before_the_same_paths(monkeypatch, mirror):
    monkeypatch.setenv(MIRROR, mirror)
    entry = find_published("midenet-void")
    assert entry.address == (
        f"{mirror.rstrip('/')}/{entry.repository}/{entry.commit}/"
        "trained_models/distillation/midenet_distilled.pth"
    )
