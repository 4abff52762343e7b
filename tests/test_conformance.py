"""What every algorithm module must keep to. One set of tests, run on each name in `purerl.ALGORITHMS`.

Compiled programs are built once per algorithm (`programs`) and shared by the tests, since compiling is what costs.
"""

import dataclasses
import functools
import importlib
import inspect
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax.interpreters import partial_eval

import purerl
from purerl import envs, render, runner
from purerl.core import rollout
from purerl.core.types import Policy
from purerl.run import policy_file
from tests import tiny
from tests.tiny import SEEDS, arrays, assert_same_bits, run
from tests.toy_envs import Chain


class Programs(NamedTuple):
    """Results of one algorithm's compiled programs."""

    algorithm: ModuleType
    config: Any
    keys: Any
    train: Any  # jitted train, vmapped over keys
    vmapped: Any  # its Result for all seeds
    many: runner.Run  # the same seeds through the runner: two devices, two seeds at once, one of them padding
    solo: runner.Run  # seed 1 alone through the runner

    @property
    def acts(self) -> bool:
        """False for a planner, which has no episodes, no env_state and nothing random."""
        return self.config.env_steps(self.config.num_updates) > 0

    @property
    def networks(self) -> list[str]:
        """Fields of the Config that take a network of the user's own: where there are any, weights are drawn."""
        return [field.name for field in dataclasses.fields(self.config) if field.metadata.get("network")]


# Those that share most of their file with another that is tried in every run, or compile for longest.
THOROUGH = ("sarsa", "a2c", "ddpg", "td3", "discrete_sac", "es", "mbpo", "pets")


# All tests of an algorithm on one worker, so that its programs are compiled once.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.xdist_group(name), *([pytest.mark.thorough] if name in THOROUGH else [])])
        for name in purerl.ALGORITHMS
    ],
)
def programs(request: pytest.FixtureRequest) -> Programs:
    algorithm = importlib.import_module(f"purerl.algorithms.{request.param}")
    config = tiny.config(algorithm)
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    train = jax.jit(jax.vmap(algorithm.train, (0, None)))
    return Programs(
        algorithm, config, keys, train, train(keys, config), run(algorithm, config), run(algorithm, config, (1,))
    )


def test_contract(programs: Programs) -> None:
    algorithm = programs.algorithm
    parameters = {
        name: list(inspect.signature(getattr(algorithm, name)).parameters)
        for name in ("init", "update", "policy", "train")
    }
    assert parameters["init"] == parameters["train"] == ["key", "config"]
    assert parameters["update"] == ["state", "config"]
    assert parameters["policy"] == ["state", "config", "deterministic"]
    assert dataclasses.is_dataclass(algorithm.Config)
    assert issubclass(algorithm.State, tuple) and {"key", "params", "updates"} <= set(algorithm.State._fields)
    assert algorithm.ACTIONS
    assert "arXiv" in algorithm.__doc__ or "doi" in algorithm.__doc__


def test_every_field_is_documented(programs: Programs) -> None:
    from purerl.core.types import field_docs

    fields = {field.name for field in dataclasses.fields(programs.algorithm.Config)}
    assert set(field_docs(programs.algorithm.Config)) == fields


def test_result_shapes(programs: Programs) -> None:
    state, metrics = programs.vmapped
    episodes = {"episodes", "episode_return", "episode_length"}
    assert episodes <= set(metrics) if programs.acts else not episodes & set(metrics)
    assert all(x.shape == (len(SEEDS), programs.config.num_updates) for x in metrics.values())
    assert programs.config.num_updates >= 4
    np.testing.assert_array_equal(state.updates, programs.config.num_updates)
    if programs.acts:
        assert programs.config.env_steps(programs.config.num_updates) <= programs.config.total_timesteps


