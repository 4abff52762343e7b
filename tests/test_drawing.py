"""Where things lie in the pictures of episodes, against places worked out by hand and MuJoCo's own kinematics."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from purerl import dqn, envs, mdp, render
from purerl.envs import brax
from purerl.envs.drawing import bodies, classic, grids, movie
from purerl.envs.mdp import worlds
from tests import tiny

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
AXES = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # looks along y, z is up
SCALE = bodies.HEIGHT / (2 * bodies.TANGENT * 10)  # pixels of a unit at a distance of 10
MIDDLE = np.array([bodies.HEIGHT / 2, bodies.WIDTH / 2])


def camera(eye: tuple[float, ...] = (0.0, -10.0, 0.0)) -> bodies.Camera:
    sizes = (bodies.HEIGHT, bodies.WIDTH), (bodies.SMOOTH * bodies.HEIGHT, bodies.SMOOTH * bodies.WIDTH)
    return bodies.Camera(np.array(eye), AXES, 10.0, *(bodies.rays(AXES, *size) for size in sizes))


def scene(*geoms: tuple[Any, ...]) -> bodies.Shapes:
    """Of (kind, position, quaternion, size, color)."""
    kind, position, quaternion, size, color = zip(*geoms, strict=True)
    return bodies.Shapes(
        np.array(kind), np.array(position, float), bodies.rotations(quaternion), np.array(size, float), np.array(color)
    )


UPRIGHT, ALONG_X, ALONG_Y = (  # the second turns z to x, the third to -y
    (1.0, 0, 0, 0),
    (np.sqrt(0.5), 0, np.sqrt(0.5), 0),
    (np.sqrt(0.5), np.sqrt(0.5), 0, 0),
)


def covered(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The middle, half the height and width, and the number of pixels that are not background."""
    places = np.argwhere((picture != movie.BACKGROUND).any(-1))
    low, high = places.min(0), places.max(0) + 1
    return (low + high) / 2, (high - low) / 2, len(places)


@pytest.mark.parametrize(
    ("kind", "quaternion", "size", "half", "area"),
    [
        (bodies.SPHERE, UPRIGHT, (0.5, 0, 0), (0.5, 0.5), np.pi / 4),
        (bodies.CAPSULE, ALONG_X, (0.25, 1, 0), (0.25, 1.25), 1 + np.pi / 16),
        (bodies.CAPSULE, UPRIGHT, (0.25, 1, 0), (1.25, 0.25), 1 + np.pi / 16),
        (bodies.CYLINDER, ALONG_X, (0.1, 1, 0), (0.1, 1), 0.4),
        (bodies.CYLINDER, ALONG_Y, (0.5, 0.05, 0), (0.5, 0.5), np.pi / 4),
        (bodies.BOX, UPRIGHT, (1, 0.01, 0.5), (0.5, 1), 2),
        (bodies.BOX, ALONG_X, (1, 0.01, 0.5), (1, 0.5), 2),
    ],
)
@pytest.mark.parametrize("place", [(0, 0), (1, 1.5), (-2, -1)])
def test_silhouettes(kind: int, quaternion: Any, size: Any, half: Any, area: float, place: tuple[float, float]) -> None:
    """At a distance of 10 a unit has SCALE = 33 pixels; edges may be off by one, and by the little of perspective."""
    x, z = place
    middle, sides, pixels = covered(bodies.draw(scene((kind, (x, 0, z), quaternion, size, RED)), camera()))
    np.testing.assert_allclose(middle, MIDDLE + SCALE * np.array([-z, x]), atol=2.5)
    np.testing.assert_allclose(sides, SCALE * np.array(half), atol=2.5)
    perimeter = 4 * SCALE * sum(half)
    assert abs(pixels - SCALE**2 * area) < 0.8 * perimeter


@pytest.mark.parametrize("order", [1, -1])
def test_the_nearer_hides_the_farther(order: int) -> None:
    """A green ball in front of a larger red one, whichever comes first in the list."""
    near, far = ((bodies.SPHERE, (0, y, 0), UPRIGHT, (r, 0, 0), c) for y, r, c in ((-3, 0.5, GREEN), (0, 1.5, RED)))
    picture = bodies.draw(scene(*[near, far][::order]), camera())
    row, column = MIDDLE.astype(int)
    assert picture[row, column].argmax() == 1 and picture[row, column, 0] == 0
    assert picture[row, column + round(1.2 * SCALE)].argmax() == 0


