"""``edgeseg weights``: what can be fetched, and fetching it from a server on this machine."""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgeseg import cli
from edgeseg.cli import weights as weights_module
from edgeseg.errors import InputError, UsageError
from edgeseg.networks import download
from edgeseg.networks.published import MIRROR, PUBLISHED, find_published, weights_folder
from edgeseg.networks.zoo import NETWORKS

CONTENT = bytes(range(256)) * 1200
NAME = "enet-void"
AS_PUBLISHED = dict(PUBLISHED)
ACCEPT = ("fetch", NAME, "--accept-terms")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Raw file contents, with the faults that the server's attributes ask for."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def do_CONNECT(self):
        self.server.requests.append(("CONNECT", self.path))
        self.send_error(503)

    def answer(self, *, head):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.command, asked))
        server.paths.append(self.path)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if (head and server.head_status) or server.status:
            self.send_error(server.head_status if head and server.head_status else server.status)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            span = server.span or f"bytes {start}-{total - 1}/{total}"
            self.send_header("Content-Range", span)
        if server.says_length:
            self.send_header("Content-Length", str(server.length or len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body[: server.cut])
            if server.stalls:
                server.released.wait(10)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(**faults):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.requests, server.paths = CONTENT, [], []
        server.ranges, server.says_length, server.stalls = True, True, False
        server.cut = server.length = server.span = None
        server.status = server.head_status = server.redirect = None
        server.released = threading.Event()
        server.address = f"http://127.0.0.1:{server.server_port}"
        vars(server).update(faults)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch, cache):
    """A server that has every published file, all with the same small content."""
    monkeypatch.delenv("https_proxy", raising=False)
    with serving() as server:
        monkeypatch.setenv(MIRROR, server.address)
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; the pin of one published file is that of what the server has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(MIRROR, raising=False)
    entry = dataclasses.replace(PUBLISHED[NAME], blob=blob_id(CONTENT))
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    return tmp_path / "edgeseg" / "weights"


@pytest.fixture
def program(monkeypatch, capfd):
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgeseg", "weights", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capfd.readouterr()
        return caught.value.code or 0, out, err

    return run


@pytest.fixture
def terminal(monkeypatch):
    """Lets a test type an answer."""
    monkeypatch.setattr(weights_module, "_is_terminal", lambda stream: True)
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def last_line(err):
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith("edgeseg: ")
    return line


def part_of(cache):
    return cache / f"{NAME}.pth.{blob_id(CONTENT)[:8]}.part"


def gets(server):
    return [asked for command, asked in server.requests if command == "GET"]


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


def leave_part(cache, content):
    cache.mkdir(parents=True)
    part_of(cache).write_bytes(content)


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
