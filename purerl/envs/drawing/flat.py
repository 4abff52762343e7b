"""A sheet to draw shapes on, in the units of the env, with smooth edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from purerl.envs.drawing.movie import BACKGROUND, INK

SMOOTH = 3  # pixels drawn for one of the picture, along each side

Color = tuple[int, int, int]
Point = Sequence[Any] | np.ndarray


class Sheet:
    """The part of a plane within x and y, y upwards, drawn `width` pixels wide at one scale for both."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int = 400):
        self.left, self.top = float(x[0]), float(y[1])
        self.scale = width / (float(x[1]) - self.left)
        size = SMOOTH * width, SMOOTH * round((self.top - float(y[0])) * self.scale)
        self.image = Image.new("RGB", size, BACKGROUND)
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[Point] | np.ndarray, width: float, color: Color = INK) -> None:
        """A line with round ends. width: in units of the plane."""
        places = [self._place(point) for point in points]
        self.pen.line(places, color, round(SMOOTH * self.scale * width), joint="curve")
        for point in (points[0], points[-1]):
            self.disc(point, width / 2, color)

    def disc(self, center: Point, radius: float, color: Color = INK) -> None:
        (x, y), r = self._place(center), SMOOTH * self.scale * float(radius)
        self.pen.ellipse((x - r, y - r, x + r, y + r), color)

    def ring(self, center: Point, radius: float, width: float, color: Color = INK) -> None:
        (x, y), r = self._place(center), SMOOTH * self.scale * float(radius)
        self.pen.ellipse((x - r, y - r, x + r, y + r), outline=color, width=round(SMOOTH * self.scale * width))

    def area(self, points: Sequence[Point], color: Color = INK) -> None:
        """The inside of a polygon."""
        self.pen.polygon([self._place(point) for point in points], color)

    def letters(self, place: Point, text: str, size: float, anchor: str = "mm") -> None:
        """Text around a point, or right of it with the anchor "lm". size: in units of the plane."""
        font = ImageFont.load_default(max(1.0, SMOOTH * self.scale * size))
        self.pen.text(self._place(place), text, INK, font, anchor=anchor)

    def pixels(self) -> np.ndarray:
        """The picture `[height, width, 3]`, bytes."""
        return np.asarray(self.image.reduce(SMOOTH))

    def _place(self, point: Point) -> tuple[float, float]:
        x, y = (float(value) for value in point)
        return SMOOTH * self.scale * (x - self.left), SMOOTH * self.scale * (self.top - y)
