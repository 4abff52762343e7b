"""Rigid bodies as pictures: rays cast at spheres, capsules, cylinders and boxes above a checkered floor, in NumPy.

A ray leaves the camera at `eye` and reaches eye + depth * d, where d is as long along the camera's forward axis as 1:
so depth is the distance from the camera's plane, and the nearest shape at a pixel is the one of the least depth.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from purerl.envs.drawing.movie import BACKGROUND

PLANE, SPHERE, CAPSULE, CYLINDER, BOX = 0, 2, 3, 5, 6  # MuJoCo's numbers
WIDTH, HEIGHT, SMOOTH = 320, 240, 2  # pixels of the picture, and rays for one of them along each side
TANGENT = np.tan(np.deg2rad(20))  # of half the angle of view, from the middle to the upper edge
MARGIN = 1.12
SIDE, OVERHEAD = np.deg2rad(18), np.deg2rad(60)  # how steeply the camera looks down
FLAT = 0.3  # height over width of what is looked at from above
SMOOTHING = 0.5  # seconds over which the camera's path is averaged
LIGHT = np.array([-0.36, -0.48, 0.8], np.float32)
SHADES = 5  # levels of brightness: fewer colors make a smaller file
BRIGHTNESS = np.linspace(0.6, 1, SHADES + 1)
FLOOR, OUTLINE = np.array([[224, 228, 234], [202, 208, 217]]), (62, 54, 50)
# Of what has no color of its own: in the world, the robot, and what else moves by itself.
TINTS = np.array([(0.62, 0.65, 0.7), (0.92, 0.67, 0.4), (0.85, 0.3, 0.27), (0.3, 0.6, 0.4), (0.3, 0.5, 0.8)])
CORNERS = np.array(np.meshgrid(*3 * [[-1.0, 1.0]])).reshape(3, -1).T
TIE = 1 - 1e-4  # of two geoms that share a surface, the first is drawn
FADES, SHADOW = 4, np.array([52, 50, 46])  # steps in which the floor fades, and what a shadow takes from its color
DULL = ((0.5, 0.5, 0.5), (0.4, 0.33, 0.26))  # the colors that MuJoCo and Brax give to what has none

Window = tuple[slice, slice]  # rows and columns of the picture


class Shapes(NamedTuple):
    """Geoms as they lie in the world in one state, all `[geoms, ...]`.

    kind: MuJoCo's type. position, rotation: `[3]` and `[3, 3]`, whose columns are the geom's axes. size: MuJoCo's: a
    radius, a radius and half a length along the geom's z axis, or half of each side. color: `[3]` from 0 to 1.
    """

    kind: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    size: np.ndarray
    color: np.ndarray


class Camera(NamedTuple):
    """eye: where it stands. axes: rows right, up and forward. distance: to what it looks at.

    rays, fine: `[rows, columns, 3]`, through the middle of every pixel and of every part of one; all cameras of an
    episode share them.
    """

    eye: np.ndarray
    axes: np.ndarray
    distance: float
    rays: np.ndarray
    fine: np.ndarray

    def project(self, points: Any) -> np.ndarray:
        """Column and row in the picture, and depth, of points `[..., 3]`."""
        right, up, depth = np.moveaxis((np.asarray(points) - self.eye) @ self.axes.T, -1, 0)
        scale = HEIGHT / (2 * TANGENT * depth)
        return np.stack([WIDTH / 2 + right * scale, HEIGHT / 2 - up * scale, depth], -1)


def rays(axes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A camera's rays through a picture of so many places."""
    up = TANGENT * (1 - 2 * (np.arange(rows) + 0.5) / rows)
    right = TANGENT * WIDTH / HEIGHT * (2 * (np.arange(columns) + 0.5) / columns - 1)
    return (axes[2] + up[:, None, None] * axes[1] + right[:, None] * axes[0]).astype(np.float32)