@pytest.mark.parametrize("large", [False, True])
def test_update_keeps_the_types_of_the_state(programs: Programs, large: bool) -> None:
    """A checkpoint forgets which types are weak, so a run that goes on from one would be another program.

    Optimisers treat large networks in another way.
    """
    sizes = [field.name for field in dataclasses.fields(programs.config) if field.name.endswith("hidden_sizes")]
    config = programs.config.replace(**dict.fromkeys(sizes, (512, 512))) if large else programs.config
    if large and not sizes:
        return
    state = jax.eval_shape(programs.algorithm.init, programs.keys[0], config)
    after, _ = jax.eval_shape(programs.algorithm.update, state, config)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        assert not x.weak_type and not y.weak_type, f"{name} is weakly typed"


def test_an_update_hands_on_another_key(programs: Programs) -> None:
    """Otherwise each would draw what the last one drew."""
    if not programs.acts:
        return
    init, update = programs.algorithm.init, programs.algorithm.update
    keys = jax.jit(lambda key: [(s := init(key, programs.config)).key, update(s, programs.config)[0].key])
    before, after = (jax.random.key_data(key) for key in keys(programs.keys[0]))
    assert (before != after).any()


def test_seeds_differ_in_network_and_data(programs: Programs) -> None:
    key_data = np.asarray(jax.vmap(jax.random.key_data)(programs.keys))
    assert len(np.unique(key_data, axis=0)) == len(SEEDS)
    states = programs.many.states
    if not programs.acts:
        assert all((x[0] == x[1]).all() for x in arrays(states.params))
        return
    # A table, or a weight for each feature, starts with the same value everywhere: what differs is what was learned.
    if programs.networks:
        states = jax.jit(jax.vmap(programs.algorithm.init, (0, None)))(programs.keys, programs.config)
    # Who plays whole episodes keeps none between updates.
    for name in {"params", "env_state"} & set(states._fields):
        assert any((x[0] != x[1]).any() for x in arrays(getattr(states, name))), name
    assert any((x[0] != x[1]).any() for x in arrays(programs.vmapped.metrics))


def test_same_key_same_bits_in_one_trace(programs: Programs) -> None:
    """The same once more, then each number of the Config changed in turn, and nothing compiled anew."""
    assert_same_bits(programs.train(programs.keys, programs.config), programs.vmapped)
    moved = [
        name for name, other in other_numbers(programs.config).items() if differs(programs, programs.config, other)
    ]
    assert moved
    assert programs.train._cache_size() == 1


def other_numbers(config: Any) -> dict[str, Any]:
    """For each traced number of a Config, the Config with another value of it, half as large where that is allowed."""
    others = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("pytree_node", True) and isinstance(value, int | float) and value:
            low = field.metadata.get("low")
            half = type(value)(value / 2)
            others[field.name] = config.replace(**{field.name: half if low is None or half >= low else 2 * value})
    return others


def differs(programs: Programs, config: Any, other: Any) -> bool:
    left, right = (arrays(programs.train(programs.keys, x).metrics) for x in (config, other))
    return any((x != y).any() for x, y in zip(left, right, strict=True))


@pytest.mark.thorough
def test_old_keys_give_the_same_bits(programs: Programs) -> None:
    """jax.random.PRNGKey, as in most tutorials, in place of jax.random.key."""
    old = jnp.stack([jax.random.PRNGKey(seed) for seed in SEEDS])
    assert_same_bits(jax.jit(jax.vmap(programs.algorithm.train, (0, None)))(old, programs.config), programs.vmapped)


def test_vmapped_seed_against_its_solo_run(programs: Programs) -> None:
    """vmap batches the matrix products, which may add in another order: within 1e-3 after these few updates."""
    for name, x in programs.solo.metrics.items():
        np.testing.assert_allclose(programs.vmapped.metrics[name][1], x[0], rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(programs.many.metrics[name][1], x[0], rtol=1e-3, atol=1e-4, err_msg=name)


def test_vmaps_over_every_traced_field(programs: Programs) -> None:
    """All of them at once, the env's physics included, and each changes the result's inputs: shapes only."""
    algorithm, config = programs.algorithm, with_params(programs.config)
    batched = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 2), config)
    _, metrics = jax.eval_shape(jax.vmap(algorithm.train, (None, 0)), programs.keys[0], batched)
    assert {x.shape for x in metrics.values()} == {(2, config.num_updates)}


