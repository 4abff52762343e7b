"""The mazes of the book and the prices of Pendulum: a good path, a world that changes, prices by hand."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dyna, samples
from purerl import dyna_q, mdp

KEY = jax.random.key(0)


def test_episodes_by_hand():
    """Three episodes of 5, 3 and 2 steps, the path good from the second on; and a seed that comes to no end."""
    lengths = np.zeros((2, 12))
    lengths[0, [4, 7, 9]] = 5, 3, 2
    good = np.zeros((2, 12), bool)
    good[0, 6:] = True
    of_each, until = dyna.episodes(lengths, good)
    np.testing.assert_array_equal(of_each[0, :4], [5, 3, 2, np.nan])
    assert np.isnan(of_each[1]).all() and until.tolist() == [2, dyna.EPISODES]


@pytest.mark.parametrize(("world", "steps"), [("maze", 14), ("right", 10), ("left", 16), ("both", 10)])
def test_shortest_ways(world, steps):
    """Of the mazes that change: ten steps by the gap on the right, sixteen by that on the left."""
    table = {"maze": mdp.dyna_maze(), "right": dyna.RIGHT, "left": dyna.LEFT, "both": dyna.BOTH}[world]
    value = mdp.optimal_value(table, 0.95)[np.argmax(table.start)]
    np.testing.assert_allclose(value, 0.95 ** (steps - 1), rtol=1e-5)


def test_a_good_path():
    """Fourteen steps; none is one that goes up from the start for ever."""
    up, right, down = range(3)
    q, place = np.zeros((54, 4)), 18
    for move in [right, down, down, right, right, up, *[right] * 5, up, up, up]:
        q[place, move] = 1
        place = int(mdp.dyna_maze().successor[place, move, 0])
    assert place == 8
    config = dyna.settings(10)
    assert dyna.is_good(jnp.asarray(q), config)
    q[18] = [1, 0, 0, 0]
    assert not dyna.is_good(jnp.asarray(q), config)


def test_a_training_goes_on_in_a_world_that_changed():
    """Walls are params: the same state, other ways. Q is carried over, and the first steps find the old way blocked."""
    config = dyna.settings(400, env=mdp.Tabular(dyna.RIGHT, 10_000), planning_steps=5, learning_rate=1.0)
    state, (reward, length, _) = dyna.steps_of(dyna_q.init(KEY, config), config, 400)
    assert reward.sum() > 3 and ((length > 0) == (reward > 0)).all()
    changed = config.replace(env_params=dyna.LEFT)
    after, (_, lengths, _) = dyna.steps_of(state, changed, 400)
    ends = np.flatnonzero(lengths)
    assert (np.asarray(lengths)[ends[1:]] >= 16).all() and (after.params != state.params).any()


@pytest.mark.thorough
def test_the_benchmark_by_its_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["dyna", "--num-seeds=2", f"--out={tmp_path}"])
    monkeypatch.setattr(dyna, "MAZE_STEPS", dict.fromkeys(dyna.PLANNING, 300))
    monkeypatch.setattr(dyna, "PLANNING", (0, 5))
    small = {
        name: (before, after, 50, 100, {"planning_steps": 2}) for name, (before, after, *_) in dyna.CHANGING.items()
    }
    monkeypatch.setattr(dyna, "CHANGING", small)
    dyna.main()
    lines = (tmp_path / "dyna.csv").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 1 + 2 * 2 + 4 * 2
    assert (tmp_path / "dyna.png").exists() and "shortcut maze, Dyna-Q+:" in capsys.readouterr().out


def test_prices_by_hand(tmp_path, monkeypatch, capsys):
    """At 30 the mean is above -200 for the first time, but does not stay; at 70 it does. -100 is never reached."""
    mean = [np.nan, -300, -150, -400, -250, -290, -180, -170, -190]
    returns = np.stack([np.array(mean) - 10, np.array(mean) + 10])
    curve = samples.Curve(np.arange(10, 100, 10), returns)
    assert samples.price(curve, -200) == 70 and samples.price(curve, -350) == 20
    assert np.isnan(samples.price(curve, -100))
    slower = {"mbpo": 1, "pets": 1, "sac": 3, "ppo": 5, "cem": 7}
    assert set(slower) == set(samples.METHODS)
    for name, times in slower.items():
        path = tmp_path / name / samples.ENV / "curve.csv"
        path.parent.mkdir(parents=True)
        rows = [f"{times * steps},{a},{b}" for steps, a, b in zip(curve.env_steps, *returns, strict=True)]
        path.write_text("\n".join(["# command: none", "env_steps,seed_0,seed_1", *rows]))
    monkeypatch.setattr(sys, "argv", ["samples", f"--curves={tmp_path}", f"--out={tmp_path / 'out'}"])
    samples.main()
    out = capsys.readouterr().out
    assert "pets | " in out and "-200: SAC takes 3.0 times PETS's env steps, bar 2: reached" in out
    assert (tmp_path / "out" / "samples.png").exists()
    with pytest.raises(SystemExit, match="train it first"):
        samples.read(tmp_path / "curve.csv")
