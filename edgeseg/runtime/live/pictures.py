"""JPEG pictures for viewers, drawn in a thread of their own and dropped for those who are slow."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.opencv import opencv
from edgeseg.runtime.overlay import Painter, View
from edgeseg.runtime.safe import mark_missing, mark_safe
from edgeseg.runtime.shots import Shot

__all__ = ["MAX_VIEWERS", "Gallery", "Picture", "TooManyViewersError"]

MAX_VIEWERS: Final = 8
_PERIOD_S: Final = 1 / 15
_QUALITY: Final = 80
_SIDE: Final = 960
_EMPTY: Final = (270, 480, 3)

Painters = Callable[[View, float | None], Painter]


class TooManyViewersError(Exception):
    """As many viewers as are allowed watch already."""


class Picture:
    """What is to be shown next: a result, or a frame (or nothing) and the state."""

    def __init__(
        self, shot: Shot | None, image: npt.NDArray[np.uint8] | None, state: str, reason: str
    ) -> None:
        self.shot = shot
        self.image = image
        self.state = state
        self.reason = reason

    def draw(self, painter: Painter) -> npt.NDArray[np.uint8]:
        """uint8 BGR; what has no result says so, it never shows an old one."""
        if self.shot is not None:
            return self.shot.draw(painter)
        canvas = np.zeros(_EMPTY, np.uint8) if self.image is None else _fitted(self.image)
        if self.state in ("safe", "self_test_failed"):
            np.multiply(canvas, 0.6, out=canvas, casting="unsafe")
            return mark_safe(canvas, self.reason)
        return mark_missing(canvas, f"{self.state.upper()}: NO RESULT")


class _Variant:
    """One view at one threshold, drawn once for all who watch it."""

    def __init__(self, painter: Painter) -> None:
        self.painter = painter
        self.viewers = 0
        self.jpeg = b""
        self.number = 0


class Gallery:
    """Takes pictures from the loop without making it wait, and gives viewers the newest.

    Only the newest picture is kept; it is drawn for the variants that somebody watches, at most
    15 times a second.

    Args:
        painters: makes what draws a view at a threshold (``None``: the run's).
        limit: viewers at a time.
    """

    def __init__(self, painters: Painters, limit: int = MAX_VIEWERS) -> None:
        self._painters = painters
        self._limit = limit
        self._changed = threading.Condition()
        self._next: Picture | None = None
        self._newest: Picture | None = None
        self._variants: dict[tuple[View, float | None], _Variant] = {}
        self._closed = False
        self.viewers = 0
        self.refused = 0
        self.replaced = 0
        """Pictures that were never drawn, because a newer one came first."""
        self.failures = 0
        self._thread = threading.Thread(target=self._work, name="gallery", daemon=True)
        self._thread.start()

    def put(self, picture: Picture) -> None:
        """Show ``picture`` next."""
        with self._changed:
            self.replaced += self._next is not None and self.viewers > 0
            self._next = picture
            if self.viewers:
                self._changed.notify_all()

    @contextmanager
    def watch(self, view: View, threshold: float | None) -> Iterator[Iterator[bytes]]:
        """JPEGs of a view, newest first come; the iteration gives ``b""`` where none came for
        two seconds, and ends when the gallery closes.

        Raises:
            TooManyViewersError: there is no place.
        """
        key = (view, threshold)
        with self._changed:
            if self.viewers >= self._limit or self._closed:
                self.refused += 1
                raise TooManyViewersError
            variant = self._variants.get(key)
            if variant is None:
                variant = self._variants[key] = _Variant(self._painters(view, threshold))
            variant.viewers += 1
            self.viewers += 1
            if self._next is None:
                self._next = self._newest  # what is shown now, drawn for the one who comes
            self._changed.notify_all()
        try:
            yield self._pictures(variant)
        finally:
            with self._changed:
                self.viewers -= 1
                variant.viewers -= 1
                if not variant.viewers:
                    self._variants.pop(key, None)

    def close(self) -> None:
        """End the thread and every viewer's iteration; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(2.0)

    def _pictures(self, variant: _Variant) -> Iterator[bytes]:
        seen = 0
        while True:
            with self._changed:
                fresh = self._changed.wait_for(
                    lambda seen=seen: self._closed or variant.number != seen,  # type: ignore[misc]
                    timeout=2.0,
                )
                if self._closed:
                    return
                seen, jpeg = variant.number, variant.jpeg
            yield jpeg if fresh else b""

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._next is not None and self.viewers):
                    self._changed.wait()
                if self._closed:
                    return
                picture, self._next = self._next, None
                self._newest = picture
                variants = list(self._variants.values())
            start = time.monotonic()
            for variant in variants:
                jpeg = self._encode(picture, variant.painter) if picture is not None else b""
                if jpeg:
                    with self._changed:
                        variant.jpeg, variant.number = jpeg, variant.number + 1
                        self._changed.notify_all()
            rest = _PERIOD_S - (time.monotonic() - start)
            if rest > 0:
                time.sleep(rest)

    def _encode(self, picture: Picture, painter: Painter) -> bytes:
        cv2 = opencv()
        try:
            drawn = _fitted(picture.draw(painter))
            good, jpeg = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        except Exception:  # a picture less; the loop must not learn of it
            good = False
        if not good:
            self.failures += 1
            return b""
        return bytes(jpeg.tobytes())


def _fitted(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy of at most 960 pixels on its longer side."""
    height, width = image.shape[:2]
    factor = min(1.0, _SIDE / max(height, width))
    if factor == 1.0:
        return image.copy()
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    smaller: Any = opencv().resize(image, size, interpolation=opencv().INTER_AREA)
    out: npt.NDArray[np.uint8] = smaller
    return out
