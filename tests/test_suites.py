"""What every suite of environments must keep to: one set of tests, run on each module in `suites.SUITES`."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from purerl import envs, mdp, render
from purerl.envs import brax, control, gymnax, protocol
from purerl.envs.mdp import worlds
from purerl.envs.suites import SUITES
from tests.test_conformance import Patient
from tests.toy_envs import Chain

KEY = jax.random.key(0)
QUICK_BODIES = ("brax/fast", "brax/inverted_pendulum")  # the others are traced for seconds each


def theirs(suite: ModuleType) -> Any:
    """An object of the suite's own library, as a user has it at hand."""
    if suite is gymnax:
        return importlib.import_module("gymnax").make("CartPole-v1")[0]
    if suite is brax:
        return importlib.import_module("brax.envs").get_environment("fast")
    if suite is control:
        return control.CartPoleSwingUp()
    return mdp.Tabular(mdp.random_walk(), time_limit=10)


# Tests of a suite on one worker, which imports its library and makes its environments once.
by_suite = pytest.mark.parametrize(
    "suite",
    [pytest.param(suite, marks=pytest.mark.xdist_group(suite.__name__), id=suite.__name__) for suite in SUITES],
)


@by_suite
def test_contract(suite: ModuleType) -> None:
    expected = {
        "names": [],
        "make": ["name"],
        "adapts": ["env"],
        "adapt": ["env"],
        "draw": ["path", "env", "params", "states", "returns"],
    }
    assert {name: list(inspect.signature(getattr(suite, name)).parameters) for name in expected} == expected
    assert [other.PREFIX for other in SUITES].count(suite.PREFIX) == 1
    names = suite.names()
    assert names and len(set(names)) == len(names) and all(isinstance(name, str) for name in names)
    assert all(name.startswith(suite.PREFIX) for name in names)
    assert set(names) <= set(envs.names())
    # Of all prefixes that fit, the longest is meant.
    assert not [n for n in names for x in SUITES if len(x.PREFIX) > len(suite.PREFIX) and n.startswith(x.PREFIX)]


@by_suite
def test_every_name_makes_an_env_of_the_suite(suite: ModuleType) -> None:
    """Traced only; nothing runs."""
    for name in suite.names() if suite is not brax else QUICK_BODIES:
        check_made(suite, name)


@pytest.mark.slow
def test_every_body_of_brax_makes_an_env() -> None:
    for name in brax.names():
        check_made(brax, name)


def check_made(suite: ModuleType, name: str) -> None:
    env = envs.make(name)
    assert env is envs.make(name), name
    assert hash(env) is not None and protocol.missing(env) == [], name
    assert envs.suite_of(env) is suite and suite.adapt(env) is env, name
    with jax.numpy_rank_promotion("allow"):  # gymnax's Swimmer relies on it
        envs.check(env)


@by_suite
def test_adapts_its_own_objects_alone(suite: ModuleType) -> None:
    env = theirs(suite)
    assert [other for other in SUITES if other.adapts(env)] == [suite]
    made = suite.adapt(env)
    assert envs.suite_of(made) is suite and protocol.missing(made) == []
    envs.check(made)
    assert not any(suite.adapts(other) for other in (Chain(), object(), "CartPole-v1", None, 3))


def episode(env: Any, num_steps: int) -> tuple[list[Any], np.ndarray]:
    """The start and the states after each of num_steps steps of action 0, as numpy, and the return at each."""
    params, rewards = env.default_params, [0.0]
    _, state = jax.jit(env.reset)(KEY, params)
    step = jax.jit(env.step)
    action = np.zeros(env.action_space(params).shape, env.action_space(params).dtype)
    states = [jax.device_get(state)]
    for _ in range(num_steps):
        _, state, reward, _, _ = step(KEY, state, action, params)
        states.append(jax.device_get(state))
        rewards.append(float(reward))
    return states, np.cumsum(rewards)


def check_gif(path: Path, num_frames: int) -> None:
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "GIF" and image.n_frames == num_frames and min(image.size) > 50


