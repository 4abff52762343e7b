"""The cart-pole to swing up: against MuJoCo's physics of the same shapes, and what it pays by hand."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from purerl import envs
from purerl.envs.control import CartPoleState, accelerations

KEY = jax.random.key(0)
ENV = envs.make("control/cartpole_swingup")
PARAMS = ENV.default_params
# Capsules of water's density, as in the env of the paper: a cart of 10.47 kg and a pole of 5.02 kg.
XML = """
<mujoco>
  <compiler inertiafromgeom="true"/>
  <default><joint damping="1"/><geom contype="0" conaffinity="0" density="1000"/></default>
  <option gravity="0 0 -9.81" integrator="RK4" timestep="0.02"/>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0"/>
      <geom type="capsule" euler="0 90 0" size="0.1 0.1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 -1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 -0.6" size="0.049"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slider" gear="100" ctrlrange="-3 3"/></actuator>
</mujoco>
"""


def state(x=0.0, angle=0.0, x_velocity=0.0, angle_velocity=0.0, time=0):
    return CartPoleState(*map(jnp.float32, (x, angle, x_velocity, angle_velocity)), jnp.int32(time))


def test_moves_as_in_mujoco():
    """Fifty steps of random forces: positions and velocities stay within a percent."""
    model = mujoco.MjModel.from_xml_string(XML)
    np.testing.assert_allclose(model.body_mass[1:], [PARAMS.cart_mass, PARAMS.pole_mass], rtol=1e-3)
    np.testing.assert_allclose(model.body_inertia[2].max(), PARAMS.pole_inertia, rtol=5e-3)
    data, rng, step = mujoco.MjData(model), np.random.default_rng(0), jax.jit(ENV.step)
    mine = state(0.1, 0.4, -0.2, 0.3)
    data.qpos[:], data.qvel[:] = (0.1, 0.4), (-0.2, 0.3)
    swung = []
    for _ in range(50):
        action = rng.uniform(-0.6, 0.6, 1)
        data.ctrl[:] = action
        for _ in range(2):
            mujoco.mj_step(model, data)
        _, mine, *_ = step(KEY, mine, jnp.asarray(action, jnp.float32), PARAMS)
        swung.append(abs(data.qpos[1]))
    np.testing.assert_allclose([*mine[:4]], [*data.qpos, *data.qvel], rtol=0.01, atol=0.01)
    assert max(swung) > 0.3


def test_energy_is_kept_without_damping_and_force():
    """Kinetic and potential, of cart and rod, over a hundred steps of a high swing."""
    params = PARAMS._replace(damping=0.0)
    step, now = jax.jit(ENV.step), state(0.0, 2.8)
    half = params.pole_length / 2

    def energy(s):
        speed_x = s.x_velocity + half * np.cos(s.angle) * s.angle_velocity
        speed_z = half * np.sin(s.angle) * s.angle_velocity
        moving = params.cart_mass * s.x_velocity**2 + params.pole_mass * (speed_x**2 + speed_z**2)
        turning = params.pole_inertia * s.angle_velocity**2
        return (moving + turning) / 2 - params.pole_mass * params.gravity * half * np.cos(s.angle)

    before = energy(now)
    for _ in range(100):
        _, now, *_ = step(KEY, now, jnp.zeros(1), params)
    assert abs(now.angle_velocity) > 0.1
    np.testing.assert_allclose(energy(now), before, rtol=1e-3)


def test_hanging_at_rest_stays_and_a_push_turns_the_pole_back():
    np.testing.assert_allclose(accelerations(state(), jnp.float32(0.0), PARAMS), [0.0, 0.0], atol=1e-6)
    cart, pole = accelerations(state(), jnp.float32(10.0), PARAMS)
    assert cart > 0 > pole


@pytest.mark.parametrize(
    ("x", "angle", "expected"),
    [(0.0, np.pi, 1.0), (0.0, 0.0, np.exp(-4)), (0.6, np.pi, np.exp(-1)), (-0.6, np.pi / 2, np.exp(-1))],
)
def test_rewards_by_hand(x, angle, expected):
    """The tip at its place, twice its length below, and a length aside or below; less .01 of the action's square."""
    step = jax.jit(ENV.step)
    still = PARAMS._replace(gravity=0.0, gear=0.0)
    for action in (0.0, 2.0):
        reward = step(KEY, state(x, angle), jnp.full(1, action), still)[2]
        np.testing.assert_allclose(reward, expected - 0.01 * action**2, atol=1e-5)


def test_observation_limits_and_ends():
    step = jax.jit(ENV.step)
    obs, after, _, terminated, truncated = step(KEY, state(2.49, 1.0, 5.0, 0.0, 198), jnp.zeros(1), PARAMS)
    assert after.x == PARAMS.track and after.x_velocity == 0 and not terminated and not truncated
    np.testing.assert_allclose(
        obs, [after.x, np.sin(after.angle), np.cos(after.angle), after.x_velocity, after.angle_velocity], rtol=1e-5
    )
    assert step(KEY, after, jnp.zeros(1), PARAMS)[4] and envs.max_episode_steps(ENV, PARAMS) == 200
    start = jax.vmap(lambda key: ENV.reset(key, PARAMS)[0])(jax.random.split(KEY, 500))
    np.testing.assert_allclose(start[:, [0, 1, 3, 4]].std(0), [0.1] * 4, rtol=0.15)
