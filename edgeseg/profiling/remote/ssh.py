"""One command on a host through the system's ``ssh``, its input, its answers and its end."""

import contextlib
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO, Any, Final

from edgeseg.errors import InputError, MissingDependencyError
from edgeseg.profiling.remote.host import NO_FOLDER, Host, refusal
from edgeseg.profiling.remote.reply import plain, read_json, unbelievable

__all__ = ["Connection"]

_ANSWER_SECONDS: Final = 60
"""Until the host's Python answers, where nobody has to type a password."""
_SILENCE_SECONDS: Final = 1800
"""An engine may be built for many minutes on a small board."""
_GOODBYE_SECONDS: Final = 15
_MAX_BYTES: Final = 16 << 20
_MAX_LINE: Final = 4 << 20
_TAIL: Final = 8192


class Connection:
    """A started command; as a context manager it ends with everything removed on the host.

    Args:
        host: where.
        program: Python text that runs there, with the nonce, its own length and a new folder as
            arguments.

    Raises:
        MissingDependencyError: there is no ssh here.
    """

    def __init__(self, host: Host, program: bytes) -> None:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise MissingDependencyError(
                "--host needs the program 'ssh', which is not installed; install the OpenSSH client"
            )
        self._host, self._nonce = host, secrets.token_hex(8)
        self._ask = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
        command = host.command(ssh, self._nonce, len(program), ask=self._ask)
        # Ctrl-C reaches the whole foreground: ssh must live on until the host has cleaned up.
        with _interrupts_ignored():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        self._lines: queue.Queue[str | ValueError | None] = queue.Queue()
        self._tail = b""
        self._begun = False
        self._left = False
        self._readers = [
            threading.Thread(target=target, daemon=True)
            for target in (self._read_answers, self._read_messages)
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._write(program)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def left_behind(self) -> bool:
        """Whether the host could not remove the folder; known once closed."""
        return self._left

    def send(self, header: bytes, file: IO[bytes], progress: Callable[[int], None]) -> None:
        """A line, then a whole file; ``progress`` is told the bytes sent."""
        self._write(header + b"\n")
        done = 0
        while block := file.read(1 << 16):
            self._write(block)
            done += len(block)
            progress(done)

    def receive(self) -> tuple[str, Any]:
        """The next answer: its kind and its value.

        Raises:
            InputError: the host cannot be reached, refuses, is lost or answers nonsense.
            MissingDependencyError: it has no such Python, or too old a one.
        """
        patience = _SILENCE_SECONDS if self._begun or self._ask else _ANSWER_SECONDS
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            raise InputError(
                f"'{self._host.name}' has said nothing for {patience} s; see what it does, and try "
                "again"
            ) from None
        if line is None:
            raise self._reason()
        if isinstance(line, ValueError):
            raise unbelievable(self._host.name, line)
        kind, _, text = line.partition(" ")
        try:
            value = read_json(text)
        except ValueError as error:
            raise unbelievable(self._host.name, error) from None
        if kind == "old":
            raise MissingDependencyError(
                f"'{self._host.python}' on '{self._host.name}' is older than 3.10; install a newer "
                "one there and name it with --remote-python"
            )
        self._begun = True
        return kind, value

    def close(self) -> None:
        """End the input, which ends what runs there, and wait until it is gone."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            # Before the first answer nothing is there that the host does not remove by itself, and
            # ssh may be waiting for a password.
            self._process.wait(_GOODBYE_SECONDS if self._begun else 0.5)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._kill()
        for reader in self._readers:
            reader.join(1)
            if reader.is_alive():
                return  # a process that ssh started holds the pipe; it is closed when that ends
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _kill(self) -> None:
        # ssh gives the terminal its echo back where it can.
        self._process.terminate()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._stdin.fileno(), view) :]
        except BrokenPipeError:
            return  # the next answer tells why

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        buffer, total = bytearray(), 0
        begin = f"{self._nonce} ".encode()
        while block := self._process.stdout.read(1 << 16):
            total += len(block)
            *lines, rest = (buffer + block).split(b"\n")
            buffer = bytearray(rest)
            if total > _MAX_BYTES or len(buffer) > _MAX_LINE:
                # From here on ssh can only be ended: nobody reads it.
                self._lines.put(ValueError("far more than a profile needs"))
                self._process.terminate()
                return
            for line in lines:
                # A log-in shell may have left a line unfinished.
                _, found, answer = line.partition(begin)
                if found:
                    text = answer.decode("ascii", "replace")
                    if text.startswith("left "):
                        self._left = True
                    else:
                        self._lines.put(text)
        self._lines.put(None)

    def _read_messages(self) -> None:
        assert self._process.stderr is not None
        while block := self._process.stderr.read(4096):
            self._tail = (self._tail + block)[-_TAIL:]

    def _reason(self) -> InputError | MissingDependencyError:
        """Why there is no answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Its status says more than that of one that was ended from here.
            self._process.wait(_GOODBYE_SECONDS)
        self.close()
        status, name = self._process.returncode, self._host.name
        said = self._tail.decode(errors="replace")
        if self._begun and (status == 255 or status < 0):
            return InputError(
                f"the connection to '{name}' was lost; what was copied there is removed as soon as "
                "the host notices; try again"
            )
        if status == 255 or status < 0:
            return InputError(refusal(self._host, said))
        last = plain(said.strip().rpartition("\n")[2])
        if status == NO_FOLDER:
            return InputError(f"no temporary folder can be made on '{name}' ({last}); see why")
        if status in (1, 126, 127) and not self._begun:
            return MissingDependencyError(
                f"'{plain(self._host.python, 60)}' on '{name}' cannot be run as Python 3.10 or "
                f"later ({last}); install one there, or name it with --remote-python"
            )
        cause = f"status {status}"
        if status > 128:
            with contextlib.suppress(ValueError):
                cause = signal.Signals(status - 128).name
        return InputError(
            f"what runs on '{name}' ended without a result ({cause}"
            + (f"; {last}" if last else "")
            + "); see whether it has memory enough, or try another --backend"
        )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What is started meanwhile ignores Ctrl-C for good; only the main thread can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
