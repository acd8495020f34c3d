"""Pictures for people: class colours and the heat of the score over the frame."""

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.images import colormap
from edgeseg.runtime.opencv import opencv
from edgeseg.scoring.scorers import score_range

__all__ = ["VIEWS", "HeatScale", "Painter", "View"]

View = Literal["overlay", "classes", "score", "both"]
VIEWS: Final[tuple[View, ...]] = ("overlay", "classes", "score", "both")

_MAX_SIDE: Final = 1280
_MAX_SIDE_OF_TWO: Final = 960
_CLASS_OPACITY: Final = 0.45
_HEAT_OPACITY: Final = 0.85
# Where the threshold lies on the scale of 0 to 255: a good third of the colours is left for what
# is calm, so that structure shows, and the bright ones for what is not.
_AT_THRESHOLD: Final = 110


class HeatScale:
    """Maps scores to 0..255: the low end to 0, the threshold to 110, the top to 255. Wherever the
    threshold lies, what passes it has 110 or more, and nothing else has.

    The ends of msp, void and entropy are those of their range. MaxLogit and energy have none:
    theirs follow the 1st and 99.9th percentile seen so far and only ever widen, so that a video
    does not flicker.
    """

    def __init__(self, scorer: str, num_known: int, threshold: float | None) -> None:
        low, high = score_range(scorer, num_known)
        self._bounded = scorer in ("msp", "void", "entropy")
        self.low, self.high = (low, high) if self._bounded else (np.inf, -np.inf)
        self.threshold = threshold
        self._table: npt.NDArray[np.uint8] | None = None

    def apply(self, score: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Heat of ``score`` (float16 or float32, any shape), uint8 of its shape."""
        half = np.ascontiguousarray(score, np.float16)
        if not self._bounded:
            self._widen(half)
        if self._table is None:
            self._table = self._make_table()
        # 65536 entries answer for every float16 there is.
        heat: npt.NDArray[np.uint8] = self._table[half.view(np.uint16)]
        return heat

    def describe(self) -> str:
        """The mapping in words, for the pictures' metadata."""
        if self.threshold is None:
            return f"0 = {self.low:.6g}, 255 = {self.high:.6g}, linear"
        if self.threshold <= self.low:
            return (
                f"{_AT_THRESHOLD} = {self.low:.6g}, 255 = {self.high:.6g}, linear; less is below "
                f"threshold {self.threshold:.6g}"
            )
        reached = self.threshold < self.high
        return f"0 = {self.low:.6g}, {_AT_THRESHOLD} = threshold {self.threshold:.6g}, " + (
            f"255 = {self.high:.6g}, linear between" if reached else "linear; 255 = more"
        )

    def _widen(self, half: npt.NDArray[np.float16]) -> None:
        sample = half.ravel()[:: max(1, half.size // 8192)].astype(np.float32)
        low, high = np.percentile(sample, (1, 99.9))
        if self.threshold is not None:
            high = max(high, self.threshold)
        if low < self.low or high > self.high:
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
            self._table = None

    def _make_table(self) -> npt.NDArray[np.uint8]:
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
        values = np.nan_to_num(values, nan=np.inf)  # the most anomalous, were there any
        low, high = self.low, max(self.high, self.low + 1e-6)
        if self.threshold is None:
            return np.interp(values, [low, high], [0, 255]).round().astype(np.uint8)
        points: list[float]
        if self.threshold <= low:
            points, levels = [low, high], [_AT_THRESHOLD, 255]
        else:
            # A threshold beyond the top keeps the place that it has below it.
            high = max(high, np.nextafter(self.threshold, np.inf))
            points, levels = [low, self.threshold, high], [0, _AT_THRESHOLD, 255]
        heat = np.interp(values, points, levels).round()
        # Exactly what passes the threshold reaches its level: rounding must not add to it.
        passes = values.astype(np.float64) >= self.threshold
        limit = np.where(
            passes, np.maximum(heat, _AT_THRESHOLD), np.minimum(heat, _AT_THRESHOLD - 1)
        )
        return limit.astype(np.uint8)


class Painter:
    """Draws a frame's result.

    Args:
        palette: RGB per class, ``[N, 3]``.
        scale: of the score.
        view: ``overlay`` (classes, and heat where the score passes the threshold), ``classes``,
            ``score`` (heat over the grey frame), ``both`` (overlay and score side by side).
        caption: what made the picture; a line at its top.
    """

    def __init__(
        self, palette: npt.ArrayLike, scale: HeatScale, view: View, caption: str = ""
    ) -> None:
        self._bgr = np.zeros((256, 1, 3), np.uint8)
        colours = np.asarray(palette, np.uint8)
        self._bgr[: len(colours), 0] = colours[:, ::-1]
        self._inferno = colormap("INFERNO")[:, ::-1].reshape(256, 1, 3).copy()
        # Over class colours a scale that starts black would only darken: this one runs from
        # orange to white.
        self._alarm = colormap("HOT")[:, ::-1].reshape(256, 1, 3).copy()
        self.scale = scale
        self.view = view
        self._caption = caption

    def draw(
        self,
        image: npt.NDArray[np.uint8],
        class_map: npt.NDArray[np.uint8],
        score: npt.NDArray[Any],
        note: str = "",
    ) -> npt.NDArray[np.uint8]:
        """A picture, uint8 BGR with even sides, at the frame's size or 1280 on its longer side
        (twice 960 for ``both``).

        Args:
            image: the frame, ``[h, w, 3]`` BGR, any size.
            class_map: ``[H, W]``.
            score: ``[H, W]``.
            note: added to the caption.
        """
        cv2 = opencv()
        side = _MAX_SIDE_OF_TWO if self.view == "both" else _MAX_SIDE
        height, width = _display_size(image.shape[0], image.shape[1], side)
        if image.shape[:2] != (height, width):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        heat = cv2.resize(self.scale.apply(score), (width, height), interpolation=cv2.INTER_LINEAR)
        if self.view == "classes":
            picture = self._with_classes(image, class_map)
        elif self.view == "score":
            picture = self._with_heat(image, heat)
        else:
            picture = self._with_alarm(self._with_classes(image, class_map), heat)
            if self.view == "both":
                picture = np.hstack([picture, self._with_heat(image, heat)])
        return _captioned(picture, " | ".join(filter(None, (self._caption, note))))

    def _with_classes(
        self, image: npt.NDArray[np.uint8], class_map: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        cv2 = opencv()
        height, width = image.shape[:2]
        classes = cv2.resize(class_map, (width, height), interpolation=cv2.INTER_NEAREST)
        colours = cv2.applyColorMap(classes, self._bgr)
        return _array(cv2.addWeighted(image, 1 - _CLASS_OPACITY, colours, _CLASS_OPACITY, 0))

    def _with_heat(
        self, image: npt.NDArray[np.uint8], heat: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        cv2 = opencv()
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        colours = cv2.applyColorMap(heat, self._inferno)
        return _array(cv2.addWeighted(grey, 1 - _HEAT_OPACITY, colours, _HEAT_OPACITY, 0))

    def _with_alarm(
        self, picture: npt.NDArray[np.uint8], heat: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        cv2 = opencv()
        threshold = self.scale.threshold
        start = _AT_THRESHOLD if threshold is not None else 128
        mask = cv2.compare(heat, start, cv2.CMP_GE)
        if not cv2.countNonZero(mask):
            return picture
        colours = cv2.applyColorMap(heat, self._alarm)
        blended = cv2.addWeighted(picture, 1 - _HEAT_OPACITY, colours, _HEAT_OPACITY, 0)
        cv2.copyTo(blended, mask, picture)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        # Specks get no outline: it would be larger than they are.
        shown = [outline for outline in outlines if cv2.contourArea(outline) >= 24]
        cv2.drawContours(picture, shown, -1, (255, 255, 255), 1, cv2.LINE_AA)
        return picture


def _display_size(height: int, width: int, side: int) -> tuple[int, int]:
    factor = min(1.0, side / max(height, width))
    # Video encoders take even sides only.
    return max(2, round(height * factor) // 2 * 2), max(2, round(width * factor) // 2 * 2)


def _captioned(picture: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    if not text:
        return picture
    cv2 = opencv()
    text = text.encode("ascii", "replace").decode()
    width = picture.shape[1]
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    (drawn, height), base = cv2.getTextSize(text, font, size, 1)
    if drawn > width - 12:
        size *= (width - 12) / drawn
    bar = picture[: height + base + 8]
    np.multiply(bar, 0.35, out=bar, casting="unsafe")
    origin = (6, height + 5)
    cv2.putText(picture, text, origin, font, size, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def _array(image: Any) -> npt.NDArray[np.uint8]:
    out: npt.NDArray[np.uint8] = image
    return out