# Envs of which no state lies anywhere: bandits, and chains that ask what they once said.
UNSEEN = ("Bandit", "MemoryChain", "UmbrellaChain", "DiscountingChain")


@pytest.mark.parametrize(
    "suite",
    [
        pytest.param(gymnax, id="gymnax", marks=pytest.mark.thorough),
        pytest.param(control, id="control"),
        pytest.param(worlds, id="worlds"),
    ],
)
@pytest.mark.xdist_group(gymnax.__name__)
def test_every_name_is_drawn_or_refused(suite: ModuleType, tmp_path: Path) -> None:
    """Two or three steps of each: a GIF of at least two pictures, or one sentence and no file."""
    for number, name in enumerate(suite.names()):
        env, path = envs.make(name), tmp_path / str(number)
        with jax.numpy_rank_promotion("allow"):  # gymnax's Swimmer relies on it
            states, returns = episode(env, 2)
        if any(word in name for word in UNSEEN):
            with pytest.raises(
                ValueError, match=r"^[\w-]+ has nothing that lies anywhere, so there is nothing to draw\.$"
            ):
                suite.draw(path, env, env.default_params, states, returns)
            assert not list(tmp_path.glob(f"{number}*")), name
        else:
            assert suite.draw(path, env, env.default_params, states, returns) == tmp_path / f"{number}.gif", name
            check_gif(tmp_path / f"{number}.gif", 2 if name == "CartPole-v1" else 3)


@by_suite
def test_an_episode_is_no_video(suite: ModuleType, tmp_path: Path) -> None:
    env = suite.adapt(theirs(suite)) if suite is not brax else envs.make("brax/inverted_pendulum")
    with pytest.raises(ValueError, match=r"^An episode is written as \.gif( or \.html)?, but not as \.mp4\.$"):
        suite.draw(tmp_path / "episode.mp4", env, env.default_params, [], np.zeros(1))


@pytest.mark.xdist_group(brax.__name__)
def test_brax_draws_bodies_and_writes_its_own_page(tmp_path: Path) -> None:
    """The page is three.js's and comes on request alone. tests/test_drawing.py draws all robots."""
    env = envs.make("brax/inverted_pendulum")
    with jax.numpy_rank_promotion("allow"):
        states, returns = episode(env, 4)
        picture, page = (
            brax.draw(tmp_path / name, env, env.default_params, states, returns) for name in ("pole", "pole.html")
        )
    assert (picture, page) == (tmp_path / "pole.gif", tmp_path / "pole.html")
    check_gif(picture, 3)  # 0.02 s a step: each second state
    text = page.read_text()
    assert "<html>" in text and "new Viewer" in text and len(text) > 2000


@pytest.mark.xdist_group(brax.__name__)
def test_brax_says_what_it_cannot_draw(tmp_path: Path) -> None:
    env = envs.make("brax/fast")
    with pytest.raises(ValueError, match=r"^This Brax env has no physics, so there is nothing to draw\.$"):
        brax.draw(tmp_path / "fast", env, env.default_params, [], np.zeros(0))
    assert not list(tmp_path.iterdir())


def test_a_table_without_a_map_cannot_be_drawn(tmp_path: Path) -> None:
    env = mdp.Tabular(mdp.random_walk())
    with pytest.raises(ValueError, match=r"^This table does not say where its states lie: give Tabular a map"):
        worlds.draw(tmp_path / "walk", env, env.default_params, *episode(env, 2))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^A map of 6 cells with 1 walls is none of 7 states\.$"):
        mdp.Tabular(mdp.random_walk(), rows=("T.S#.G",))


def test_ones_own_env_cannot_be_drawn(tmp_path: Path) -> None:
    assert envs.suite_of(Chain()) is None
    with pytest.raises(ValueError, match="Chain is an env of your own, so there is no way known to draw it"):
        render.save(tmp_path / "chain", Patient, None, Patient.Config(), KEY)
    assert not list(tmp_path.iterdir())
