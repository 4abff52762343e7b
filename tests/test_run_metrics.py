"""What a run says in numbers: every row by its update, and the first number that is none."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import linear_q, runner, td
from tests import tiny


def test_rows_are_those_of_train(tmp_path: Path) -> None:
    """Updates count from 1, each with the env steps taken by then, and the metrics that `train` gives for it."""
    config = tiny.config(td)
    tiny.run(td, config, (1,), out=tmp_path / "run")
    rows = np.genfromtxt(tmp_path / "run" / "metrics.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(rows["seed"], [1] * 6)
    np.testing.assert_array_equal(rows["update"], np.arange(1, 7))
    np.testing.assert_array_equal(rows["env_steps"], 8 * np.arange(1, 7))
    metrics = td.train(jax.random.key(1), config).metrics
    for name, x in metrics.items():
        np.testing.assert_allclose(rows[name], x, rtol=1e-4, err_msg=name)


def test_one_parameter_is_enough_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias turns infinite with the third update, and the weights never."""
    update = linear_q.update

    def spoil(state: Any, config: Any) -> Any:
        state, metrics = update(state, config)
        bias = jnp.where(state.updates == 3, jnp.inf, 0.0 * state.params.bias)
        return state._replace(params=state.params._replace(bias=bias)), metrics

    monkeypatch.setattr(linear_q, "update", spoil)
    # A Config of its own, so that no program without the fault is at hand.
    with pytest.raises(runner.NonFiniteError, match="Seed 1 left the finite numbers"):
        tiny.run(linear_q, tiny.config(linear_q, num_tiles=3, total_timesteps=24), (1,))