def test_every_traced_field_is_used(programs: Programs) -> None:
    """With every switch on, or under the choice that `tiny.READ_UNDER` names; of the env's params, any."""
    config = other_switches(with_params(programs.config))
    read_under = tiny.READ_UNDER.get(programs.algorithm.__name__.split(".")[-1], {})
    params = {name for name in names(config) if name.startswith(".env_params")}
    without = unused(programs, config)
    assert params - without
    for name in without - params:
        assert name[1:] in read_under, name
        assert name not in unused(programs, config.replace(**read_under[name[1:]])), name


def names(config: Any) -> list[str]:
    """Of the traced fields, as paths."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(config)]


def unused(programs: Programs, config: Any) -> set[str]:
    """Traced fields that no part of a training's Result depends on."""
    leaves, structure = jax.tree.flatten(config)
    jaxpr = jax.make_jaxpr(lambda key, leaves: programs.algorithm.train(key, structure.unflatten(leaves)))(
        programs.keys[0], leaves
    )
    _, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.out_avals))
    return {name for name, is_used in zip(names(config), used[1:], strict=True) if not is_used}


def with_params(config: Any) -> Any:
    """The env's default params where their absence stood for them, so that they are inputs of the program."""
    return config.replace(env_params=envs.make(config.env).default_params)


def other_switches(config: Any) -> Any:
    """Every boolean switch on, so that the fields they guard are in use."""
    fields = [field.name for field in dataclasses.fields(config) if isinstance(getattr(config, field.name), bool)]
    return config.replace(**dict.fromkeys(fields, True))


@pytest.mark.thorough
def test_every_static_field_changes_the_program(programs: Programs) -> None:
    algorithm, config = programs.algorithm, programs.config
    name = algorithm.__name__.split(".")[-1]
    others, read_under = tiny.OTHERS.get(name, {}), tiny.READ_UNDER.get(name, {})
    whole, _ = program(algorithm, config)
    for field in dataclasses.fields(config):
        if field.metadata.get("pytree_node", True) or field.metadata.get("network"):
            continue  # an input of the program; or a network, which has tests of its own
        switched = config.replace(**read_under.get(field.name, {}))
        other = others.get(field.name) or another(field, getattr(config, field.name))
        before = whole if switched == config else program(algorithm, switched)[0]
        assert program(algorithm, switched.replace(**{field.name: other}))[0] != before, field.name


def program(algorithm: ModuleType, config: Any) -> tuple[str, Any]:
    """Everything that a training computes, as text, and the shapes of its Result."""
    jaxpr, result = jax.make_jaxpr(algorithm.train, return_shape=True)(jax.random.key(0), config)
    return "\n".join([str(jaxpr), *(str(np.asarray(x)) for x in constants(jaxpr))]), result


def constants(jaxpr: Any) -> Iterator[Any]:
    """Arrays that stand in a program as they are, whose values its text leaves out."""
    yield from jaxpr.consts
    for value in (value for equation in jaxpr.jaxpr.eqns for value in equation.params.values()):
        if hasattr(value, "consts"):
            yield from constants(value)


def another(field: dataclasses.Field, value: Any) -> Any:
    """A different valid value of a static field."""
    if field.name == "env":
        return "mdp/gridworld" if value.startswith("mdp/") else "Acrobot-v1"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2
    return (
        (*value, 8)
        if isinstance(value, tuple)
        else next(choice for choice in field.metadata["choices"] if choice != value)
    )


def test_policy_acts_within_the_space(programs: Programs) -> None:
    env = envs.bind(programs.config)
    obs = jnp.ones(env.obs_space.shape, env.obs_space.dtype)
    state = jax.tree.map(lambda x: x[0], jax.device_get(programs.solo.states))

    def act(state: Any, key: Any) -> list[Any]:
        policies = [programs.algorithm.policy(state, programs.config, deterministic=x) for x in (True, False)]
        return [policy.to_units(policy.act(key, obs, policy.memory)[0]) for policy in policies]

    for action in jax.jit(act)(state, programs.keys[0]):
        if env.continuous:
            space = env.action_space
            assert action.shape == space.shape and (space.low <= action).all() and (action <= space.high).all()
        else:
            assert action.shape == () and 0 <= action < env.num_actions


