"""The suite of purerl's own control tasks: "control/cartpole_swingup"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Box

PREFIX = "control/"


class CartPoleParams(NamedTuple):
    """In kg, m, s and N; damping in N s / m of the cart and N m s of the hinge."""

    cart_mass: Any = 10.47
    pole_mass: Any = 5.02
    pole_inertia: Any = 0.189  # about its centre of mass; it does not follow pole_length
    pole_length: Any = 0.6
    gravity: Any = 9.81
    damping: Any = 1.0
    gear: Any = 100.0  # force of an action of 1
    track: Any = 2.5  # how far the cart can go to either side
    time_limit: Any = 200


class CartPoleState(NamedTuple):
    """x: of the cart. angle: of the pole, 0 where it hangs down, counted towards positive x. Their velocities. time."""

    x: Array
    angle: Array
    x_velocity: Array
    angle_velocity: Array
    time: Array


class CartPoleSwingUp:
    """A pole that hangs from a cart and is to be swung up and held, by a force on the cart between -300 and 300 N.

    The observation is (x, sin angle, cos angle, velocity of x, of the angle). A step is 0.04 s and pays
    exp(-|tip - top|^2 / pole_length^2) - 0.01 action^2, where top is the tip's place of the upright pole at x = 0: the
    200 steps after which an episode is cut earn less than 200. Nothing terminates. At an end of the track the cart
    stops, of which the pole feels nothing.
    Source: the cart-pole of Chua et al. (2018), arXiv:1805.12114; masses and inertia are MuJoCo's of its shapes.
    """

    default_params = CartPoleParams()

    def observation_space(self, params: CartPoleParams) -> Box:
        return Box(-jnp.inf, jnp.inf, (5,))

    def action_space(self, params: CartPoleParams) -> Box:
        return Box(-3.0, 3.0, (1,))

    def reset(self, key: PRNGKey, params: CartPoleParams) -> tuple[Array, CartPoleState]:
        """At rest in the middle with the pole down, all four numbers disturbed by a deviation of 0.1."""
        x, angle, x_velocity, angle_velocity = 0.1 * jax.random.normal(key, (4,))
        state = CartPoleState(x, angle, x_velocity, angle_velocity, jnp.int32(0))
        return observe(state), state

    def step(
        self, key: PRNGKey, state: CartPoleState, action: Array, params: CartPoleParams
    ) -> tuple[Array, CartPoleState, Array, Array, Array]:
        before = observe(state)
        for _ in range(2):
            state = move(state, params.gear * action[0], params, 0.02)
        state = state._replace(time=state.time + 1)
        obs = observe(state)
        return obs, state, self.reward(before, action, obs, params), jnp.bool_(False), state.time >= params.time_limit

    def reward(self, obs: Array, action: Array, next_obs: Array, params: CartPoleParams) -> Array:
        """What a step pays, by the observation that it led to."""
        x, sin, cos = next_obs[:3]
        aside, below = x / params.pole_length + sin, 1 + cos  # from the tip to its place, in lengths of the pole
        return jnp.exp(-(aside**2) - below**2) - 0.01 * jnp.square(action[0])

    def max_episode_steps(self, params: CartPoleParams) -> Any:
        return params.time_limit


def observe(state: CartPoleState) -> Array:
    """The observation of a state, `[5]`."""
    angle = state.angle
    return jnp.stack([state.x, jnp.sin(angle), jnp.cos(angle), state.x_velocity, state.angle_velocity])


def accelerations(state: CartPoleState, force: Array, params: CartPoleParams) -> tuple[Array, Array]:
    """Of cart and angle, by Lagrange's equations of a symmetric body that hangs by its end from a cart."""
    arm = params.pole_mass * params.pole_length / 2  # mass times the way from hinge to centre of mass
    sin, cos = jnp.sin(state.angle), jnp.cos(state.angle)
    mass, coupling = params.cart_mass + params.pole_mass, arm * cos
    inertia = params.pole_inertia + arm * params.pole_length / 2
    push = force - params.damping * state.x_velocity + arm * state.angle_velocity**2 * sin
    turn = -arm * params.gravity * sin - params.damping * state.angle_velocity
    determinant = mass * inertia - coupling**2
    return (inertia * push - coupling * turn) / determinant, (mass * turn - coupling * push) / determinant


def move(state: CartPoleState, force: Array, params: CartPoleParams, seconds: float) -> CartPoleState:
    """One step of the classical Runge-Kutta method; at an end of the track the cart is at rest."""

    def at(y: Array) -> CartPoleState:
        return CartPoleState(y[0], y[1], y[2], y[3], state.time)

    def slope(y: Array) -> Array:
        return jnp.stack([y[2], y[3], *accelerations(at(y), force, params)])

    start = jnp.stack(state[:4])
    first = slope(start)
    second = slope(start + seconds / 2 * first)
    third = slope(start + seconds / 2 * second)
    fourth = slope(start + seconds * third)
    state = at(start + seconds / 6 * (first + 2 * second + 2 * third + fourth))
    stopped = jnp.abs(state.x) > params.track
    return state._replace(
        x=jnp.clip(state.x, -params.track, params.track), x_velocity=jnp.where(stopped, 0.0, state.x_velocity)
    )


NAMES: dict[str, Callable[[], CartPoleSwingUp]] = {"control/cartpole_swingup": CartPoleSwingUp}


def names() -> list[str]:
    """Every name that `make` knows."""
    return list(NAMES)


def make(name: str) -> CartPoleSwingUp:
    """The environment of one of `names`."""
    return NAMES[name]()


def adapts(env: Any) -> bool:
    """Whether an object is of this suite."""
    return isinstance(env, CartPoleSwingUp)


def adapt(env: CartPoleSwingUp) -> CartPoleSwingUp:
    """The env itself: it needs nothing."""
    return env


def draw(path: Path, env: CartPoleSwingUp, params: CartPoleParams, states: list[Any], returns: np.ndarray) -> Path:
    """Writes an episode as a GIF and returns its path. Raises ValueError for a path that does not end in .gif."""
    from purerl.envs.drawing import classic, movie

    return movie.save(movie.place(path), "swing-up", lambda i: classic.swing_up(states[i], params), returns, 1 / 25)
