"""The heartbeat that systemd's watchdog listens to, without a dependency.

The protocol is that of ``sd_notify(3)``: datagrams of ``KEY=VALUE`` lines to the socket that
``NOTIFY_SOCKET`` names.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Tells the service manager how the run is; does nothing where there is none.

    Args:
        address: of the datagram socket; ``@`` stands for Linux's abstract names.
        interval_s: within which the manager wants to hear :meth:`alive`; ``None``: it does not.
    """

    def __init__(self, address: str | None = None, interval_s: float | None = None) -> None:
        self.interval_s = interval_s if address else None
        self._address = address
        self._socket: socket.socket | None = None
        if address:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            except OSError:
                self._socket = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Notifier":
        """As ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` say."""
        env = os.environ if environment is None else environment
        address = env.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            address = None  # vsock and others that only virtual machines use
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        # The variables are inherited: another process's watchdog is not ours to feed.
        ours = not pid or pid == str(os.getpid())
        interval = int(usec) / 1e6 if usec.isdecimal() and int(usec) > 0 and ours else None
        return cls(address, interval)

    @property
    def active(self) -> bool:
        """Whether somebody listens."""
        return self._socket is not None

    def ready(self) -> None:
        """The first frame may come."""
        self._send("READY=1")

    def alive(self, status: str = "") -> None:
        """The heartbeat; ``status`` is a line for ``systemctl status``."""
        self._send("WATCHDOG=1" + (f"\nSTATUS={' '.join(status.split())}" if status else ""))

    def stopping(self) -> None:
        """The run ends in order."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        name = self._address
        target = "\0" + name[1:] if name.startswith("@") else name
        # A manager that is gone or busy must not cost a frame.
        with contextlib.suppress(OSError):
            # The status may name a file, and names need not be text.
            self._socket.sendto(text.encode(errors="replace"), target)