def test_light_comes_from_above() -> None:
    picture = bodies.draw(scene((bodies.SPHERE, (0, 0, 0), UPRIGHT, (1, 0, 0), RED)), camera()).astype(int)
    row, column = MIDDLE.astype(int)
    assert picture[row - round(0.6 * SCALE), column, 0] > picture[row + round(0.6 * SCALE), column, 0] + 30


def test_of_two_on_one_surface_the_first_is_seen() -> None:
    """A red ball fills the end of a green capsule."""
    capsule = (bodies.CAPSULE, (0.3, 0, 0), UPRIGHT, (0.7, 1, 0), GREEN)
    picture = bodies.draw(scene(capsule, (bodies.SPHERE, (0.3, 0, 1), UPRIGHT, (0.7, 0, 0), RED)), camera()).astype(int)
    assert (picture[..., 0] > picture[..., 1] + 30).sum() < 5


def test_what_reaches_behind_the_camera_is_seen_to_the_edge() -> None:
    """A capsule below the camera, along its view: 3 ahead it is at row 120 + 330 / 3, the last but ten."""
    picture = bodies.draw(scene((bodies.CAPSULE, (0, -10, -1), ALONG_Y, (0.3, 5, 0), RED)), camera())
    row, column = bodies.HEIGHT - 10, bodies.WIDTH // 2
    assert picture[row, column, 0] > 100 and picture[row, column, 1] == 0


def test_the_part_with_geoms_has_room_for_an_outline() -> None:
    windows = [(slice(5, 9), slice(0, 4)), (slice(7, 12), slice(2, bodies.WIDTH)), (slice(0, 0), slice(3, 4))]
    assert bodies._around(windows) == (slice(4, 13), slice(0, bodies.WIDTH))
    assert bodies._around([]) == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize(
    ("kind", "size", "place", "outward"),
    [
        (bodies.SPHERE, (2, 0, 0), (0, 1.2, 1.6), (0, 0.6, 0.8)),
        (bodies.CAPSULE, (2, 1, 0), (1.2, 1.6, -0.7), (0.6, 0.8, 0)),
        (bodies.CAPSULE, (2, 1, 0), (0, 1.2, -2.6), (0, 0.6, -0.8)),
        (bodies.CYLINDER, (2, 1, 0), (1.2, 1.6, -0.7), (0.6, 0.8, 0)),
        (bodies.CYLINDER, (2, 1, 0), (0, 1.5, -1), (0, 0, -1)),
        (bodies.BOX, (1, 2, 3), (0.9, -2, 2.5), (0, -1, 0)),
    ],
)
def test_directions_away_from_a_geom(kind: int, size: Any, place: Any, outward: Any) -> None:
    """Of one at (1, 2, 3) whose z axis points along the world's x, and its x axis down."""
    geom = bodies.Shapes(*(field[0] for field in scene((kind, (1, 2, 3), ALONG_X, size, RED))))
    point, expected = (np.array([[v[2], v[1], -v[0]]], np.float32) for v in (place, outward))
    np.testing.assert_allclose(bodies._normal(geom, point + np.float32([1, 2, 3])), expected, atol=1e-6)


def test_what_is_under_the_floor_is_not_seen() -> None:
    plane = (bodies.PLANE, (0, 0, -1), UPRIGHT, (9, 9, 9), RED)
    ball = (bodies.SPHERE, (0, 0, -2), UPRIGHT, (0.5, 0, 0), RED)
    picture = bodies.draw(scene(plane, ball), camera()).astype(int)
    assert (picture[..., 0] <= picture[..., 2] + 5).all()  # nothing red
    assert (bodies.draw(scene(ball), camera())[..., 1:] == 0).any()