def test_a_policy_file_acts_as_its_state(programs: Programs, tmp_path: Path) -> None:
    """Of a trained state, greedy and drawn: every array that the policy reads is in the file."""
    algorithm, config = programs.algorithm, programs.config
    state = jax.tree.map(lambda x: x[0], programs.solo.states)
    path = purerl.save_policy(tmp_path / "one.policy", algorithm, state, config)
    loaded_algorithm, loaded_config, loaded = policy_file.load(path)
    assert loaded_algorithm is algorithm and loaded_config == config
    obs = jnp.ones(envs.bind(config).obs_space.shape, envs.bind(config).obs_space.dtype)

    def act(state: Any) -> list[Any]:
        policies = [algorithm.policy(state, config, deterministic=x) for x in (True, False)]
        return [policy.act(programs.keys[0], obs, policy.memory) for policy in policies]

    assert_same_bits(act(loaded), act(state))


class Own(nn.Module):
    """A network of the user's own."""

    num_outputs: int
    width: int = 5

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(self.num_outputs, name="own_head")(jnp.sin(nn.Dense(self.width, name="own_hidden")(x)))


def with_networks(programs: Programs, width: int = 5, extra: int = 0) -> Any:
    """The Config with a flax module in each of its network fields, `extra` outputs too many."""
    asked: dict[str, int] = {}

    def factory(name: str, num_outputs: int) -> Own:
        asked[name] = num_outputs
        return Own(num_outputs)

    recording = {name: functools.partial(factory, name) for name in programs.networks}
    jax.eval_shape(programs.algorithm.init, programs.keys[0], programs.config.replace(**recording))
    return programs.config.replace(**{name: Own(size + extra, width) for name, size in asked.items()})


def wide(num_outputs: int) -> Own:
    return Own(num_outputs, 7)


def own_kernels(state: Any) -> list[Any]:
    """The hidden kernels of all `Own` networks in a state's weights; that of an ensemble is one of more axes."""
    model = getattr(getattr(state, "model", None), "params", ())  # an ensemble beside the policy
    leaves = jax.tree_util.tree_leaves_with_path((state.params, model))
    return [x for path, x in leaves if "['own_hidden']['kernel']" in jax.tree_util.keystr(path)]


@pytest.mark.thorough
def test_trains_with_networks_of_ones_own(programs: Programs) -> None:
    if not programs.networks:
        assert not own_kernels(programs.solo.states)
        return
    algorithm, key = programs.algorithm, programs.keys[0]
    config = with_networks(programs)
    first = jax.jit(algorithm.init)(key, config)
    state, metrics = algorithm.train(key, config)
    assert len(own_kernels(state)) == len(programs.networks)
    assert all((x != y).any() for x, y in zip(own_kernels(first), own_kernels(state), strict=True))
    assert all(np.isfinite(x).all() for name, x in metrics.items() if not name.startswith("episode"))

    evaluation = purerl.evaluate(algorithm, state, config, key, num_episodes=2, max_steps=3)
    np.testing.assert_array_equal(evaluation.lengths, [3, 3])


@pytest.mark.thorough
def test_each_network_is_a_program_of_its_own(programs: Programs) -> None:
    """A factory stands for the module that it gives; the jit cache takes no network for another."""
    if not programs.networks:
        return
    narrow, module = (with_networks(programs, width) for width in (5, 7))
    factory = programs.config.replace(**dict.fromkeys(programs.networks, wide))
    texts = {}
    for config, width in ((narrow, 5), (module, 7), (factory, 7), (narrow, 5)):
        texts[width, config is factory], result = program(programs.algorithm, config)
        assert [x.shape[-1] for x in own_kernels(result.state)] == [width] * len(programs.networks)
    assert texts[7, False] == texts[7, True] != texts[5, False]


