"""Fixtures that several test files share."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data folder; the test skips where it is not there."""
    folder = Path(os.environ.get("EDGESEG_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "weights").is_dir():
        pytest.skip(f"the data folder '{folder}' is not on this machine (EDGESEG_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def forget_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets modules whose names begin so be imported anew, until the test ends.

    An import also writes the module into its package, where it would outlive the test beside the
    old one in ``sys.modules``; so both are put back.
    """

    def forget(*beginnings: str) -> None:
        for name in [m for m in sys.modules if m.startswith(beginnings)]:
            package, _, child = name.rpartition(".")
            holder = sys.modules.get(package)
            if holder is not None and child in vars(holder):
                monkeypatch.setattr(holder, child, vars(holder)[child])
            monkeypatch.delitem(sys.modules, name)

    return forget


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: small cases are quicker, and sums do not depend on the rest."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def edgeseg(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Calls the program in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        from edgeseg.cli import main

        monkeypatch.setattr(sys, "argv", ["edgeseg", *map(str, arguments)])
        code: int = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0  # type: ignore[assignment]
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call
