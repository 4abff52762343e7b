"""A policy as a file: what is in it, that it acts as its state does, and one sentence where it cannot."""

import json
import subprocess
import types
import venv
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import envs, mdp, ppo, render, sac
from purerl.core.types import Policy
from purerl.run import export, policy_file
from purerl.run.acting import acting_leaves
from purerl.run.errors import RunError
from tests import tiny

KEY = jax.random.key(0)


def state_of(algorithm: Any, config: Any) -> Any:
    return jax.jit(algorithm.init)(KEY, config)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config = tiny.config(ppo)
    return purerl.save_policy(tmp_path / "ppo.policy", ppo, state_of(ppo, config), config)


def change(path: Path, **fields: Any) -> None:
    """Rewrites a file with other fields in its header."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    header = json.loads(members["policy.json"]) | fields
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {**members, "policy.json": json.dumps(header).encode()}.items():
            file.writestr(name, content)


def test_it_holds_the_actor_and_the_statistics_alone(tmp_path: Path) -> None:
    """Neither critic nor optimiser, and the same bytes of each array for any number of envs."""
    held = []
    for num_envs in (2, 4):
        config = tiny.config(ppo, env="Pendulum-v1", normalize_obs=True, num_envs=num_envs)
        path = purerl.save_policy(tmp_path / f"{num_envs}.policy", ppo, state_of(ppo, config), config)
        with zipfile.ZipFile(path) as file:
            held.append(list(json.loads(file.read("policy.json"))["arrays"]))
    layers = [
        f".params.actor.weights['params']['body']['Dense_{i}']['{x}']" for i in (0, 1) for x in ("bias", "kernel")
    ]
    assert held[0] == held[1] == [*layers, ".params.actor.log_std", ".obs_stats.mean", ".obs_stats.var"]


def test_it_acts_in_the_units_of_the_env(tmp_path: Path) -> None:
    """By the statistics of the training, which move the action; greedy or drawn."""
    config = tiny.config(sac, normalize_obs=True)
    state = state_of(sac, config)
    state = state._replace(obs_stats=state.obs_stats._replace(mean=jnp.array([0.5, -0.5, 2.0])))
    path = purerl.save_policy(tmp_path / "sac.policy", sac, state, config)
    obs = jnp.array([0.6, 0.8, 1.0])
    expected = sac.policy(state, config)(KEY, obs)
    np.testing.assert_array_equal(purerl.load_policy(path)(KEY, obs), expected)
    plain = sac.policy(state._replace(obs_stats=state_of(sac, config).obs_stats), config)(KEY, obs)
    assert abs(expected - plain) > 1e-3
    stochastic = purerl.load_policy(path, deterministic=False)
    action, _ = stochastic.act(KEY, obs, stochastic.memory)
    mine = sac.policy(state, config, deterministic=False)
    np.testing.assert_array_equal(action, mine.act(KEY, obs, mine.memory)[0])


def test_what_it_does_not_hold_takes_no_memory(tmp_path: Path) -> None:
    """The zeros in place of a replay of 10^9 transitions, which would not fit into this machine."""
    config = tiny.config(sac)
    path = purerl.save_policy(tmp_path / "sac.policy", sac, state_of(sac, config), config)
    change(path, config={**json.loads(zipfile.ZipFile(path).read("policy.json"))["config"], "buffer_size": 10**9})
    _, loaded, state = policy_file.load(path)
    assert loaded.buffer_size == 10**9 and max(x.size for x in jax.tree.leaves(state)) >= 10**9
    assert purerl.load_policy(path)(KEY, jnp.zeros(3)).shape == (1,)


def test_an_env_of_ones_own_is_given_where_no_path_leads_to_it(tmp_path: Path) -> None:
    env = mdp.Tabular(mdp.random_walk(5))
    algorithm = purerl.q_learning
    config = tiny.config(algorithm, env=env)
    path = purerl.save_policy(tmp_path / "walk.policy", algorithm, state_of(algorithm, config), config)
    with pytest.raises(RunError, match=r"no import path for env, a Tabular: give the object, .*env=\.\.\."):
        purerl.load_policy(path)
    assert purerl.load_policy(path, env=env)(KEY, jnp.int32(2)) in (0, 1)


def test_what_stands_elsewhere_is_given(saved: Path) -> None:
    """An algorithm of one's own, whose file lay in another place when the policy was saved."""
    change(saved, algorithm="/elsewhere/ppo.py")
    with pytest.raises(policy_file.PolicyFileError, match=r"The algorithm of .*ppo\.policy is not to be found"):
        purerl.load_policy(saved)
    assert purerl.load_policy(saved, algorithm=ppo)(KEY, jnp.zeros(4)) in (0, 1)