def test_a_network_that_does_not_fit_is_refused(programs: Programs) -> None:
    wrong = with_networks(programs, extra=1)
    for name in programs.networks:
        network = getattr(wrong, name)
        config = programs.config.replace(**{name: network})
        with pytest.raises(ValueError, match=rf"must give \[\d+\] .*gives \[{network.num_outputs}\]"):
            programs.algorithm.train(programs.keys[0], config)
        with pytest.raises(TypeError, match=r"must give a flax module for \d+ outputs, but gives None"):
            programs.algorithm.train(programs.keys[0], programs.config.replace(**{name: lambda num_outputs: None}))


@pytest.mark.parametrize(
    "seeds",
    [pytest.param((1,), id="one seed", marks=pytest.mark.thorough), pytest.param(SEEDS, id="sharded and vmapped")],
)
def test_interrupted_equals_whole(programs: Programs, seeds: tuple[int, ...], tmp_path: Path) -> None:
    """N updates, a checkpoint on disk, a new loop for the other M, in other chunks: every bit of the whole run."""
    whole = programs.solo if seeds == (1,) else programs.many
    first = run(programs.algorithm, programs.config, seeds, out=tmp_path / "run", loggers=[Interrupt])
    assert not first.finished and 0 < first.updates < programs.config.num_updates
    second = run(programs.algorithm, programs.config, seeds, out=tmp_path / "run", resume=True)
    assert second.finished
    assert_same_bits(second.states, whole.states)
    for name, x in whole.metrics.items():
        np.testing.assert_array_equal(np.concatenate([first.metrics[name], second.metrics[name]], axis=1), x)


class Interrupt:
    """A logger that sends SIGTERM with the first row."""

    def write(self, update: int, *row: Any) -> None:
        if update == 1:
            signal.raise_signal(signal.SIGTERM)

    def flush(self) -> None: ...

    def close(self) -> None: ...


# An algorithm whose policy remembers: it stays for one step of each episode, and then walks.
class Patient:
    """What of an algorithm module acts, for the chain of `toy_envs`."""

    @struct.dataclass
    class Config:
        env: Any = struct.field(pytree_node=False, default_factory=Chain)
        env_params: Any = None

    class State(NamedTuple):
        params: Any

    @staticmethod
    def init(key: Any, config: Any) -> Any:
        return Patient.State(jnp.zeros(1))

    @staticmethod
    def policy(state: Any, config: Any, *, deterministic: bool = True) -> Policy:
        def act(key: Any, obs: Any, steps: Any) -> tuple[Any, Any]:
            return (steps >= 1).astype(jnp.int32), steps + 1

        return Policy(jnp.int32(0), act, envs.bind(config).to_units)


def test_a_policy_that_remembers_is_evaluated_and_rendered() -> None:
    """Stay, then three steps right: 0 + 1 + 2 + 3. With no memory carried it would stay for ever."""
    config, key = Patient.Config(), jax.random.key(0)
    env, state = envs.bind(config), Patient.init(key, config)
    policy = Patient.policy(state, config)
    evaluation = jax.jit(lambda key: rollout.episodes(key, env, policy, 3))(key)
    np.testing.assert_array_equal(evaluation.returns, [6.0] * 3)
    np.testing.assert_array_equal(evaluation.lengths, [4] * 3)
    assert_same_bits(purerl.evaluate(Patient, state, config, key, num_episodes=3), evaluation)
    states, returns = render.episode(Patient, state, config, key, max_steps=8)
    np.testing.assert_array_equal(returns, [0.0, 0.0, 1.0, 3.0, 6.0])
    assert [int(cell) for cell, _, _ in states] == [0, 0, 1, 2, 3]  # the end as well
    with pytest.raises(TypeError, match=r"remembers: action, memory = policy\.act\(key, obs, memory\)"):
        policy(key, env.reset(key).obs[0])
