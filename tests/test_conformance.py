"""What every algorithm module must keep to. One set of tests, run on each name in `purerl.ALGORITHMS`.

Compiled programs are built once per algorithm (`programs`) and shared by the tests, since compiling is what costs.
"""

import dataclasses
import importlib
import inspect
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

import purerl
from purerl import runner
from purerl.core import checks
from tests import tiny
from tests.tiny import SEEDS, arrays, assert_same_bits, run


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


@pytest.fixture(scope="module", params=purerl.ALGORITHMS)
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
    from purerl.run.cli import field_docs

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


def test_seeds_differ_in_network_and_data(programs: Programs) -> None:
    key_data = np.asarray(jax.vmap(jax.random.key_data)(programs.keys))
    assert len(np.unique(key_data, axis=0)) == len(SEEDS)
    if not programs.acts:
        assert_same_bits(*(jax.tree.map(lambda x, i=i: x[i], programs.many.states.params) for i in (0, 1)))
        return
    # A table, or a weight for each feature, starts with the same value everywhere: what differs is what was learned.
    drawn = any(f.metadata.get("network") for f in dataclasses.fields(programs.config))
    states = initial_states(programs) if drawn else programs.many.states
    first, second = (jax.tree.map(lambda x, i=i: x[i], states) for i in (0, 1))
    for name in ("params", "env_state"):
        pairs = zip(arrays(getattr(first, name)), arrays(getattr(second, name)), strict=True)
        assert any((x != y).any() for x, y in pairs), name
    assert any((x[0] != x[1]).any() for x in arrays(programs.vmapped.metrics))


def initial_states(programs: Programs) -> Any:
    """The runner's own init program, compiled already."""
    loop = runner._Loop(programs.algorithm, programs.config, list(SEEDS), None, 2, 0.0, [], False, print)
    return loop.initial_states()


def test_same_key_same_bits_in_one_trace(programs: Programs) -> None:
    assert_same_bits(programs.train(programs.keys, programs.config), programs.vmapped)
    field = "learning_rate" if programs.acts else "gamma"
    other = programs.config.replace(**{field: getattr(programs.config, field) / 2})
    metrics = programs.train(programs.keys, other).metrics
    assert any((x != y).any() for x, y in zip(arrays(metrics), arrays(programs.vmapped.metrics), strict=True))
    assert programs.train._cache_size() == 1


def test_vmapped_seed_against_its_solo_run(programs: Programs) -> None:
    """vmap batches the matrix products, which may add in another order: within 1e-3 after these few updates."""
    for name, x in programs.solo.metrics.items():
        np.testing.assert_allclose(programs.vmapped.metrics[name][1], x[0], rtol=1e-3, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(programs.many.metrics[name][1], x[0], rtol=1e-3, atol=1e-4, err_msg=name)


def test_vmaps_over_every_traced_field(programs: Programs) -> None:
    """All of them at once, the env's physics included, and each changes the result's inputs: shapes only."""
    algorithm, config = (
        programs.algorithm,
        programs.config.replace(env_params=checks.envs.make(programs.config.env).default_params),
    )
    batched = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), config)
    _, metrics = jax.eval_shape(jax.vmap(algorithm.train, (None, 0)), programs.keys[0], batched)
    assert {x.shape for x in metrics.values()} == {(2, config.num_updates)}


def test_every_traced_field_is_used(programs: Programs) -> None:
    params = checks.envs.make(programs.config.env).default_params
    config = other_switches(programs.config).replace(env_params=params)
    leaves, structure = jax.tree.flatten(config)
    jaxpr = jax.make_jaxpr(lambda key, leaves: programs.algorithm.train(key, structure.unflatten(leaves)))(
        programs.keys[0], leaves
    )
    _, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.out_avals))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(config)]
    unused = [
        name
        for name, is_used in zip(names, used[1:], strict=True)
        if not is_used and not name.startswith(".env_params")
    ]
    assert unused == []
    assert any(is_used for name, is_used in zip(names, used[1:], strict=True) if name.startswith(".env_params"))


def other_switches(config: Any) -> Any:
    """Every boolean switch on, so that the fields they guard are in use."""
    fields = [field.name for field in dataclasses.fields(config) if isinstance(getattr(config, field.name), bool)]
    return config.replace(**dict.fromkeys(fields, True))


def test_every_static_field_changes_the_program(programs: Programs) -> None:
    algorithm, config = programs.algorithm, programs.config

    def program(config: Any) -> str:
        jaxpr = jax.make_jaxpr(algorithm.train)(programs.keys[0], config)
        return "\n".join([str(jaxpr), *(str(np.asarray(x)) for x in constants(jaxpr))])

    name = algorithm.__name__.split(".")[-1]
    others, read_under = tiny.OTHERS.get(name, {}), tiny.READ_UNDER.get(name, {})
    whole = program(config)
    for field in dataclasses.fields(config):
        if not field.metadata.get("pytree_node", True) and not field.metadata.get("network"):
            switched = config.replace(**read_under.get(field.name, {}))
            other = others.get(field.name) or another(field, getattr(config, field.name))
            before = whole if switched == config else program(switched)
            assert program(switched.replace(**{field.name: other})) != before, field.name


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
    env, params = checks.envs.make(programs.config.env), checks.envs.make(programs.config.env).default_params
    obs, _ = jax.eval_shape(env.reset, programs.keys[0], params)
    state = jax.tree.map(lambda x: x[0], programs.many.states)
    for deterministic in (True, False):
        act = jax.jit(programs.algorithm.policy(state, programs.config, deterministic=deterministic))
        action = act(programs.keys[0], jnp.ones(obs.shape, obs.dtype))
        assert action.shape == () and 0 <= action < env.action_space(params).n


@pytest.mark.parametrize("seeds", [(1,), SEEDS], ids=["one seed", "sharded and vmapped"])
def test_interrupted_equals_whole(programs: Programs, seeds: tuple[int, ...], tmp_path: Path) -> None:
    """N updates, a checkpoint on disk, a new loop for the other M, in other chunks: every bit of the whole run."""
    whole = programs.solo if seeds == (1,) else programs.many
    with pytest.MonkeyPatch.context() as patch:
        stop_after_first_chunk(patch)
        first = run(programs.algorithm, programs.config, seeds, out=tmp_path / "run")
    assert not first.finished and 0 < first.updates < programs.config.num_updates
    second = run(programs.algorithm, programs.config, seeds, out=tmp_path / "run", resume=True)
    assert second.finished
    assert_same_bits(second.states, whole.states)
    for name, x in whole.metrics.items():
        np.testing.assert_array_equal(np.concatenate([first.metrics[name], second.metrics[name]], axis=1), x)


def stop_after_first_chunk(patch: pytest.MonkeyPatch) -> None:
    """Makes the loop find a SIGTERM after its first chunk, as the signal's handler would leave it."""
    log = runner._Loop.log

    def log_and_stop(loop: Any, updates: int, rows: Any) -> None:
        log(loop, updates, rows)
        loop.stop_signal = signal.SIGTERM

    patch.setattr(runner._Loop, "log", log_and_stop)