def test_a_floor_with_shadows() -> None:
    """Seen from 1 above it: nothing above the horizon, and at (0, 0, -1), 10 ahead, the shadow of a ball at z = 0.5.

    Its square differs from the next one's, 1 further, and it passes by as the camera moves.
    """
    plane = (bodies.PLANE, (0, 0, -1), UPRIGHT, (9, 9, 9), RED)
    ball = (bodies.SPHERE, (0, 0, 0.5), UPRIGHT, (0.5, 0, 0), RED)
    alone, shaded = (bodies.draw(scene(*geoms), camera()).astype(int) for geoms in ((plane,), (plane, ball)))
    horizon, column = bodies.HEIGHT // 2, bodies.WIDTH // 2
    assert (alone[:horizon] == movie.BACKGROUND).all() and (alone[horizon + 30 :] != movie.BACKGROUND).all()
    foot = round(MIDDLE[0] + SCALE)
    assert (shaded[foot, column] < alone[foot, column] - 30).all()
    far_away = column + round(1.5 * SCALE)
    np.testing.assert_array_equal(shaded[foot, far_away], alone[foot, far_away])
    squares = 2  # 0.6 * TANGENT * 10 = 2.18
    side = [tuple(alone[foot, round(MIDDLE[1] + SCALE * x)]) for x in (0.5, 1.5, 2.5, 4.5)]
    assert side[0] == side[1] == side[3] != side[2]
    moved = bodies.draw(scene(plane), camera((squares, -10.0, 0.0)))
    assert tuple(moved[foot, round(MIDDLE[1] + SCALE * 0.5)]) == side[2]


def test_what_has_no_place_is_left_out() -> None:
    lost = (bodies.SPHERE, (np.nan, 0, 0), UPRIGHT, (1, 0, 0), RED)
    assert (bodies.draw(scene(lost), camera()) == movie.BACKGROUND).all()


def walk(steps: int, speed: float, fixed: bool = False) -> tuple[bodies.Shapes, np.ndarray]:
    """A ball that moves along x and jumps at every other step, above a floor and, if fixed, beside a pole."""
    geoms = [
        (bodies.PLANE, (0, 0, 0), UPRIGHT, (9, 9, 9), RED),
        (bodies.SPHERE, (0, 0, 0), UPRIGHT, (0.5, 0, 0), RED),
        (bodies.CAPSULE, (0, 0, 1), UPRIGHT, (0.1, 1, 0), RED),
    ]
    still = scene(*geoms[: 2 + fixed])
    position, rotation = (np.repeat(x[None], steps, 0) for x in (still.position, still.rotation))
    position[:, 1, 0], position[:, 1, 2] = speed * np.arange(steps), 0.5 + np.arange(steps) % 2
    return still._replace(position=position, rotation=rotation), np.array([True, False, True][: 2 + fixed])


def test_the_camera_follows() -> None:
    """Along the floor and not up; the ball is in the middle of the picture's width and all of it in the picture."""
    moving, fixed = walk(40, 3.0)
    cameras = bodies.cameras(moving, fixed, 0.05)
    eyes = np.array([camera.eye for camera in cameras])
    np.testing.assert_allclose(eyes[:, 0], 3.0 * np.arange(40), atol=1e-9)
    np.testing.assert_allclose(eyes[:, 1:], np.broadcast_to(eyes[0, 1:], (40, 2)), atol=1e-9)
    places = np.array([camera.project(moving.position[i, 1]) for i, camera in enumerate(cameras)])
    np.testing.assert_allclose(places[:, 0], bodies.WIDTH / 2, atol=1e-6)
    radius = 0.5 * bodies.HEIGHT / (2 * bodies.TANGENT * places[:, 2])
    assert (places[:, 1] - radius > 0).all() and (places[:, 1] + radius < bodies.HEIGHT).all()
    assert places[0, 1] > places[1, 1] + 20  # the jump
    assert radius.min() > 20  # not lost in the distance


def test_the_camera_stands_still_beside_what_does() -> None:
    moving, fixed = walk(4, 3.0, fixed=True)
    cameras = bodies.cameras(moving, fixed, 0.05)
    assert all((camera.eye == cameras[0].eye).all() for camera in cameras)
    places = np.array([camera.project(moving.position[i, 1:]) for i, camera in enumerate(cameras)])
    assert (places[..., :2] > 0).all() and (places[..., :2] < (bodies.WIDTH, bodies.HEIGHT)).all()