def test_nothing_is_overwritten_and_nothing_is_left_half(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, before = tiny.config(ppo), saved.read_bytes()
    with pytest.raises(FileExistsError, match=r"ppo\.policy exists already"):
        purerl.save_policy(saved, ppo, state_of(ppo, config), config)
    written = zipfile.ZipFile.writestr

    def full(file: Any, name: zipfile.ZipInfo, content: Any) -> None:
        if name.filename.endswith("1"):
            raise OSError(28, "No space left on device")
        written(file, name, content)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="No space left"):
        policy_file.write(saved, ppo, acting_leaves(ppo, state_of(ppo, config), config), config)
    assert saved.read_bytes() == before and list(tmp_path.iterdir()) == [saved]


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    config = tiny.config(ppo)
    many = jax.vmap(ppo.init, (0, None))(jax.random.split(KEY), config)
    wider = state_of(ppo, config.replace(actor_hidden_sizes=(9,)))
    for state, message in ((many, "as of 2 seeds"), (wider, r"by this ppo\.Config"), (0, r"A ppo\.State is needed")):
        with pytest.raises(TypeError, match=message):
            purerl.save_policy(tmp_path / "none.policy", ppo, state, config)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_policy_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(policy_file.PolicyFileError, match="There is no file"):
        purerl.load_policy(tmp_path / "missing.policy")
    (tmp_path / "text.policy").write_text("weights")
    with pytest.raises(policy_file.PolicyFileError, match=r"text\.policy is damaged, or no policy"):
        purerl.load_policy(tmp_path / "text.policy")
    content = bytearray(saved.read_bytes())
    content[content.index(b"array_0001") + 20] ^= 1  # a bit of a weight: the checksum of the file tells
    (tmp_path / "bit.policy").write_bytes(content)
    with pytest.raises(policy_file.PolicyFileError, match=r"bit\.policy is damaged.*CRC"):
        purerl.load_policy(tmp_path / "bit.policy")
    (tmp_path / "half.policy").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(policy_file.PolicyFileError, match=r"half\.policy is damaged"):
        purerl.load_policy(tmp_path / "half.policy")


def test_another_version_names_what_differs(saved: Path) -> None:
    header = json.loads(zipfile.ZipFile(saved).read("policy.json"))
    with pytest.raises(RunError, match="is a policy of ppo, not of sac"):
        purerl.load_policy(saved, algorithm=sac)
    change(saved, config=header["config"] | {"actor_hidden_sizes": [9]})
    where = r"state\.params\.actor\.weights\['params'\]\['body'\]\['Dense_0'\]\['bias'\]"
    with pytest.raises(policy_file.PolicyFileError, match=rf"{where} is float32\[8\] there and float32\[9\] here"):
        purerl.load_policy(saved)
    change(saved, config=header["config"] | {"normalize_obs": True})
    with pytest.raises(policy_file.PolicyFileError, match=r"reads other arrays: \.obs_stats\.mean, \.obs_stats\.var"):
        purerl.load_policy(saved)
    change(saved, config=header["config"] | {"no_such_field": 1})
    with pytest.raises(RunError, match="of another version of ppo: it has no field no_such_field now"):
        purerl.load_policy(saved)
    change(saved, config=header["config"], format=2)
    with pytest.raises(policy_file.PolicyFileError, match=r"is of a later purerl"):
        purerl.load_policy(saved)


def test_memory_starts_as_the_policy_says(tmp_path: Path) -> None:
    """A planner's plan is not in the file, and its search is the same with or without it."""
    algorithm = purerl.pets
    config = tiny.config(algorithm)
    state = state_of(algorithm, config)
    state = state._replace(plan=state.plan + 1)
    path = purerl.save_policy(tmp_path / "pets.policy", algorithm, state, config)
    mine, loaded = algorithm.policy(state, config), purerl.load_policy(path)
    obs = envs.bind(config).copies(1).reset(KEY).obs[0]
    for x, y in zip(mine.act(KEY, obs, mine.memory), loaded.act(KEY, obs, loaded.memory), strict=True):
        np.testing.assert_array_equal(x, y)
    assert loaded.memory.shape == state.plan.shape and not loaded.memory.any()


ALONE = """
import sys
import jax, numpy as np
from jax import export
assert not any(name in sys.modules for name in ("flax", "purerl"))
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
print(*np.asarray(program.call(np.array([0.1, -0.2, 0.3, -0.4], np.float32))).ravel())
"""


