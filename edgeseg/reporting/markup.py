"""HTML and SVG from nested calls; text that is not :class:`Html` is escaped, whoever wrote it."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

__all__ = [
    "UNKNOWN",
    "Content",
    "Html",
    "count",
    "counted",
    "details",
    "join",
    "number",
    "paragraph",
    "percent",
    "table",
    "tag",
]


UNKNOWN: Final = "\u2013"
"""An en dash, for what is not known."""


class Html(str):
    """Markup that is put into a page as it is."""

    __slots__ = ()


Content = str | Iterable["Content"]
"""Text (escaped), :class:`Html` (not), or a sequence of these."""

_VOID: Final = frozenset(("br", "col", "img", "meta"))


def tag(name: str, *content: Content, **attributes: object) -> Html:
    """An element. ``class_`` is ``class``, other underscores are hyphens; ``None`` and ``False``
    leave an attribute out, ``True`` is one without a value.

    >>> tag("p", "1 < 2", tag("br"), class_="note")
    '<p class="note">1 &lt; 2<br></p>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{escape(_text(value))}"')
    opening = "".join([*parts, ">"])
    return Html(opening) if name in _VOID else Html(f"{opening}{join(*content)}</{name}>")


def join(*content: Content) -> Html:
    """Everything after each other."""
    parts = []
    for part in content:
        if isinstance(part, Html):
            parts.append(str(part))
        elif isinstance(part, str):
            parts.append(escape(part, quote=False))
        else:
            parts.append(join(*part))
    return Html("".join(parts))


def paragraph(*content: Content, class_: str | None = None) -> Html:
    """A ``<p>``."""
    return tag("p", *content, class_=class_)


def table(
    caption: str,
    heads: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    left: int = 1,
    classes: Sequence[str | None] = (),
) -> Html:
    """A table in a region of its own, which scrolls where it is wider than the page.

    Args:
        caption: what it shows; also the region's name for a screen reader.
        heads: of the columns.
        rows: cells; the first of a row is its head.
        left: how many columns hold text; the others, figures, are set to the right.
        classes: of the rows.
    """
    lines = []
    for index, row in enumerate(rows):
        cells = [tag("th", row[0], scope="row")]
        cells += [
            tag("td", c, class_=None if i < left else "r") for i, c in list(enumerate(row))[1:]
        ]
        lines.append(tag("tr", *cells, class_=classes[index] if index < len(classes) else None))
    head = [
        tag("th", c, scope="col", class_=None if i < left else "r") for i, c in enumerate(heads)
    ]
    inner = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *lines)
    )
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def details(summary: Content, *content: Content) -> Html:
    """What is shown, and printed, when somebody opens it."""
    return tag("details", tag("summary", summary), *content)


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent; a dash for what is not known."""
    if value is None:
        return UNKNOWN
    if value and abs(value) < 10 ** (digits - 1):
        text = f"{value:.{digits}g}"
        return text if "e" not in text else f"{value:.6f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}"


def count(value: float | None) -> str:
    """A whole number, its thousands parted."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Two decimals, without the sign."""
    return UNKNOWN if value is None else f"{value:.2f}"


def counted(number_of: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