def test_a_path_is_smoothed_evenly() -> None:
    """Means over as many places before as after, so that a steady pace stays one."""
    path = np.stack([np.array([0.0, 3, 0, 3, 0]), np.arange(5.0), np.zeros(5)], 1)
    np.testing.assert_allclose(bodies.smooth(path, 1), [[0, 0, 0], [1, 1, 0], [2, 2, 0], [1, 3, 0], [0, 4, 0]])


def states_of(system: Any, coordinates: list[np.ndarray]) -> tuple[list[Any], list[Any]]:
    """States of a robot as MuJoCo places it, and MuJoCo's data of each."""
    mujoco = importlib.import_module("mujoco")
    states, data = [], []
    for q in coordinates:
        data.append(mujoco.MjData(system.mj_model))
        data[-1].qpos = q
        mujoco.mj_kinematics(system.mj_model, data[-1])
        pose = SimpleNamespace(pos=data[-1].xpos[1:].copy(), rot=data[-1].xquat[1:].copy())
        states.append((SimpleNamespace(pipeline_state=SimpleNamespace(x=pose)), len(states)))
    return states, data


@pytest.mark.xdist_group(brax.__name__)
@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in brax.names() if name != "brax/fast"])
def test_bodies_lie_where_mujoco_puts_them(name: str, tmp_path: Path) -> None:
    """At the start and with every joint turned by 0.3; then all of them are drawn, and all of them in sight."""
    with jax.numpy_rank_promotion("allow"):  # Brax's humanoids rely on it
        env = envs.make(name)
    system = env.default_params
    start = np.asarray(system.init_q, float)
    states, data = states_of(system, [start, start + 0.3])
    shapes, fixed = bodies.shapes(system, [state.pipeline_state.x for state, _ in states])
    seen = system.mj_model.geom_rgba[:, 3] > 0
    np.testing.assert_allclose(shapes.position, [x.geom_xpos[seen] for x in data], atol=1e-5)
    np.testing.assert_allclose(shapes.rotation, [x.geom_xmat.reshape(-1, 3, 3)[seen] for x in data], atol=1e-5)
    assert abs(shapes.position[1] - shapes.position[0]).max() > 0.01
    solid = shapes.kind != bodies.PLANE
    for i, camera in enumerate(bodies.cameras(shapes, fixed, env.env.dt)):
        places = camera.project(shapes.position[i, solid])
        assert (places > 0).all() and (places[:, :2] < (bodies.WIDTH, bodies.HEIGHT)).all()
    path = brax.draw(tmp_path / "episode", env, system, states, np.arange(2.0))
    with Image.open(path) as image:
        assert image.format == "GIF" and image.n_frames == 2
        first = np.asarray(image.convert("RGB")).astype(int)
        image.seek(1)
        changed = (abs(np.asarray(image.convert("RGB")) - first).max(-1) > 40)[movie.HEADING :]
    assert 20 < changed.sum() < changed.size / 2


def test_a_shape_that_is_not_drawn() -> None:
    model = SimpleNamespace(geom_rgba=np.ones((1, 4)))
    system = SimpleNamespace(mj_model=model, geom_type=np.array([7]), geom_bodyid=np.array([0]))
    with pytest.raises(
        ValueError, match=r"^Geoms of MuJoCo's type 7 are not drawn, but Brax's own page may: give it .*"
    ):
        bodies.shapes(system, [])


def test_the_pace_is_the_envs() -> None:
    """About 22 pictures a second, and as long as the episode: 0.18 s, 0.6 s and 0.15 s, then the end is held."""
    assert movie.steps_shown(10, 0.02) == [0, 2, 4, 6, 8, 9]
    assert movie.durations([0, 2, 4, 6, 8, 9], 0.02) == [40, 40, 40, 40, 20, 1500]
    assert movie.steps_shown(4, 0.2) == [0, 1, 2, 3]
    assert movie.durations([0, 1, 2, 3], 0.2) == [200, 200, 200, 1500]
    assert movie.steps_shown(11, 0.015) == [0, 3, 6, 9, 10]
    assert sum(movie.durations([0, 3, 6, 9, 10], 0.015)[:-1]) in range(140, 161)