def rotations(quaternion: Any) -> np.ndarray:
    """Matrices `[..., 3, 3]` of unit quaternions `[..., 4]`, w first."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, float), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def shapes(system: Any, poses: Sequence[Any]) -> tuple[Shapes, np.ndarray]:
    """The geoms of a Brax `System` in each of some poses, with a leading axis `[poses]` of position and rotation.

    poses: the `x` of pipeline states. Returns also which geoms belong to the world and never move, `[geoms]`.
    Raises ValueError for a geom of a kind that is not drawn.
    """
    color = np.array(system.mj_model.geom_rgba)
    seen = np.flatnonzero(color[:, 3] > 0)
    kind, body = np.asarray(system.geom_type)[seen], np.asarray(system.geom_bodyid)[seen]
    if strange := set(kind.tolist()) - {PLANE, SPHERE, CAPSULE, CYLINDER, BOX}:
        raise ValueError(
            f"Geoms of MuJoCo's type {min(strange)} are not drawn, but Brax's own page may: give it a path with .html."
        )
    dull = np.isclose(color[:, None, :3], DULL).all(-1).any(-1)
    color[dull, :3] = TINTS[_trees(system)[np.asarray(system.geom_bodyid)][dull] % len(TINTS)]
    # Body 0 is the world, which has no pose of its own.
    places = np.stack([np.asarray(pose.pos, float) for pose in poses])
    turns = rotations(np.stack([pose.rot for pose in poses]))
    places = np.concatenate([np.zeros((len(poses), 1, 3)), places], 1)[:, body]
    turns = np.concatenate([np.broadcast_to(np.eye(3), (len(poses), 1, 3, 3)), turns], 1)[:, body]
    position = places + np.einsum("tgij,gj->tgi", turns, np.asarray(system.geom_pos, float)[seen])
    rotation = turns @ rotations(system.geom_quat)[seen]
    return Shapes(kind, position, rotation, np.asarray(system.geom_size, float)[seen], color[seen, :3]), body == 0


def _trees(system: Any) -> np.ndarray:
    """For the world, body 0, and each link, the number of the robot or thing that it is a part of, 0 for the world."""
    trees = [0]
    for parent in system.link_parents:
        trees.append(max(trees) + 1 if parent < 0 else trees[parent + 1])
    return np.array(trees)


def cameras(scene: Shapes, fixed: np.ndarray, seconds: float) -> list[Camera]:
    """One camera a pose, all at one distance, from which everything but the floor is in sight.

    It follows the bodies along the floor, never up and down, so that a jump is seen as one. Where something besides a
    floor stands still in the world, such as a rail, the camera stands still as well. It looks from the side, or from
    above at what moves in a plane. seconds: from one pose to the next.
    """
    solid = scene.kind != PLANE
    moving = ~fixed[solid]
    path = scene.position[:, solid][:, moving].mean(1) * (1.0, 1.0, 0.0)
    path = np.broadcast_to(path.mean(0), path.shape) if (~moving).any() else smooth(path, round(SMOOTHING / seconds))
    half, radius = _half_lengths(scene)[solid], _girths(scene)[solid]
    axis = scene.rotation[:, solid][..., 2] * half[:, None]
    around = np.concatenate([scene.position[:, solid] - axis, scene.position[:, solid] + axis], 1) - path[:, None]
    radius = np.concatenate([radius, radius])
    low, high = (around - radius[:, None]).min((0, 1)), (around + radius[:, None]).max((0, 1))
    flat = high[2] - low[2] < FLAT * (high - low)[:2].max()
    angle = OVERHEAD if flat else SIDE
    forward = np.array([0.0, np.cos(angle), -np.sin(angle)])
    axes = np.stack([np.array([1.0, 0.0, 0.0]), np.cross([1.0, 0.0, 0.0], forward), forward])
    right, up, ahead = np.moveaxis((around - (low + high) / 2) @ axes.T, -1, 0)
    # A ball is in sight where its center is, in a picture that is smaller by its radius.
    wide = (np.abs(right) + radius) / (TANGENT * WIDTH / HEIGHT)
    distance = MARGIN * np.maximum(wide - ahead, (np.abs(up) + radius) / TANGENT - ahead).max()
    shared = float(distance), rays(axes, HEIGHT, WIDTH), rays(axes, SMOOTH * HEIGHT, SMOOTH * WIDTH)
    return [Camera(center - distance * forward, axes, *shared) for center in path + (low + high) / 2]


def smooth(path: np.ndarray, width: int) -> np.ndarray:
    """The mean of a path `[time, 3]` over `width` places to either side, or as many as there are before an end."""
    sums = np.concatenate([np.zeros((1, 3)), np.cumsum(path, 0)])
    time = np.arange(len(path))
    half = np.minimum(width, np.minimum(time, len(path) - 1 - time))
    return (sums[time + half + 1] - sums[time - half]) / (2 * half + 1)[:, None]


def draw(scene: Shapes, camera: Camera) -> np.ndarray:
    """One pose as a picture `[HEIGHT, WIDTH, 3]`, bytes. scene: position and rotation without an axis of poses.

    Floors first, pixel by pixel, since smooth edges of a floor that passes by would double the size of a file; then
    each geom in the part of the picture that it may cover, where it is nearer than what is there.
    """
    geoms = [Shapes(*(field[i] for field in scene)) for i in range(len(scene.kind))]
    geoms = [geom for geom in geoms if np.isfinite(geom.position).all() and np.isfinite(geom.rotation).all()]
    solid = [geom for geom in geoms if geom.kind != PLANE]
    depth, color = np.full((HEIGHT, WIDTH), np.inf, np.float32), np.empty((HEIGHT, WIDTH, 3), np.uint8)
    color[:] = BACKGROUND
    for geom in geoms:
        if geom.kind == PLANE:
            _floor(geom, solid, camera, depth, color)
    windows = _windows(camera, solid)
    around = _around(windows)
    fine_depth, fine_color, directions = _parts(depth[around]), _parts(color[around]), camera.fine[_fine(around)]
    owner, eye = np.zeros(fine_depth.shape, np.int16), camera.eye.astype(np.float32)
    for number, (geom, window) in enumerate(zip(solid, windows, strict=True), 1):
        part = _fine(window, around)
        here = _hit(geom, eye, directions[part])
        nearer = (here > 0) & (here < fine_depth[part] * TIE)
        points = eye + here[nearer][:, None] * directions[part][nearer]
        light = np.ceil(SHADES * np.clip(_normal(geom, points) @ LIGHT, 0, 1)).astype(np.uint8)
        fine_depth[part][nearer], owner[part][nearer] = here[nearer], number
        fine_color[part][nearer] = (255 * geom.color * BRIGHTNESS[:, None]).astype(np.uint8).take(light, 0)
    _outline(owner, fine_color)
    if owner.size:
        color[around] = np.asarray(Image.fromarray(fine_color).reduce(SMOOTH))
    return color


def _around(windows: Sequence[Window]) -> Window:
    """The part of the picture that holds all of them, and an outline."""
    rows, columns = zip(*windows, strict=True) if windows else ((), ())
    return _span(rows, HEIGHT), _span(columns, WIDTH)


def _span(parts: Sequence[slice], length: int) -> slice:
    seen = [part for part in parts if part.start < part.stop]
    if not seen:
        return slice(0, 0)
    return slice(max(0, min(part.start for part in seen) - 1), min(length, max(part.stop for part in seen) + 1))


def _fine(window: Window, within: Window = (slice(0, 0), slice(0, 0))) -> Window:
    """Where the parts of a window's pixels are among those of the picture, or of another window."""
    rows, columns = (
        slice(SMOOTH * (part.start - whole.start), SMOOTH * (part.stop - whole.start))
        for part, whole in zip(window, within, strict=True)
    )
    return rows, columns


