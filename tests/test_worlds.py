"""Where the ready-made MDPs lead, and how often a table leads where."""

import jax
import jax.numpy as jnp
import numpy as np

from purerl import mdp


def after(model: mdp.MDP, state: int, action: int) -> dict[int, float]:
    """The probability of each state that may follow."""
    chances: dict[int, float] = {}
    for following, probability in zip(model.successor[state, action], model.probability[state, action], strict=True):
        chances[int(following)] = chances.get(int(following), 0.0) + float(probability)
    return chances


def expect(chances: dict[int, float], expected: dict[int, float]) -> None:
    assert chances.keys() == expected.keys()
    np.testing.assert_allclose([chances[state] for state in expected], list(expected.values()), rtol=1e-6)


def test_a_slip_is_to_the_side() -> None:
    """As meant with 0.8, to either side with 0.1; a wall and the edge are stayed at. Actions up, right, down, left."""
    model = mdp.gridworld()
    expect(after(model, 0, 1), {1: 0.8, 0: 0.1, 10: 0.1})  # up is the edge
    expect(after(model, 2, 2), {2: 0.8, 1: 0.1, 3: 0.1})  # below is a wall
    expect(after(model, 45, 1), {45: 0.9, 55: 0.1})  # ahead and above are walls


def test_frozen_lake_slips_by_a_third() -> None:
    """Actions left, down, right, up: from the start to the right, or down, or up, which is the edge."""
    expect(after(mdp.frozen_lake(), 0, 2), {1: 1 / 3, 4: 1 / 3, 0: 1 / 3})
    expect(after(mdp.frozen_lake(slippery=False), 0, 2), {1: 1.0})


def test_unequal_chances() -> None:
    """Starts and steps with probabilities .6, .3 and .1, within five standard deviations of 20,000 draws."""
    chances = np.array([0.6, 0.3, 0.1])
    model = mdp.MDP(
        successor=jnp.array([[[2, 0, 1]]] * 3),
        probability=jnp.asarray(np.tile(chances, (3, 1, 1)), jnp.float32),
        reward=jnp.array([[[2.0, 0.0, 1.0]]] * 3),
        terminal=jnp.zeros(3, bool),
        start=jnp.asarray(chances, jnp.float32),
    )
    env, keys = mdp.Tabular(model), jax.random.split(jax.random.key(0), 20_000)
    starts, states = jax.vmap(env.reset, (0, None))(keys, env.default_params)
    steps = jax.vmap(env.step, (0, 0, None, None))(keys, states, jnp.int32(0), env.default_params)
    np.testing.assert_array_equal(steps[0], steps[2])
    for drawn, expected in ((starts, chances), (steps[0], chances[[1, 2, 0]])):
        np.testing.assert_allclose(np.bincount(drawn) / 20_000, expected, atol=5 * 0.5 / 20_000**0.5)