def test_the_heading_tells_step_and_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, plain = [], movie._with_heading
    monkeypatch.setattr(movie, "_with_heading", lambda picture, text: (texts.append(text), plain(picture, text))[1])
    picture = np.zeros((60, 200, 3), np.uint8)
    path = movie.save(
        tmp_path / "a.gif", "Env", lambda i: picture + np.uint8(9 * i), np.array([0, -1.5, 2, 0.0125]), 0.1
    )
    assert texts == [f"Env   step {i}   return {text}" for i, text in enumerate(("0", "-1.50", "2", "0.013"))]
    with Image.open(path) as image:
        assert image.size == (200, 60 + movie.HEADING) and image.n_frames == 4 and image.info["loop"] == 0
        assert np.asarray(image.convert("L"))[: movie.HEADING].min() < 100  # ink


@pytest.mark.parametrize(("path", "expected"), [("run/a", "run/a.gif"), ("a.gif", "a.gif"), ("a.html", "a.html")])
def test_endings(path: str, expected: str) -> None:
    assert movie.place(Path(path), ".html") == Path(expected)
    if path == "a.html":
        with pytest.raises(ValueError, match=r"^An episode is written as \.gif, but not as \.html\.$"):
            movie.place(Path(path))


def color_at(picture: np.ndarray, x: tuple[float, float], top: float, place: tuple[float, float]) -> tuple[int, ...]:
    """The color at a place of a plane whose picture spans x, and y up to top."""
    scale = picture.shape[1] / (x[1] - x[0])
    row, column = int((top - place[1]) * scale), int((place[0] - x[0]) * scale)
    return tuple(int(part) for part in picture[row, column])


def test_a_pole_leans_to_the_right() -> None:
    """The cart at 1, and the pole, 1 long, at 30 degrees from upright: its end at 1 + sin 30, 0.1 + cos 30."""
    params = SimpleNamespace(x_threshold=2.0, length=0.5)
    picture = classic.cart_pole(SimpleNamespace(x=1.0, theta=np.pi / 6), params)
    span = (-2.3, 2.3), 1.5
    for share in (0.3, 0.6, 0.98):
        place = (1 + share * 0.5, 0.1 + share * np.sqrt(0.75))
        assert color_at(picture, *span, place) == classic.WOOD
    assert color_at(picture, *span, (0.8, -0.1)) == movie.INK  # the cart
    assert color_at(picture, *span, (0.5, 0.9)) == movie.BACKGROUND


def test_links_hang_and_swing() -> None:
    """The first at 90 degrees points to the right, and the second, 90 further, up."""
    params = SimpleNamespace(link_length_1=1.0, link_length_2=1.0)
    picture = classic.acrobot(SimpleNamespace(joint_angle1=np.pi / 2, joint_angle2=np.pi / 2), params)
    span = (-2.2, 2.2), 2.2
    assert color_at(picture, *span, (0.5, 0)) == classic.BLUE
    assert color_at(picture, *span, (1, 0.7)) == classic.WOOD
    assert color_at(picture, *span, (-1.5, 1)) == classic.GREEN


def test_a_pendulum_turns_counterclockwise() -> None:
    """At 90 degrees it points to the left; a torque of half the greatest is an arc of half a radian ahead of it."""
    params = SimpleNamespace(l=2.0, max_torque=2.0)
    picture = classic.pendulum(SimpleNamespace(theta=np.pi / 2, last_u=np.array([1.0])), params)
    span = (-2.6, 2.6), 2.6
    assert color_at(picture, *span, (-1.5, 0)) == classic.RED
    angle = np.pi / 2 + 0.4
    assert color_at(picture, *span, (-1.1 * np.sin(angle), 1.1 * np.cos(angle))) == classic.BLUE


def test_a_car_drives_on_its_hill() -> None:
    """At the bottom, x = -pi / 6, where the hill is 0.1 high, its body is 0.05 above that."""
    params = SimpleNamespace(min_position=-1.2, max_position=0.6, goal_position=0.5)
    picture = classic.mountain_car(SimpleNamespace(position=-np.pi / 6), params)
    span = (-1.25, 0.65), 1.25
    assert color_at(picture, *span, (-np.pi / 6, 0.17)) == classic.BLUE
    assert color_at(picture, *span, (-np.pi / 6, 0.0)) == classic.PALE
    assert color_at(picture, *span, (0.52, 0.45 * np.sin(1.5) + 0.71)) == classic.GREEN  # the flag