def _parts(pixels: Any) -> Any:
    """Each pixel as often as it has parts."""
    return pixels.repeat(SMOOTH, 0).repeat(SMOOTH, 1)


def _floor(plane: Shapes, solid: list[Shapes], camera: Camera, depth: np.ndarray, color: np.ndarray) -> None:
    """A checkered plane without end, seen from its upper side, that fades with the distance.

    Shadows fall straight down: they tell how high above the floor a foot is.
    """
    normal = plane.rotation[:, 2]
    slope = camera.rays @ normal.astype(np.float32)
    below = np.flatnonzero((slope < 0).any(1))
    if (camera.eye - plane.position) @ normal <= 0 or not below.size:
        return
    lower = np.s_[below[0] : below[-1] + 1]
    with np.errstate(divide="ignore"):
        here = np.float32((plane.position - camera.eye) @ normal) / slope[lower]
    seen = (here > 0) & (here < depth[lower])
    square = _round_number(0.6 * TANGENT * camera.distance)
    dark = np.zeros(here.shape, np.int8)
    for axis in plane.rotation[:, 0], plane.rotation[:, 1]:
        start = np.float32((camera.eye - plane.position) @ axis / square % 2)
        place = np.clip(here, 0, 1e3 * camera.distance) * (camera.rays[lower] @ (axis / square).astype(np.float32))
        dark ^= (np.floor(start + place).astype(np.int32) & 1).astype(np.int8)
    far = np.clip((here / camera.distance - 1) / 1.5, 0, 1)
    kind = dark + 2 * np.ceil((FADES - 1) * far).astype(np.int8)
    for geom, (rows, columns) in zip(solid, _windows(camera, solid, plane), strict=True):
        rows = slice(max(rows.start, lower.start) - lower.start, max(rows.stop, lower.start) - lower.start)
        points = camera.eye.astype(np.float32) + here[rows, columns, None] * camera.rays[lower][rows, columns]
        shaded = np.isfinite(_hit(geom, points, normal.astype(np.float32)))
        kind[rows, columns][shaded] = kind[rows, columns][shaded] % (2 * FADES) + 2 * FADES
    fade = np.linspace(0, 1, FADES)[:, None, None]
    colors = (FLOOR + fade * (np.array(BACKGROUND) - FLOOR)).reshape(2 * FADES, 3)
    colors = np.concatenate([colors, colors - SHADOW * (1 - np.repeat(fade[:, 0], 2, 0))]).astype(np.uint8)
    np.copyto(color[lower], colors.take(kind, 0), where=seen[..., None])
    np.copyto(depth[lower], here, where=seen)


