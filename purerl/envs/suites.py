"""The registry of suites: from a name or an object to an `Env`. A new suite is one module and one entry of `SUITES`.

A suite is a module with
    PREFIX         what its names begin with
    names()        every name that it knows
    make(name)     the `Env` of one of them
    adapts(env)    whether an object is of this suite
    adapt(env)     that object as an `Env`
    draw(path, env, params, states, returns)    an episode as a file, whose path it returns
"""

import difflib
import functools
from typing import Any

from purerl.envs import brax, control, gymnax, protocol
from purerl.envs.mdp import worlds
from purerl.envs.protocol import Env

SUITES: tuple[Any, ...] = (gymnax, control, worlds, brax)

# Libraries whose environments are Python objects that step on the host.
_HOST_LIBRARIES = {"gymnasium": "Gymnasium", "gym": "Gym", "dm_env": "dm_env", "dm_control": "dm_control"}
# What stands here for environments of Gymnasium by other names; None for no likeness.
_GYMNASIUM: dict[str, str | None] = {
    "Ant": "brax/ant",
    "BipedalWalker": None,
    "BipedalWalkerHardcore": None,
    "Blackjack": None,
    "CarRacing": None,
    "CliffWalking": "mdp/cliff_walking",
    "FrozenLake": "mdp/frozen_lake_4x4_slippery",
    "FrozenLake8x8": "mdp/frozen_lake_8x8_slippery",
    "HalfCheetah": "brax/halfcheetah",
    "Hopper": "brax/hopper",
    "Humanoid": "brax/humanoid",
    "HumanoidStandup": "brax/humanoidstandup",
    "InvertedDoublePendulum": "brax/inverted_double_pendulum",
    "InvertedPendulum": "brax/inverted_pendulum",
    "LunarLander": None,
    "LunarLanderContinuous": None,
    "Pusher": "brax/pusher",
    "Reacher": "brax/reacher",
    "Swimmer": "brax/swimmer",
    "Taxi": None,
    "Walker2d": "brax/walker2d",
}
_EXAMPLES = "CartPole-v1 or brax/hopper"
_LISTED = " `purerl list` shows all of them."


def make(env: Any) -> Env:
    """The `Env` of a name or an object.

    env: a gymnax name ("CartPole-v1"), a Brax name with an optional physics backend ("brax/hopper", which means
    "brax/hopper/spring"), the name of a Markov decision process ("mdp/cliff_walking") or of a control task of purerl's
    own ("control/cartpole_swingup"), a gymnax `Environment`, a Brax
    `Env` without time-limit or auto-reset wrappers (`Brax(env, episode_length)` sets its time limit), or an object of
    your own as in the docstring of `purerl.envs`.

    Raises ValueError for an unknown name (the nearest ones are given) and TypeError for an object that is none of
    these or whose `reset` and `step` disagree with its spaces (the field is named).
    """
    try:
        hash(env)
    except TypeError as error:
        raise TypeError(
            f"env must be hashable, because it is static, but {type(env).__name__} is not: {error}. Arrays belong "
            "into its default_params."
        ) from error
    return _make(env)


@functools.lru_cache(maxsize=256)
def _make(env: Any) -> Env:
    if isinstance(env, str):
        return _named(env)
    suite = suite_of(env)
    if suite is not None:
        adapted: Env = suite.adapt(env)
        return adapted
    missing = protocol.missing(env)
    if missing and (library := _host_library(env)):
        raise TypeError(_on_host(repr(env), library, _EXAMPLES))
    if isinstance(env, type):
        raise TypeError(f"{env!r} is a class: give an object of it, such as {env.__name__}().")
    if missing:
        raise TypeError(
            f"{env!r} is no environment: it lacks {', '.join(missing)} (purerl.envs.Env lists what is needed)."
        )
    protocol.check(env)
    checked: Env = env
    return checked


def _named(name: str) -> Env:
    # The longest prefix that fits: names of gymnax have none.
    suite = max((suite for suite in SUITES if name.startswith(suite.PREFIX)), key=lambda suite: len(suite.PREFIX))
    known = "/".join(name.split("/")[:2])
    if known not in suite.names():
        raise ValueError(_unknown(name))
    made: Env = suite.make(name)
    return made


def suite_of(env: Any) -> Any:
    """The suite that an object is of, or None where it is somebody's own."""
    return next((suite for suite in SUITES if suite.adapts(env)), None)


def names() -> list[str]:
    """Every environment name that `make` knows. Imports all suites' libraries, which takes seconds."""
    return [name for suite in SUITES for name in suite.names()]


def _host_library(env: Any) -> str | None:
    """The library on the host that an object, or its class, is of."""
    kinds = (env if isinstance(env, type) else type(env)).__mro__
    libraries = (_HOST_LIBRARIES.get(kind.__module__.split(".")[0]) for kind in kinds)
    return next(filter(None, libraries), None)


def _on_host(name: str, library: str, instead: str) -> str:
    needed = "which steps on the host; purerl needs one that steps on the device, in JAX, such as"
    return f"{name} is an env of {library}, {needed} {instead}.{_LISTED}"


def _unknown(name: str) -> str:
    stem = name.rpartition("-v")[0]
    if stem in _GYMNASIUM:
        return _on_host(name, "Gymnasium", _GYMNASIUM[stem] or _EXAMPLES)
    if stem.startswith("ALE/") or stem.endswith("NoFrameskip"):
        game = stem.removeprefix("ALE/").removesuffix("NoFrameskip") + "-MinAtar"
        return _on_host(name, "Gymnasium", game if game in names() else "Breakout-MinAtar")
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}."
    return f"There is no environment named {name!r}; {hint}{_LISTED}"
