"""Classic control and other gymnax envs in a plane: what a state looks like, by the env's name."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from purerl.envs.drawing.flat import Point, Sheet

WOOD, STEEL, BLUE, RED, GREEN = (202, 152, 101), (129, 132, 203), (60, 110, 180), (204, 77, 77), (70, 150, 90)
PALE, GROUND = (215, 218, 224), (120, 125, 135)


def cart_pole(state: Any, params: Any) -> np.ndarray:
    """The whole track, with the places where an episode ends; the pole is twice `length` long."""
    edge, pole = float(params.x_threshold), 2 * float(params.length)
    sheet = Sheet((-1.15 * edge, 1.15 * edge), (-0.5, pole + 0.5), 480)
    x, angle = float(state.x), float(state.theta)
    sheet.line([(-1.15 * edge, 0), (1.15 * edge, 0)], 0.02, GROUND)
    for end in (-edge, edge):
        sheet.line([(end, -0.15), (end, 0.15)], 0.03, RED)
    sheet.area(_rectangle(x, 0.0, 0.5, 0.3))
    sheet.line([(x, 0.1), (x + pole * np.sin(angle), 0.1 + pole * np.cos(angle))], 0.1, WOOD)
    sheet.disc((x, 0.1), 0.04, STEEL)
    return sheet.pixels()


def swing_up(state: Any, params: Any) -> np.ndarray:
    """The whole track, the pole on its cart, and the place its tip should reach."""
    edge, length = float(params.track), float(params.pole_length)
    sheet = Sheet((-1.1 * edge, 1.1 * edge), (-1.4 * length, 1.4 * length), 480)
    x, angle = float(state.x), float(state.angle)
    sheet.line([(-edge, 0), (edge, 0)], 0.03, GROUND)
    for end in (-edge, edge):
        sheet.line([(end, -0.15), (end, 0.15)], 0.04, RED)
    sheet.ring((0, length), 0.1, 0.03, GREEN)
    sheet.area(_rectangle(x, 0.0, 0.4, 0.2))
    sheet.line([(x, 0), (x + length * np.sin(angle), -length * np.cos(angle))], 0.08, WOOD)
    sheet.disc((x, 0), 0.04, STEEL)
    return sheet.pixels()


def acrobot(state: Any, params: Any) -> np.ndarray:
    """Two links that hang from a fixed joint, and the height that the end must reach, one upper link above it."""
    lengths = float(params.link_length_1), float(params.link_length_2)
    reach = 1.1 * sum(lengths)
    sheet = Sheet((-reach, reach), (-reach, reach), 360)
    first, second = float(state.joint_angle1), float(state.joint_angle1) + float(state.joint_angle2)
    elbow = np.array([np.sin(first), -np.cos(first)]) * lengths[0]
    end = elbow + np.array([np.sin(second), -np.cos(second)]) * lengths[1]
    sheet.line([(-reach, 1), (reach, 1)], 0.02, GREEN)  # the env compares heights of links of length 1
    sheet.line([(0, 0), elbow], 0.16, BLUE)
    sheet.line([elbow, end], 0.16, WOOD)
    for joint in ((0, 0), elbow):
        sheet.disc(joint, 0.06, PALE)
    return sheet.pixels()


def mountain_car(state: Any, params: Any) -> np.ndarray:
    """The valley with the height of gymnasium's, sin(3x), a flag at the goal and the car on its slope."""
    low, high, goal = float(params.min_position), float(params.max_position), float(params.goal_position)
    sheet = Sheet((low - 0.05, high + 0.05), (-0.1, 1.25), 480)
    x = np.linspace(low - 0.05, high + 0.05, 100)
    hill = list(zip(x, _height(x), strict=True))
    sheet.area([*hill, (x[-1], -0.1), (x[0], -0.1)], PALE)
    sheet.line(hill, 0.012, GROUND)
    sheet.line([(goal, _height(goal)), (goal, _height(goal) + 0.2)], 0.01, GROUND)
    sheet.area([(goal, _height(goal) + y) for y in (0.2, 0.12)] + [(goal + 0.09, _height(goal) + 0.16)], GREEN)
    position = float(state.position)
    slope = np.arctan(1.35 * np.cos(3 * position))
    along, up = np.array([np.cos(slope), np.sin(slope)]), np.array([-np.sin(slope), np.cos(slope)])
    ground = np.array([position, _height(position)])
    corners = ((-0.075, 0.025), (-0.075, 0.065), (-0.04, 0.095), (0.04, 0.095), (0.075, 0.065), (0.075, 0.025))
    sheet.area([ground + a * along + b * up for a, b in corners], BLUE)
    for a in (-0.045, 0.045):
        sheet.disc(ground + a * along + 0.025 * up, 0.025)
    return sheet.pixels()