def _round_number(size: float) -> float:
    """The nearest of ..., 0.1, 0.2, 0.5, 1, 2, 5, ..."""
    power = 10.0 ** np.floor(np.log10(size))
    return float(power * min((1, 2, 5, 10), key=lambda digit: abs(np.log(size / power / digit))))


def _outline(owner: np.ndarray, color: np.ndarray) -> None:
    """Darkens the last part of a pixel before another geom, or none, begins, to the right or below."""
    right, below = owner[:, 1:] != owner[:, :-1], owner[1:] != owner[:-1]
    color[:, 1:][right] = OUTLINE
    color[1:][below] = OUTLINE


def _half_lengths(scene: Shapes) -> np.ndarray:
    """Half of a line along each geom's z axis from which no point of it is further than `_girths`. `[...]`."""
    return np.where((scene.kind == CAPSULE) | (scene.kind == CYLINDER), scene.size[..., 1], 0.0)


def _girths(scene: Shapes) -> np.ndarray:
    return np.where(scene.kind == BOX, np.linalg.norm(scene.size, axis=-1), scene.size[..., 0])


def _ends(geom: Shapes) -> np.ndarray:
    """The ends `[2, 3]` of that line of one geom."""
    return geom.position + np.array([[-1.0], [1.0]]) * _half_lengths(geom) * geom.rotation[:, 2]


