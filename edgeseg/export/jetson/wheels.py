"""The wheels that a device needs for one version of Python, found by pip."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlparse

from edgeseg import __version__
from edgeseg.errors import InputError, MissingDependencyError
from edgeseg.export.jetson.boards import JetPack
from edgeseg.runtime.cache import cache_folder

__all__ = ["WheelSet", "find_wheels"]

_OLDEST_GLIBC: Final = 17


@dataclass(frozen=True, slots=True)
class WheelSet:
    """Wheels that install together, and what to ask pip for."""

    python: str
    """``3.10``."""
    paths: tuple[Path, ...]
    """By name; edgeseg's is among them, and pip's, which installs the others."""
    pins: tuple[str, ...]
    """``name==version`` of all but pip, for a requirements file."""


def find_wheels(pack: JetPack, own: Path, folder: Path | None) -> WheelSet:
    """Wheels for the Python of a JetPack, complete without the internet.

    Args:
        pack: tells Python, glibc and what is wanted beside edgeseg.
        own: edgeseg's wheel for aarch64.
        folder: where wheels lie; ``None``: they are downloaded into the user's cache, from which
            later calls take them.

    Raises:
        InputError: ``folder`` lacks one.
        MissingDependencyError: pip is missing, or the wheels can be neither found nor downloaded.
    """
    # pip itself: JetPack's Python comes without it.
    wanted = [f"edgeseg=={__version__}", *pack.requirements, "pip"]
    source = folder or cache_folder() / "wheels" / f"cp{pack.python.replace('.', '')}"
    found, said = _resolve(pack, [*wanted], own, source)
    if found is None and folder is not None:
        raise InputError(
            f"the wheels in '{folder}' do not suffice for Python {pack.python} on aarch64 "
            f"({said}); add what is missing, or leave --wheels out to have them downloaded"
        )
    if found is None:
        found = _download(pack, wanted, own, source)
    entries = sorted((_canonical(e), str(e["metadata"]["version"]), _path(e, own)) for e in found)
    return WheelSet(
        pack.python,
        tuple(path for _, _, path in entries),
        tuple(f"{name}=={version}" for name, version, _ in entries if name != "pip"),
    )


def _download(pack: JetPack, wanted: list[str], own: Path, cache: Path) -> list[dict[str, Any]]:
    cache.mkdir(parents=True, exist_ok=True)
    asked, had = list(wanted), 0
    said = ""
    # Again where a wheel wants something by a marker that is true there and false here.
    while len(asked) > had:
        had = len(asked)
        done = _pip(
            "download", "--dest", cache, "--find-links", own.parent, *_platform(pack), *asked
        )
        # pip copies edgeseg's own wheel too, and it would stay when the sources change.
        (cache / own.name).unlink(missing_ok=True)
        if done.returncode:
            said = _reason(done)
            break
        found, said = _resolve(pack, asked, own, cache)
        if found is not None:
            return found
    raise MissingDependencyError(
        f"the wheels for Python {pack.python} on aarch64 cannot be downloaded ({said}); connect "
        "this machine to a package index, or give a folder with the wheels by --wheels DIR"
    )


def _resolve(
    pack: JetPack, asked: list[str], own: Path, folder: Path
) -> tuple[list[dict[str, Any]] | None, str]:
    """What pip would install of ``folder`` on the device; or ``None`` and why not.

    Requirements that only hold on the device are added to ``asked``: pip judges markers by the
    Python that it runs in.
    """
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as temporary:
        report = Path(temporary) / "report.json"
        while True:
            done = _pip(
                *("install", "--dry-run", "--ignore-installed", "--no-index"),
                *("--target", Path(temporary) / "nowhere", "--report", report),
                *("--find-links", folder, "--find-links", own.parent),
                *_platform(pack),
                *asked,
            )
            if done.returncode:
                return None, _reason(done)
            found = list(json.loads(report.read_bytes())["install"])
            more = _only_there(found, pack.python)
            if not more:
                return found, ""
            asked += more


def _only_there(found: Sequence[dict[str, Any]], python: str) -> list[str]:
    """Requirements of the wheels that hold on the device and that nothing meets."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there = {
        **{k: str(v) for k, v in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "aarch64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    have = {_canonical(entry) for entry in found}
    missing = {}
    for entry in found:
        extras = ["", *entry.get("requested_extras", ())]
        for text in entry["metadata"].get("requires_dist", ()):
            needed = Requirement(text)
            name = canonicalize_name(needed.name)
            if name in have or needed.marker is None:
                continue
            if any(needed.marker.evaluate({**there, "extra": extra}) for extra in extras):
                missing[name] = f"{needed.name}{needed.specifier}"
    return list(missing.values())


def _platform(pack: JetPack) -> list[str]:
    minors = range(pack.glibc[1], _OLDEST_GLIBC - 1, -1)
    tags = [*(f"manylinux_2_{n}_aarch64" for n in minors), "manylinux2014_aarch64", "linux_aarch64"]
    named = [option for tag in tags for option in ("--platform", tag)]
    python = ("--implementation", "cp", "--python-version", pack.python)
    return [*named, *python, "--only-binary=:all:"]


def _pip(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise MissingDependencyError(
            "pip, which finds the wheels for the device, is not installed for this Python; run "
            f"'{sys.executable} -m ensurepip'"
        )
    return done


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    said = lines[-1].removeprefix("ERROR:") if lines else done.stderr
    return " ".join(said.split())[:200] or f"pip ended with {done.returncode}"


def _canonical(entry: dict[str, Any]) -> str:
    from packaging.utils import canonicalize_name

    return canonicalize_name(str(entry["metadata"]["name"]))


def _path(entry: dict[str, Any], own: Path) -> Path:
    if _canonical(entry) == "edgeseg":
        return own
    return Path(unquote(urlparse(str(entry["download_info"]["url"])).path))