def pendulum(state: Any, params: Any) -> np.ndarray:
    """The rod, upright at the angle 0, and the last torque as an arc ahead of it."""
    length = float(params.l)
    sheet = Sheet((-1.3 * length, 1.3 * length), (-1.3 * length, 1.3 * length), 360)
    angle, torque = float(state.theta), float(np.ravel(state.last_u)[0]) / float(params.max_torque)
    arc = [_turned(angle + share * torque, 0.55 * length) for share in np.linspace(0, 1, 20)]
    sheet.ring((0, 0), length, 0.01 * length, PALE)
    sheet.line(arc, 0.04 * length, BLUE)
    sheet.line([(0, 0), _turned(angle, length)], 0.16 * length, RED)
    sheet.disc((0, 0), 0.05 * length)
    return sheet.pixels()


def point_robot(state: Any, params: Any) -> np.ndarray:
    """The half circle of goals, the goal, and the robot."""
    radius = float(params.circle_radius)
    span = max(1.4 * radius, *np.abs(np.asarray(state.pos)) * 1.1)
    sheet = Sheet((-span, span), (-span, span), 360)
    sheet.line([_turned(angle, radius) for angle in np.linspace(-np.pi / 2, np.pi / 2, 50)], 0.02 * radius, PALE)
    sheet.disc(state.goal, float(params.goal_radius), GREEN)
    sheet.disc(state.pos, 0.05 * radius, RED)
    return sheet.pixels()


def reacher(state: Any, params: Any) -> np.ndarray:
    """Joints of links of length 1, each at its own angle to the x axis, and the goal of the last one's end."""
    angles = np.asarray(state.angles, float)
    joints = np.concatenate([np.zeros((1, 2)), np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0)])
    span = 1.1 * len(angles)
    sheet = Sheet((-span, span), (-span, span), 360)
    sheet.disc(state.goal_xy, 0.15, GREEN)
    for start, end in itertools.pairwise(joints):
        sheet.line([start, end], 0.14, WOOD)
        sheet.disc(start, 0.06, BLUE)
    sheet.disc(joints[-1], 0.06, RED)
    return sheet.pixels()


def swimmer(state: Any, params: Any) -> np.ndarray:
    """The swimmer, the goal, and the urchins to keep away from."""
    span = max(1.3, *np.abs(np.asarray(state.xy)) * 1.1)
    sheet = Sheet((-span, span), (-span, span), 360)
    sheet.disc(state.goal_xy, 0.08, GREEN)
    for urchin in np.asarray(state.urchin_xys):
        for angle in np.arange(6) * np.pi / 6:
            spine = 0.1 * np.array([np.cos(angle), np.sin(angle)])
            sheet.line([urchin - spine, urchin + spine], 0.015)
        sheet.disc(urchin, 0.05)
    sheet.disc(state.xy, 0.06, RED)
    return sheet.pixels()


# The picture of a state, and the seconds that a step is shown: of the env's own clock where that is watchable.
SCENES: dict[str, tuple[Callable[[Any, Any], np.ndarray], float]] = {
    "CartPole-v1": (cart_pole, 1 / 50),
    "Acrobot-v1": (acrobot, 1 / 15),
    "MountainCar-v0": (mountain_car, 1 / 30),
    "MountainCarContinuous-v0": (mountain_car, 1 / 30),
    "Pendulum-v1": (pendulum, 1 / 20),
    "PointRobot-misc": (point_robot, 1 / 10),
    "Reacher-misc": (reacher, 1 / 20),
    "Swimmer-misc": (swimmer, 1 / 20),
}


def _height(position: Any) -> Any:
    return 0.45 * np.sin(3 * position) + 0.55


def _turned(angle: float, length: float) -> Point:
    """Where a rod of that length ends that is turned counterclockwise from upright."""
    return (-length * np.sin(angle), length * np.cos(angle))


def _rectangle(x: float, y: float, width: float, height: float) -> list[Point]:
    return [(x + a * width / 2, y + b * height / 2) for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