def cell_color(picture: np.ndarray, rows: int, row: int, column: int, inset: float = 0.15) -> tuple[int, ...]:
    """The color near the upper left corner of a cell, where no letter and nobody stands."""
    scale = picture.shape[0] / (rows + 0.4)
    return tuple(int(x) for x in picture[int((row + 0.2 + inset) * scale), int((column + 0.2 + inset) * scale)])


def test_the_first_channel_is_on_top() -> None:
    channels = np.zeros((4, 5, 2), bool)
    channels[1, 2] = True
    channels[3, 0, 1] = True
    picture = grids.board(channels, {"one": grids.RED, "two": grids.BLUE})
    assert cell_color(picture, 4, 1, 2) == grids.RED
    assert cell_color(picture, 4, 3, 0) == grids.BLUE
    assert cell_color(picture, 4, 2, 1) == cell_color(picture, 4, 0, 3) == grids.EMPTY
    without_names = grids.board(channels, {})
    assert without_names.shape[0] > picture.shape[0]  # no legend, so larger cells in the same width
    assert cell_color(without_names, 4, 1, 2) != cell_color(without_names, 4, 3, 0) != grids.EMPTY


def test_who_walks_on_a_map() -> None:
    picture = grids.walk(("S.#", "..G"), (1, 1))
    expected = [[grids.PALE, grids.EMPTY, grids.WALL], [grids.EMPTY, grids.EMPTY, grids.GREEN]]
    assert [[cell_color(picture, 2, y, x) for x in range(3)] for y in range(2)] == expected
    assert cell_color(picture, 2, 1, 1, inset=0.5) == grids.RED


@pytest.mark.parametrize("name", worlds.names())
def test_maps_are_those_of_the_tables(name: str) -> None:
    """Ends and starts stand where the tables have them, and a step leads to a neighbor on the map or nowhere."""
    env = envs.make(name)
    tiles = np.array([list(row) for row in env.rows])
    table = env.default_params
    cells = np.argwhere((tiles != "#") | (tiles.size == table.num_states))
    assert len(cells) == table.num_states
    letters = tiles[tuple(cells.T)]
    np.testing.assert_array_equal(np.asarray(table.terminal), np.isin(letters, list("GHPT")))
    np.testing.assert_array_equal(np.asarray(table.start), letters == "S")
    steps = abs(cells[np.asarray(table.successor)] - cells[:, None, None]).sum(-1)
    back = (letters == "S")[np.asarray(table.successor)] & (name == "mdp/cliff_walking")
    reachable = (letters != "#")[:, None, None]
    assert ((steps <= 1) | back | ~reachable).all() and (steps[reachable[:, 0, 0]].max((1, 2)) >= 0).all()
    assert mdp.Tabular(table, rows=env.rows).rows == env.rows


def test_a_world_shows_the_states_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State k of FourRooms is the k-th cell that is no wall: 0 at (1, 1), 5 at (1, 7)."""
    env, shown = envs.make("mdp/four_rooms"), []
    plain = grids.walk
    monkeypatch.setattr(grids, "walk", lambda rows, agent: (shown.append(agent), plain(rows, agent))[1])
    worlds.draw(tmp_path / "rooms", env, env.default_params, [(0, 0), (5, 1)], np.zeros(2))
    assert [tuple(map(int, place)) for place in shown] == [(1, 1), (1, 7)]


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(dqn)
    state, path = dqn.init(jax.random.key(0), config), tmp_path / "episode.gif"
    path.write_text("old")

    def interrupted(path: Path, *_: Any) -> Path:
        path.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("purerl.envs.gymnax.draw", interrupted)
        render.save(path, dqn, state, config, jax.random.key(0), max_steps=3)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert render.save(path, dqn, state, config, jax.random.key(0), max_steps=3) == path
    assert path.read_bytes().startswith(b"GIF8") and list(tmp_path.iterdir()) == [path]
