"""Where a host is, what runs there first, and what ssh says where that does not come about."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeseg.errors import InputError, UsageError
from edgeseg.profiling.remote.reply import plain

__all__ = ["BEGIN", "NO_FOLDER", "Host", "refusal"]

# Longest host names, user names and addresses, and nothing that a shell or a ProxyCommand reads.
_HOST: Final = re.compile(
    r"(ssh://)?([A-Za-z0-9_][A-Za-z0-9_.+@-]{0,63}@)?"
    r"(\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?|[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252})"
)
_CONNECT_SECONDS: Final = 15
_FIXED: Final = {
    # First, so that no configuration file can weaken them.
    "StrictHostKeyChecking": "yes",
    "NoHostAuthenticationForLocalhost": "no",
    # A connection that others opened was checked by their rules.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "ConnectTimeout": str(_CONNECT_SECONDS),
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}
NO_FOLDER: Final = 93
# One line without backslashes and exclamation marks, so that every log-in shell passes it on. The
# shell outlives the Python that it waits for, whatever kills that, and removes the folder; it
# writes "Killed" to a connection that may be gone, and must outlive that too.
_SCRIPT: Final = (
    'umask 077; trap "" PIPE; n=$1; d=; '
    'clean() { [ -z "$d" ] || rm -rf -- "$d" || { sleep 1; rm -rf -- "$d"; } || '
    'echo "$n left 0"; }; '
    'trap clean EXIT; trap "exit 129" HUP; trap "exit 130" INT; trap "exit 143" TERM; '
    f'd=$(mktemp -d "${{TMPDIR:-/tmp}}/edgeseg.XXXXXXXXXX") || exit {NO_FOLDER}; '
    'case $4 in "~/"*) p=$HOME/${4#"~/"};; *) p=$4;; esac; '
    '"$p" -B -c "$3" "$n" "$2" "$d"; exit $?'
)
# The log-in folder is taken off the path: modules that lie there are none of ours.
BEGIN: Final = (
    "import sys;v=sys.version_info[:2];sys.path[:]=[p for p in sys.path if p];"
    'v<(3,10) and sys.exit(print(sys.argv[1],"old",list(v)));'
    "exec(sys.stdin.buffer.read(int(sys.argv[2])))"
)


@dataclass(frozen=True, slots=True)
class Host:
    """Where to measure, and how to get there.

    Raises:
        UsageError: a name that is none.
        InputError: there is no such configuration file.
    """

    name: str
    """``USER@HOST``, a name of ssh's configuration, or ``ssh://USER@HOST:PORT``."""
    config: Path | None = None
    """In place of the user's and the system's configuration of ssh."""
    python: str = "python3"
    """The host's; ``~/`` stands for the home folder there."""

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.name):
            raise UsageError(
                f"--host '{plain(self.name, 60)}' is no host; write USER@HOST, "
                "ssh://USER@HOST:PORT, or a name of your ssh configuration"
            )
        if not self.python or self.python.startswith("-") or not self.python.isprintable():
            raise UsageError(
                f"--remote-python '{plain(self.python, 60)}' is no program; name one, such as "
                "python3.11 or ~/venv/bin/python"
            )
        if self.config is not None and not self.config.is_file():
            raise InputError(f"--ssh-config '{self.config}' is not a file; name one that ssh reads")

    @property
    def by_hand(self) -> str:
        """What a user types to get there."""
        config = f"-F {shlex.quote(str(self.config))} " if self.config else ""
        return f"ssh {config}{self.name}"

    def command(self, program: str, nonce: str, length: int, *, ask: bool) -> list[str]:
        """Arguments of the local ``ssh``.

        Args:
            program: path of ssh.
            nonce: stands before every answer.
            length: bytes of the Python text at the head of the input.
            ask: whether ssh may ask for a password at the terminal.
        """
        remote = ["sh", "-c", _SCRIPT, "sh", nonce, str(length), BEGIN, self.python]
        options = {**_FIXED, "BatchMode": "no" if ask else "yes"}
        return [
            program,
            *(("-F", str(self.config)) if self.config else ()),
            *(part for key, value in options.items() for part in ("-o", f"{key}={value}")),
            "-T",
            "--",
            self.name,
            f"exec {shlex.join(remote)}",
        ]


def refusal(host: Host, said: str) -> str:
    """A sentence for what ssh said before it gave up."""
    name = host.name
    if "HOST IDENTIFICATION HAS CHANGED" in said or "REVOKED HOST KEY" in said:
        return (
            f"the key of '{name}' is not the one that is known here, so somebody may stand between "
            "you and it; ask whoever runs it, and only if the key was changed on purpose remove "
            "the old one with 'ssh-keygen -R'"
        )
    if "Host key verification failed" in said or "host key is known for" in said:
        return (
            f"the key of '{name}' is not known here; connect once with '{host.by_hand}', compare "
            "the fingerprint that it shows with the host's own, and accept it"
        )
    last = plain(said.strip().rpartition("\n")[2]) or "ssh said nothing"
    if "Permission denied" in said or "Too many authentication failures" in said:
        return f"'{name}' refuses the log-in ({last}); see that '{host.by_hand}' works"
    return f"'{name}' cannot be reached ({last}); see that '{host.by_hand}' works"
