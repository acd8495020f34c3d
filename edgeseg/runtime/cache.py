"""Small facts about this machine that are dear to find out, kept per user between runs.

Under ``$XDG_CACHE_HOME/edgeseg`` (``~/.cache/edgeseg``). Whatever cannot be read, is damaged or
answers another question is ignored: the worst that a bad cache does is to cost the time again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgeseg.files import write_whole

__all__ = ["cache_folder", "recall", "remember"]

_MAX_BYTES: Final = 1 << 16


def cache_folder() -> Path:
    """Where the cache lies; the folder may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "edgeseg"


def recall(kind: str, question: Mapping[str, Any]) -> Any:
    """The answer remembered for ``question``, or ``None``."""
    try:
        path = _path(kind, question)
        if path.stat().st_size > _MAX_BYTES:
            return None
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError, RecursionError):
        return None
    # The question is stored in full: a file renamed, copied from elsewhere or hit by a
    # collision is noticed.
    if not isinstance(document, dict) or document.get("question") != _plain(question):
        return None
    return document.get("answer")


def remember(kind: str, question: Mapping[str, Any], answer: Any) -> None:
    """Keep ``answer`` (anything JSON can hold); a cache that cannot be written is no error."""
    text = json.dumps({"question": _plain(question), "answer": answer}, indent=1)
    with contextlib.suppress(OSError, RuntimeError):
        # A start does not wait for the disk: an answer that is lost is found out again.
        write_whole(_path(kind, question), text.encode(), sync=False)


def _path(kind: str, question: Mapping[str, Any]) -> Path:
    text = json.dumps(_plain(question), sort_keys=True)
    return cache_folder() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _plain(question: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(question)))
