"""Evaluation all along a training: it takes no part in it, says what a later evaluation would, and keeps the best."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import dqn, logs, plot, ppo, runner, value_iteration
from purerl.run import evaluate, folder
from purerl.run.errors import RunError
from tests import tiny
from tests.tiny import SEEDS, assert_same_bits

CONFIG = tiny.config(ppo)
EVERY, EPISODES = 32, 3  # after 2, 4 and 6 updates of 16 env steps
evaluated = functools.partial(purerl.train_and_evaluate, eval_every=EVERY, eval_episodes=EPISODES)


@pytest.fixture(scope="module")
def many() -> evaluate.Evaluated:
    """Vmapped over seeds."""
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    return jax.vmap(lambda key: evaluated(ppo, key, CONFIG))(keys)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Run]:
    out = tmp_path_factory.mktemp("evaluated") / "run"
    return out, tiny.run(ppo, CONFIG, out=out, eval_every=EVERY, eval_episodes=EPISODES)


@pytest.mark.parametrize(
    ("algorithm", "fields", "every", "updates"),
    [
        (ppo, {}, 32, [2, 4, 6]),
        (ppo, {}, 33, [3, 5, 6]),  # 48 env steps are past 33, 80 past 66, and the last is the end
        (ppo, {}, 1, [1, 2, 3, 4, 5, 6]),
        (ppo, {}, 16, [1, 2, 3, 4, 5, 6]),
        (ppo, {}, 10**6, [6]),
        (dqn, {}, 32, [1, 3, 5, 6]),  # its first update ends at 32 env steps, since 16 came before
        (value_iteration, {}, 2, [2, 4, 6]),
        (value_iteration, {}, 4, [4, 6]),
    ],
)
def test_when_it_is_evaluated(algorithm: Any, fields: dict[str, Any], every: int, updates: list[int]) -> None:
    assert evaluate.evaluated_updates(tiny.config(algorithm, **fields), every) == updates


def test_training_is_that_of_train(many: evaluate.Evaluated) -> None:
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    assert_same_bits((many.state, many.metrics), tuple(jax.vmap(lambda key: ppo.train(key, CONFIG))(keys)))


def test_returns_and_best_are_those_of_the_states_on_the_way(many: evaluate.Evaluated) -> None:
    """Each state made by updates one by one, and evaluated by `evaluate` with the key of its evaluation."""
    update = jax.jit(ppo.update)
    np.testing.assert_array_equal(many.eval_updates, [[2, 4, 6]] * len(SEEDS))
    assert any(np.argmax(many.eval_return, 1) < 2)  # of some seed the best is not the last
    for i, seed in enumerate(SEEDS):
        state, key, returns, actors = jax.jit(ppo.init)(jax.random.key(seed), CONFIG), jax.random.key(seed), [], []
        for number in range(1, 7):
            state, _ = update(state, CONFIG)
            if number in (2, 4, 6):
                eval_key = jax.random.fold_in(jax.random.fold_in(key, evaluate._STREAM), number)
                found = purerl.evaluate(ppo, state, CONFIG, eval_key, num_episodes=EPISODES)
                returns.append(found.returns.mean())
                actors.append(state.params.actor)
        np.testing.assert_allclose(many.eval_return[i], returns, rtol=1e-6)
        best, last = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (many.best, many.state))
        for x, y in zip(jax.tree.leaves(best.params.actor), jax.tree.leaves(actors[np.argmax(returns)]), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        assert_same_bits((best.params.critic, best.opt_state, best.key), (last.params.critic, last.opt_state, last.key))


def test_one_seed_alone_is_the_vmapped_one(many: evaluate.Evaluated) -> None:
    alone = evaluated(ppo, jax.random.key(SEEDS[1]), CONFIG)
    np.testing.assert_array_equal(alone.eval_return, many.eval_return[1])


def test_the_runner_gives_the_same(many: evaluate.Evaluated, run: tuple[Path, runner.Run]) -> None:
    """In the metrics, in the file, in the folder it loads, and in the policy files; and the training as without it."""
    out, trained = run
    returns = trained.metrics[logs.EVAL_RETURN]
    np.testing.assert_array_equal(np.isfinite(returns), [[False, True] * 3] * len(SEEDS))
    np.testing.assert_array_equal(returns[:, 1::2], many.eval_return)
    written = plot.read_metrics(out)[logs.EVAL_RETURN]
    np.testing.assert_array_equal(written.astype(np.float32), returns)
    plain = tiny.run(ppo, CONFIG)
    assert plain.best is None and logs.EVAL_RETURN not in plain.metrics
    assert_same_bits(trained.states, plain.states)
    assert_same_bits({name: x for name, x in trained.metrics.items() if name != logs.EVAL_RETURN}, plain.metrics)
    loaded = runner.load(out)
    assert_same_bits((loaded.states, loaded.best), (trained.states, trained.best))
    obs = jnp.array([0.1, -0.2, 0.3, -0.4])
    for i, seed in enumerate(SEEDS):
        policy = purerl.load_policy(out / "checkpoints" / "best" / f"{seed}.policy", deterministic=False)
        best = ppo.policy(jax.tree.map(lambda x, i=i: x[i], trained.best), CONFIG, deterministic=False)
        for key in jax.random.split(jax.random.key(0), 5):
            assert policy(key, obs) == best(key, obs)
        expected = jax.tree.map(lambda x, i=i: x[i], many.best.params.actor)
        for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(trained.best.params.actor), strict=True):
            np.testing.assert_allclose(x, y[i], rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_it_goes_on_bit_for_bit(stop: int, run: tuple[Path, runner.Run], tmp_path: Path) -> None:
    """Before, at and after an evaluation: the states, the best of each seed, and every file."""

    class Stopper:
        def write(self, update: int, *_: Any) -> None:
            if update == stop:
                raise KeyboardInterrupt

        def flush(self) -> None: ...

        def close(self) -> None: ...

    options: dict[str, Any] = {"out": tmp_path / "run", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        tiny.run(ppo, CONFIG, **options, eval_every=EVERY, eval_episodes=EPISODES, loggers=[Stopper])
    tiny.run(ppo, CONFIG, **options, resume=True)
    whole = run[0]
    assert_same_bits((lambda a: (a.states, a.best))(runner.load(tmp_path / "run")), (run[1].states, run[1].best))
    for name in ("metrics.csv", *(f"checkpoints/best/{seed}.policy" for seed in SEEDS)):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


def test_it_goes_on_as_it_began(run: tuple[Path, runner.Run], tmp_path: Path) -> None:
    for options, message in (
        ({"eval_every": 16}, "began with eval_every = 32 and cannot go on with 16"),
        ({"eval_every": EVERY}, "began with eval_episodes = 3 and cannot go on with 32"),
    ):
        with pytest.raises(RunError, match=message):
            tiny.run(ppo, CONFIG, out=run[0], resume=True, **options)
    plain = tmp_path / "plain"
    tiny.run(ppo, CONFIG, out=plain)
    with pytest.raises(RunError, match="began with eval_every = None and cannot go on with 32"):
        tiny.run(ppo, CONFIG, out=plain, resume=True, eval_every=EVERY)
    assert runner.load(plain).best is None and folder.load(run[0])[3].eval_episodes == EPISODES


def test_before_the_first_evaluation_there_is_no_best(tmp_path: Path) -> None:
    """Stopped after its first update: what the checkpoint holds then is the policy before any training."""
    out, options = tmp_path / "run", {"eval_every": 96, "eval_episodes": EPISODES}
    stopped = tiny.run(ppo, CONFIG, out=out, on_chunk=lambda *_: True, **options)
    assert stopped.updates < 6 and stopped.best is None and runner.load(out).best is None
    assert not list((out / "checkpoints" / "best").iterdir())
    whole = tiny.run(ppo, CONFIG, out=out, resume=True)
    assert_same_bits(whole.best, whole.states)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eval_every": 0}, ValueError, "eval_every must be at least 1, but is 0"),
        ({"eval_every": 32, "eval_episodes": 0}, ValueError, "eval_episodes must be at least 1, but is 0"),
        ({"eval_episodes": 3}, RunError, "eval_episodes is 3, but there are no evaluations: say eval_every"),
    ],
)
def test_bad_input(options: dict[str, int], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        tiny.run(ppo, CONFIG, out=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())
    if error is ValueError:
        with pytest.raises(ValueError, match=message):
            purerl.train_and_evaluate(ppo, jax.random.key(0), CONFIG, **options)


def test_the_picture_has_a_line_of_evaluations(run: tuple[Path, runner.Run]) -> None:
    """Dashed, of the color of the run's own, with a point an evaluation; a window without one keeps the one before."""
    ax = plot.runs([run[0]])
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1 and dashed[0].get_color() == ax.lines[0].get_color()
    np.testing.assert_array_equal(dashed[0].get_xdata(), [32, 64, 96])
    returns = run[1].metrics[logs.EVAL_RETURN]
    np.testing.assert_allclose(dashed[0].get_ydata(), returns[:, 1::2].mean(0), rtol=1e-6)
    values = plot.smooth(run[1].metrics, logs.EVAL_RETURN)[1]
    np.testing.assert_array_equal(values, returns[:, [0, 1, 1, 3, 3, 5]])
    assert not [line for line in plot.runs([run[0]], name="entropy").lines if line.get_linestyle() == "--"]
