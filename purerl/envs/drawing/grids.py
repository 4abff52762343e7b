"""Worlds of cells: observations that are grids of bits, and maps that somebody walks on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from purerl.envs.drawing.flat import Color, Sheet

RED, BLUE, GREEN, ORANGE, BROWN = (204, 60, 60), (50, 105, 180), (60, 150, 80), (235, 140, 30), (160, 110, 70)
VIOLET, CYAN, YELLOW, PINK, GRAY = (140, 95, 185), (40, 175, 195), (225, 190, 40), (225, 120, 190), (185, 189, 196)
EMPTY, WALL, DEEP, PALE = (236, 238, 241), (66, 72, 84), (96, 110, 136), (205, 220, 240)
SIZE = 320  # pixels of the longer side

# What the channels of an observation are; the first is drawn over the others. A name of "" is not drawn.
CHANNELS: dict[str, dict[str, Color]] = {
    "Asterix-MinAtar": {"player": BLUE, "enemy": RED, "trail": GRAY, "gold": YELLOW},
    "Breakout-MinAtar": {"paddle": BLUE, "ball": RED, "trail": GRAY, "brick": BROWN},
    "Freeway-MinAtar": {"chicken": ORANGE, "car": BLUE}
    | {f"speed {speed}": (215 - 20 * speed,) * 3 for speed in (1, 2, 3, 4, 5)},
    "Seaquest-MinAtar": {
        "submarine": BLUE, "its stern": (130, 170, 220), "own bullet": ORANGE, "trail": GRAY, "enemy bullet": PINK,
        "fish": GREEN, "enemy sub": RED, "oxygen": CYAN, "divers": YELLOW, "diver": VIOLET,
    },
    # Aliens are drawn once, though two more channels say which way all of them move.
    "SpaceInvaders-MinAtar": {
        "cannon": BLUE, "alien": GREEN, "left": GREEN, "right": GREEN, "own bullet": ORANGE, "enemy bullet": RED,
    },
    "Pong-misc": {"paddle": BLUE, "ball": RED, "last ball": GRAY},
}  # fmt: skip
HIDDEN = ("left", "right")  # in the legend

# What is drawn of a map's letters; any other letter is a plain tile.
TILES: dict[str, Color] = {"#": WALL, "S": PALE, "G": GREEN, "T": DEEP, "H": DEEP, "C": DEEP, "P": DEEP}


def board(channels: np.ndarray, names: Mapping[str, Color]) -> np.ndarray:
    """A grid of cells with a legend beside it. channels: `[rows, columns, C]`, where a cell that is not 0 is drawn.

    names: of the channels and their colors, in their order; channels without a name are drawn in colors of their own.
    """
    rows, columns, num_channels = channels.shape
    colors = list(names.values()) or [BLUE, RED, GREEN, ORANGE, VIOLET, CYAN, BROWN, PINK, YELLOW, GRAY]
    shown = {name: color for name, color in names.items() if name not in HIDDEN}
    cells = np.full((rows, columns, 3), EMPTY)
    for channel in reversed(range(num_channels)):
        cells[channels[..., channel] != 0] = colors[channel % len(colors)]
    line = max(rows, columns) / 12
    legend = 4.2 * line if shown else 0
    sheet = _sheet(rows, columns + legend)
    _fill(sheet, cells)
    for i, (name, color) in enumerate(shown.items()):
        y = rows - (i + 0.7) * line
        sheet.disc((columns + 0.6 * line, y), 0.3 * line, color)
        sheet.letters((columns + 1.1 * line, y), name, 0.5 * line, anchor="lm")
    return sheet.pixels()


def walk(tiles: Sequence[str], agent: tuple[int, int]) -> np.ndarray:
    """A map and who walks on it. tiles: rows of letters as in `TILES`. agent: row and column, which may lie outside."""
    rows, columns = len(tiles), len(tiles[0])
    sheet = _sheet(rows, columns)
    _fill(sheet, np.array([[TILES.get(letter, EMPTY) for letter in row] for row in tiles]))
    for y, letters in enumerate(tiles):
        for x, letter in enumerate(letters):
            if letter in TILES and letter != "#":
                sheet.letters((x + 0.5, rows - y - 0.5), letter, 0.5)
    place = int(agent[1]) + 0.5, rows - int(agent[0]) - 0.5
    sheet.disc(place, 0.32, (255, 255, 255))
    sheet.disc(place, 0.27, RED)
    return sheet.pixels()


def maze(env: Any, state: Any) -> np.ndarray:
    """gymnax's FourRooms and MetaMaze."""
    tiles = np.where(np.asarray(env.env_map), ".", "#")
    tiles[tuple(np.asarray(state.goal))] = "G"
    return walk(["".join(row) for row in tiles], state.pos)


def lake(env: Any, state: Any) -> np.ndarray:
    """gymnax's FrozenLake."""
    tiles = np.array(list("SFHG"))[np.asarray(env.desc)]
    return walk(["".join(row) for row in tiles], divmod(int(state.position), env.ncol))


def sea(env: Any, state: Any) -> np.ndarray:
    """bsuite's DeepSea: one row deeper each step; at the end the diver has left the grid."""
    tiles = ["." * env.size] * (env.size - 1) + ["." * (env.size - 1) + "G"]
    return walk(tiles, (state.row, state.column))


def catch(env: Any, state: Any) -> np.ndarray:
    """bsuite's Catch, whose observation does not tell the ball from the paddle."""
    channels = np.zeros((env.rows, env.columns, 2))
    channels[int(state.paddle_y), int(state.paddle_x), 0] = channels[int(state.ball_y), int(state.ball_x), 1] = 1
    return board(channels, {"paddle": BLUE, "ball": RED})


# The envs whose state tells more than a grid that they observe; each takes gymnax's env and one of its states.
SCENES: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "FourRooms-misc": maze,
    "MetaMaze-misc": maze,
    "FrozenLake-misc": lake,
    "DeepSea-bsuite": sea,
    "Catch-bsuite": catch,
}


def _sheet(rows: int, columns: float) -> Sheet:
    return Sheet((-0.2, columns + 0.2), (-0.2, rows + 0.2), max(160, round(SIZE * columns / max(rows, columns))))


def _fill(sheet: Sheet, cells: np.ndarray) -> None:
    """The cells `[rows, columns, 3]` as squares with a small gap."""
    rows = len(cells)
    for (y, x), _ in np.ndenumerate(cells[..., 0]):
        left, right, low, high = x + 0.03, x + 0.97, rows - y - 0.97, rows - y - 0.03
        red, green, blue = (int(part) for part in cells[y, x])
        sheet.area([(left, low), (left, high), (right, high), (right, low)], (red, green, blue))