def test_an_exported_policy_runs_where_jax_is_alone(tmp_path: Path) -> None:
    """In a virtual environment of its own, which finds jax, what jax needs and flatbuffers, and nothing else."""
    home = tmp_path / "alone"
    venv.create(home, with_pip=False, symlinks=True)
    packages = next(home.glob("lib/python*/site-packages"))
    for name in (
        "jax",
        "jaxlib",
        "numpy",
        "scipy",
        "ml_dtypes",
        "opt_einsum",
        "flatbuffers",
        "numpy.libs",
        "scipy.libs",
    ):
        for found in Path(jax.__file__).parents[1].glob(name):
            (packages / name).symlink_to(found)
    config = tiny.config(ppo)
    state = state_of(ppo, config)
    path = export.export_policy(tmp_path / "policy.stablehlo", ppo, state, config)
    (tmp_path / "act.py").write_text(ALONE)
    command = [home / "bin" / "python", "-I", tmp_path / "act.py", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run([*command[:2], "-c", "import flax"], capture_output=True, text=True, timeout=120)
    assert "No module named 'flax'" in refused.stderr
    assert done.stdout.split() == [str(ppo.policy(state, config)(KEY, jnp.array([0.1, -0.2, 0.3, -0.4])))]


@pytest.mark.parametrize(
    ("name", "field"), [("CartPole-v1", ("x", "x_dot", "theta", "theta_dot")), ("Pendulum-v1", ("theta", "theta_dot"))]
)
def test_an_exported_policy_earns_the_same_in_gymnasium(name: str, field: tuple[str, ...], tmp_path: Path) -> None:
    """From the start state of an episode here, step by step until the episode ends, or chaos parts the two."""
    gymnasium = pytest.importorskip("gymnasium")
    config = tiny.config(ppo, env=name)
    state = state_of(ppo, config)
    path = export.export_policy(tmp_path / "policy.stablehlo", ppo, state, config)
    act = jax.export.deserialize(bytearray(path.read_bytes())).call
    states, returns = render.episode(ppo, state, config, KEY, max_steps=60)
    there = gymnasium.make(name)
    there.reset(seed=0)
    start = [float(getattr(states[0], x)) for x in field]
    there.unwrapped.state = np.array(start)
    obs = np.array(start if name == "CartPole-v1" else [np.cos(start[0]), np.sin(start[0]), start[1]], np.float32)
    total, done, steps = 0.0, False, 0
    while not done and steps < 60:
        obs, reward, terminated, truncated, _ = there.step(np.asarray(act(obs)))
        total, steps, done = total + reward, steps + 1, terminated or truncated
    assert steps == len(returns) - 1
    np.testing.assert_allclose(total, returns[-1], rtol=1e-4)


def test_exported_draws_and_memory(tmp_path: Path) -> None:
    """Key first, and a planner's plan handed on as a list of arrays."""
    config, obs = tiny.config(sac), jnp.array([0.6, 0.8, 1.0])
    state = state_of(sac, config)
    path = export.export_policy(tmp_path / "sac.stablehlo", sac, state, config, deterministic=False)
    mine, key_data = sac.policy(state, config, deterministic=False), jax.random.key_data(KEY)
    call = jax.export.deserialize(bytearray(path.read_bytes())).call
    action, _ = call(key_data, obs, [jnp.zeros(1)])
    np.testing.assert_allclose(action, mine.to_units(mine.act(KEY, obs, mine.memory)[0]), rtol=1e-6)
    assert abs(call(jax.random.key_data(jax.random.key(1)), obs, [jnp.zeros(1)])[0] - action) > 1e-3
    algorithm = purerl.pets
    config = tiny.config(algorithm)
    state = state_of(algorithm, config)
    path = export.export_policy(tmp_path / "pets.stablehlo", algorithm, state, config)
    mine = algorithm.policy(state, config)
    expected, plan = mine.act(KEY, obs, mine.memory)
    action, memory = jax.export.deserialize(bytearray(path.read_bytes())).call(obs, [jnp.zeros_like(plan)])
    np.testing.assert_allclose(action, mine.to_units(expected), rtol=1e-4)
    np.testing.assert_allclose(memory[0], plan, rtol=1e-4)


def test_export_refuses(tmp_path: Path) -> None:
    config = tiny.config(ppo)
    (tmp_path / "there").write_text("something")
    with pytest.raises(FileExistsError, match="there exists already"):
        export.export_policy(tmp_path / "there", ppo, state_of(ppo, config), config)
    with pytest.raises(TypeError, match=r"A ppo\.State is needed"):
        export.export_policy(tmp_path / "none", ppo, 0, config)
    starts_at_one = types.SimpleNamespace(
        __name__="one", init=ppo.init, policy=lambda *_, **__: Policy(jnp.ones(1), lambda *x: x[1:], lambda x: x)
    )
    with pytest.raises(ValueError, match="starts as zeros"):
        export.export_policy(tmp_path / "none", starts_at_one, state_of(ppo, config), config)
