"""A host on this machine that can be logged in to: an sshd on loopback."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Server", "free_port", "make_key", "serving"]

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
# What a host need not have. Whatever else is installed here, the agent must do without.
ABSENT = ("typer", "rich", "torch", "onnx", "cv2", "safetensors", "PIL")


@dataclass
class Server:
    """A running sshd, and a host that can be logged in to by a configuration file."""

    folder: Path
    port: int

    @property
    def scratch(self) -> Path:
        """Where the host makes temporary folders."""
        return self.folder / "scratch"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def config(self, name: str = "config", **changes: str) -> Path:
        """A configuration of ssh in which ``there`` is this host."""
        options = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        path = self.folder / name
        path.write_text("Host there\n" + "".join(f"  {k} {v}\n" for k, v in options.items()))
        return path

    def python(self, name: str, text: str) -> Path:
        """A program for ``--remote-python``; arguments are -B -c TEXT NONCE LENGTH FOLDER."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def left(self) -> list[str]:
        """What a run left behind."""
        found = [p.name for folder in (self.scratch, self.home) for p in folder.iterdir()]
        return [name for name in found if name != ".bashrc"]

    def wait_until_clean(self) -> None:
        deadline = time.monotonic() + 30
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.left() == [], self.left()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    """A new key; the public half without its comment."""
    command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    subprocess.run(command, check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """An sshd on loopback whose files are in ``folder``; the test skips where there is none."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd or no ssh on this machine (OpenSSH)")
    found = Server(folder, free_port())
    for part in (found.scratch, found.home):
        part.mkdir()
    # What the log-in shell says is no answer, and must not spoil one.
    noise = "echo welcome; echo 0123456789abcdef result {}; printf unfinished; echo careful >&2\n"
    (found.home / ".bashrc").write_text(noise)
    public = make_key(folder / "host_key")
    (folder / "authorized_keys").write_text(make_key(folder / "key") + "\n")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {public}\n")
    block = folder / "site"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n"
    )
    found.python("python", f'PYTHONPATH={block} exec {sys.executable} "$@"')
    settings = {
        "Port": found.port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "SetEnv": f"TMPDIR={found.scratch} HOME={found.home} OMP_NUM_THREADS=1",
    }
    (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
    made = Path("/run/sshd")
    own = os.geteuid() == 0 and not made.exists()
    if own:  # what the service's unit does; sshd of root does not start without it
        made.mkdir(mode=0o755)
    log = (folder / "log").open("w+")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_for(found.port, process, folder / "log")
        yield found
    finally:
        process.terminate()
        process.wait()
        log.close()
        if own:
            made.rmdir()


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.skip("sshd does not listen")