def _windows(camera: Camera, solid: Sequence[Shapes], plane: Shapes | None = None) -> list[Window]:
    """For each geom the rows and columns outside of which it is not seen, or its shadow on the plane.

    It lies in the balls around its ends and between them, and each ball in a cube.
    """
    ends, radius = np.array([_ends(geom) for geom in solid]).reshape(-1, 2, 3), np.array([_girths(x) for x in solid])
    if plane is not None:
        normal = plane.rotation[:, 2]
        ends = ends - ((ends - plane.position) @ normal)[..., None] * normal
    corners = CORNERS @ camera.axes * radius[:, None, None, None]
    places = camera.project(ends[:, :, None] + corners).reshape(-1, 16, 3)
    near = places[:, :, 2].min(1) <= 0.01 * camera.distance
    size = np.array([WIDTH, HEIGHT])
    low, high = (
        np.clip(place, 0, size) for place in (np.floor(places[:, :, :2].min(1)), np.ceil(places[:, :, :2].max(1)))
    )
    low, high = np.where(near[:, None], 0, low).astype(int), np.where(near[:, None], size, high).astype(int)
    return [(slice(top, bottom), slice(left, right)) for (left, top), (right, bottom) in zip(low, high, strict=True)]


def _hit(geom: Shapes, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """How often `direction` must be added to `origin` to enter the geom; inf where it is missed. Both `[..., 3]`.

    It is less than 0 where the geom, or a part of it, lies behind the origin.
    """
    base, axis = geom.position.astype(np.float32), geom.rotation[:, 2].astype(np.float32)
    radius, half = np.float32(geom.size[0]), np.float32(geom.size[1])
    start = origin - base
    with np.errstate(divide="ignore", invalid="ignore"):
        if geom.kind == BOX:
            return _box(geom, start, direction)
        a, b, c = np.vecdot(direction, direction), np.vecdot(start, direction), np.vecdot(start, start) - radius**2
        if geom.kind == SPHERE:
            return _first_root(a, b, c)
        along, height = direction @ axis, start @ axis
        here = _first_root(a - along**2, b - along * height, c - height**2)  # the side, without an end
        here = np.where(np.abs(height + here * along) <= half, here, np.inf)
        for end in (-half, half):
            if geom.kind == CAPSULE:  # as if the ball lay at the geom's position, and the ray began elsewhere
                there = _first_root(a, b - end * along, c - 2 * end * height + end**2)
            else:
                there = _disc(start, direction, axis, end, radius)
            here = np.minimum(here, there)
        return here


def _disc(
    start: np.ndarray, direction: np.ndarray, axis: np.ndarray, height: np.float32, radius: np.float32
) -> np.ndarray:
    depth = (height - start @ axis) / (direction @ axis)
    point = start + depth[..., None] * direction
    return np.where(np.vecdot(point, point) - height**2 <= radius**2, depth, np.inf)


def _box(geom: Shapes, start: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Inside all three pairs of sides at once."""
    turn, half = geom.rotation.astype(np.float32), geom.size.astype(np.float32)
    start, direction = start @ turn, direction @ turn
    sides = np.stack(np.broadcast_arrays((-half - start) / direction, (half - start) / direction))
    enter, leave = sides.min(0).max(-1), sides.max(0).min(-1)
    return np.where(enter <= leave, enter, np.inf)


def _first_root(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The lesser root of a x^2 + 2 b x + c; inf where there is none."""
    root = (-b - np.sqrt(b * b - a * c)) / a
    return np.where(np.isfinite(root), root, np.inf)


def _normal(geom: Shapes, points: np.ndarray) -> np.ndarray:
    """The directions `[n, 3]` away from the geom at points of its surface."""
    turn, size = geom.rotation.astype(np.float32), geom.size.astype(np.float32)
    local = (points - geom.position.astype(np.float32)) @ turn
    radius, half = size[0], size[1]
    if geom.kind == BOX:
        face = np.abs(local / size).argmax(1)
        outward = np.eye(3, dtype=np.float32)[face] * np.sign(local)
    elif geom.kind == CYLINDER:
        on_end = np.abs(local[:, 2]) > half - 1e-3 * radius
        local[:, 2] = np.where(on_end, np.sign(local[:, 2]), 0)
        local[:, :2] = np.where(on_end[:, None], 0, local[:, :2] / radius)
        outward = local
    else:
        if geom.kind == CAPSULE:
            local[:, 2] -= np.clip(local[:, 2], -half, half)
        outward = local / radius
    return outward @ turn.T
