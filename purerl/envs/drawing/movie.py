"""A GIF of an episode, with the step and the return so far above each picture."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

PACE = 0.045  # seconds from one picture to the next: 22 a second
HOLD = 1.5  # seconds that the end stays in sight
HEADING = 24  # pixels
NUM_COLORS = 32
BACKGROUND, INK = (250, 250, 248), (40, 44, 52)


def place(path: Path, *others: str) -> Path:
    """The file to write: with .gif where path has no ending. others: endings that are known as well.

    Raises ValueError for an ending that is none of these.
    """
    if not path.suffix:
        return path.with_name(path.name + ".gif")
    if path.suffix not in (".gif", *others):
        raise ValueError(f"An episode is written as {' or '.join(('.gif', *others))}, but not as {path.suffix}.")
    return path


def steps_shown(num_states: int, seconds: float) -> list[int]:
    """The numbers of the states that are shown, about 22 a second, the first and the last among them.

    seconds: what one step of the env takes; steps of more than 1 / 22 s are shown each.
    """
    stride = max(1, round(PACE / seconds))
    steps = list(range(0, num_states, stride))
    return steps if steps[-1] == num_states - 1 else [*steps, num_states - 1]


def durations(steps: list[int], seconds: float) -> list[int]:
    """Milliseconds that each state is shown, in tens as GIF counts them, so that they sum to the time of the env."""
    ticks = np.round(100 * seconds * np.array(steps)).astype(int)
    return [int(10 * max(2, tick)) for tick in np.diff(ticks)] + [round(1000 * HOLD)]


def save(path: Path, name: str, picture: Callable[[int], np.ndarray], returns: np.ndarray, seconds: float) -> Path:
    """Writes the GIF and returns its path.

    name: of the env. picture: draws state i as `[height, width, 3]` bytes, the same size for each i.
    returns: `[states]`, the return when a state was reached. seconds: what one step of the env takes.
    """
    steps = steps_shown(len(returns), seconds)
    frames = (_with_heading(picture(i), f"{name}   step {i}   return {_short(float(returns[i]))}") for i in steps)
    _write(path, frames, durations(steps, seconds))
    return path


def _short(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.2f}" if abs(number) >= 0.1 else f"{number:.2g}"


def _with_heading(picture: np.ndarray, text: str) -> Any:
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = picture.shape
    image = Image.new("RGB", (width, height + HEADING), BACKGROUND)
    image.paste(Image.fromarray(picture), (0, HEADING))
    pen = ImageDraw.Draw(image)
    size = 13.0
    while pen.textlength(text, ImageFont.load_default(size)) > width - 12:
        size -= 1
    pen.text((6, HEADING / 2), text, INK, ImageFont.load_default(size), anchor="lm")
    return image


def _write(path: Path, frames: Iterable[Any], milliseconds: list[int]) -> None:
    """One palette for all, taken from a few of them: what does not change then costs nothing."""
    from PIL import Image

    images = list(frames)
    samples = images[:: max(1, len(images) // 8)]
    mosaic = Image.fromarray(np.concatenate([np.asarray(image) for image in samples]))
    palette = mosaic.quantize(NUM_COLORS, Image.Quantize.MAXCOVERAGE)
    first, *others = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)
