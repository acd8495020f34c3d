"""Making and reading pages of ``edgeseg report``, and a document that it takes."""

import json
from html.parser import HTMLParser

__all__ = ["HOSTILE", "Reader", "made_page", "profile", "put"]

HOSTILE = "<script>alert(1)</script><img src=//x onerror=alert(2)>\"'&"


def made_page(program, folder, path, *options):
    """The page of a folder, and what was said on stderr."""
    code, _, err = program(folder, "-o", path, *options)
    assert code == 0, err
    return path.read_text(encoding="utf-8"), err


class Reader(HTMLParser):
    """Tags and attributes of a page, and its text by section."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sections, self.at, self.open = [], {}, None, []
        self.feed(page)
        assert self.open == [], self.open

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "br", "img"):
            self.open.append(name)
        if name == "section":
            self.at = dict(attributes)["id"]

    def handle_endtag(self, name):
        opened = self.open.pop()
        assert opened == name, (opened, name)

    def handle_data(self, text):
        if self.at is not None:
            self.sections[self.at] = self.sections.get(self.at, "") + text


def put(folder, name, document):
    folder.mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / name).write_text(text, encoding="utf-8")


def profile(**row):
    """A document of one measured row."""
    plain = {
        "network": "enet", "precision": "int8", "size": "64x128", "scorer": "void",
        "kind": "measured", "backend": "openvino", "threads": 2, "params": 10, "macs": 1e9,
        "file_bytes": 100, "latency_ms": {"p50": 10.0, "p90": 11, "p99": 12, "max": 13},
        "stages_ms": {}, "fps": 99, "budget_ms": 20, "within_budget": True,
        "verdict": "comparable", "reasons": [],
    }  # fmt: skip
    return {
        "schema": "edgeseg.profile/1", "device": "cpu", "title": "a processor", "mode": None,
        "kind": "measured", "unconfirmed": [], "results": [plain | row],
    }  # fmt: skip
