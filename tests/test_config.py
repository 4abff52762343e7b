"""Bad input: one clear sentence that names the field, before anything is traced or compiled."""

import pydoc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import ddpg, discrete_sac, dqn, ppo, sac, td3, trpo
from purerl.envs import Discrete
from tests.toy_envs import Chain, Levers

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")
FLOAT_MAX = float(np.finfo(np.float32).max)


class Unhashable(Chain):
    __hash__ = None


class OnHost:
    """What an object of Gymnasium shows of itself."""

    __module__ = "gymnasium.core"


# Algorithm, fields, error, and what its message must contain (a regular expression).
CASES = {
    "unknown env": (
        ppo,
        {"env": "CartPol-v1"},
        ValueError,
        "no environment named 'CartPol-v1'; did you mean CartPole-v1",
    ),
    "unknown Brax env": (ppo, {"env": "brax/hoper"}, ValueError, "'brax/hoper'; did you mean brax/hopper"),
    "unhashable env": (ppo, {"env": Unhashable()}, TypeError, "env must be hashable, .*static.*Unhashable"),
    "env of Gymnasium": (ppo, {"env": OnHost()}, TypeError, "is an env of Gymnasium, which steps on the host; purerl"),
    "robot of Gymnasium": (ppo, {"env": "Ant-v5"}, ValueError, "is an env of Gymnasium.* such as brax/ant"),
    "game of Gymnasium": (dqn, {"env": "ALE/Breakout-v5"}, ValueError, "of Gymnasium.* such as Breakout-MinAtar"),
    "other game of Gymnasium": (dqn, {"env": "QbertNoFrameskip-v4"}, ValueError, "of Gymnasium.* Breakout-MinAtar"),
    "lander of Gymnasium": (ppo, {"env": "LunarLander-v3"}, ValueError, "of Gymnasium.* CartPole-v1 or brax/hopper"),
    "env is no environment": (ppo, {"env": 3}, TypeError, "3 is no environment: it lacks default_params"),
    "DQN on a Box": (dqn, {"env": "Pendulum-v1"}, ValueError, "dqn acts in discrete .*Pendulum-v1 has .*Box"),
    "minibatches do not divide the batch": (
        ppo,
        {"num_envs": 2, "num_steps": 16, "num_minibatches": 3},
        ValueError,
        "num_minibatches = 3 must divide num_envs \\* num_steps = 32",
    ),
    "PPO ends before one update": (
        ppo,
        {"num_envs": 2, "num_steps": 16, "total_timesteps": 31},
        ValueError,
        "total_timesteps = 31 is less than the 32 env steps",
    ),
    # 100 transitions before learning, then 5 iterations of 10 steps
    "DQN ends before one update": (
        dqn,
        {"learning_starts": 100, "iterations_per_update": 5, "total_timesteps": 149},
        ValueError,
        "total_timesteps = 149 is less than the 150 env steps",
    ),
    "buffer smaller than a batch": (
        dqn,
        {"buffer_size": 100, "learning_starts": 10, "batch_size": 101},
        ValueError,
        "buffer_size = 100 is smaller than batch_size = 101",
    ),
    "buffer smaller than learning_starts": (
        dqn,
        {"buffer_size": 200, "learning_starts": 201},
        ValueError,
        "buffer_size = 200 is smaller than learning_starts .* = 201",
    ),
    "buffer smaller than learning_starts once rounded up": (
        dqn,
        {"buffer_size": 202, "learning_starts": 201, "num_envs": 4},
        ValueError,
        "buffer_size = 202 is smaller than learning_starts .* = 204",
    ),
    "buffer smaller than one iteration": (
        dqn,
        {"buffer_size": 150, "learning_starts": 10, "num_envs": 16},
        ValueError,
        "buffer_size = 150 is smaller than num_envs \\* num_steps = 160",
    ),
    "n-step returns longer than the prefill": (
        dqn,
        {"learning_starts": 18, "n_step": 10, "num_envs": 2},
        ValueError,
        "learning_starts = 18 is smaller than n_step \\* num_envs = 20",
    ),
    "zero envs": (ppo, {"num_envs": 0}, ValueError, "ppo.Config.num_envs must be at least 1, but is 0"),
    "negative epochs": (ppo, {"num_epochs": -1}, ValueError, "ppo.Config.num_epochs must be at least 1, but is -1"),
    "zero minibatches": (ppo, {"num_minibatches": 0}, ValueError, "num_minibatches must be at least 1"),
    "zero steps": (ppo, {"num_steps": 0}, ValueError, "num_steps must be at least 1"),
    "zero layers wide": (
        ppo,
        {"actor_hidden_sizes": (64, 0)},
        ValueError,
        "hidden_sizes must be at least 1, but is \\(64, 0\\)",
    ),
    "zero gradient steps": (dqn, {"gradient_steps": 0}, ValueError, "dqn.Config.gradient_steps must be at least 1"),
    "zero learning_starts": (dqn, {"learning_starts": 0}, ValueError, "learning_starts must be at least 1"),
    "negative buffer": (dqn, {"buffer_size": -5}, ValueError, "buffer_size must be at least 1, but is -5"),
    "zero target period": (
        dqn,
        {"target_update_period": 0},
        ValueError,
        "target_update_period must be .*\\[1, inf\\].* 0",
    ),
    "float count": (
        ppo,
        {"total_timesteps": 1e6},
        TypeError,
        "total_timesteps must be a Python int.*1000000.0 of type float",
    ),
    "NumPy count": (ppo, {"num_envs": np.int32(4)}, TypeError, "num_envs must be a Python int.*int32"),
    "bool count": (dqn, {"batch_size": True}, TypeError, "batch_size must be a Python int, but is True of type bool"),
    "text count": (dqn, {"num_steps": "10"}, TypeError, "num_steps must be a Python int.*'10' of type str"),
    "count for a switch": (dqn, {"double_q": 1}, TypeError, "double_q must be a Python bool, but is 1"),
    "array of layers": (
        dqn,
        {"hidden_sizes": np.array([64])},
        TypeError,
        "hidden_sizes must be a Python tuple.*array",
    ),
    "one layer bare": (dqn, {"hidden_sizes": 64}, TypeError, "hidden_sizes must be a Python tuple, but is 64"),
    "float layer": (dqn, {"hidden_sizes": (64, 32.5)}, TypeError, "hidden_sizes must .*int.*32.5"),
    "text layer": (dqn, {"hidden_sizes": ("64", "64")}, TypeError, "hidden_sizes must .*int.*'64'"),
    "unknown activation": (ppo, {"activation": "gelu2"}, ValueError, "activation must be one of .*relu.*tanh.*'gelu2'"),
    "text learning rate": (ppo, {"learning_rate": "1e-3"}, TypeError, "learning_rate must be a number.*'1e-3'"),
    "gamma above 1": (ppo, {"gamma": 1.01}, ValueError, "ppo.Config.gamma must be .*\\[0, 1\\], but is 1.01"),
    "gamma below 0": (dqn, {"gamma": -0.1}, ValueError, "dqn.Config.gamma must be .*\\[0, 1\\], but is -0.1"),
    "lambda above 1": (ppo, {"gae_lambda": 2}, ValueError, "gae_lambda must be .*\\[0, 1\\], but is 2"),
    "epsilon above 1": (dqn, {"epsilon_start": 1.5}, ValueError, "epsilon_start must be .*\\[0, 1\\], but is 1.5"),
    "NaN learning rate": (ppo, {"learning_rate": NAN}, ValueError, "learning_rate must be a finite number.*nan"),
    "infinite learning rate": (dqn, {"learning_rate": INF}, ValueError, "learning_rate must be a finite number.*inf"),
    "negative learning rate": (
        dqn,
        {"learning_rate": -1e-3},
        ValueError,
        "learning_rate must be .*\\[0, inf\\].*-0.001",
    ),
    "NaN gamma": (dqn, {"gamma": NAN}, ValueError, "gamma must be a finite number.*nan"),
    "env_params of another make": (
        ppo,
        {"env_params": (9.8, 1.0)},
        ValueError,
        "env_params must be made like .*CartPole-v1, with the fields .*gravity, .*but have the structure ",
    ),
    "env_params of a name that there is not": (
        ppo,
        {"env_params": {"gravity": 9.8, "masspol": 1.0}},
        ValueError,
        "env_params of CartPole-v1 have no masspol: they have .*gravity, masscart, ",
    ),
    "a number for a network": (ppo, {"actor_network": 64}, TypeError, "actor_network must be a flax module.* 64"),
    "list of learning rates": (
        ppo,
        {"learning_rate": [1e-3, 1e-4]},
        TypeError,
        "learning_rate must be a number or an array, but is .*: wrap it in jnp.array",
    ),
    "unknown surrogate": (ppo, {"surrogate": "KL"}, ValueError, "surrogate must be one of clip, kl, .*none, .*'KL'"),
    "KL target of 0": (ppo, {"target_kl": 0}, ValueError, "ppo.Config.target_kl must be .*greater than 0, but is 0"),
    "negative KL target": (ppo, {"target_kl": -0.01}, ValueError, "target_kl must be .*greater than 0, but is -0.01"),
    "NaN KL target": (ppo, {"target_kl": NAN}, ValueError, "target_kl must be a finite number .*nan"),
    "list of KL targets": (ppo, {"target_kl": [0.01, 0.03]}, TypeError, "target_kl must be a number.*jnp.array"),
    "negative KL penalty": (ppo, {"kl_coef": -1.0}, ValueError, "kl_coef must be .*\\[0, inf\\], but is -1.0"),
    "no trust region": (trpo, {"delta": 0}, ValueError, "trpo.Config.delta must be .*greater than 0, but is 0"),
    "negative trust region": (trpo, {"delta": -0.01}, ValueError, "delta must be .*greater than 0, but is -0.01"),
    "zero conjugate gradient steps": (
        trpo,
        {"cg_steps": 0},
        ValueError,
        "trpo.Config.cg_steps must be at least 1, but is 0",
    ),
    "zero backtracks": (trpo, {"max_backtracks": 0}, ValueError, "max_backtracks must be at least 1, but is 0"),
    "negative damping": (trpo, {"damping": -1.0}, ValueError, "damping must be .*\\[0, inf\\], but is -1"),
    "steps that grow": (trpo, {"backtrack_coef": 1.1}, ValueError, "backtrack_coef must be .*\\[0, 1\\], but is 1.1"),
    "TRPO's minibatches do not divide the batch": (
        trpo,
        {"num_envs": 2, "num_steps": 16, "num_minibatches": 3},
        ValueError,
        "num_minibatches = 3 must divide num_envs \\* num_steps = 32",
    ),
    "TRPO ends before one update": (
        trpo,
        {"num_envs": 2, "num_steps": 16, "total_timesteps": 31},
        ValueError,
        "total_timesteps = 31 is less than the 32 env steps",
    ),
    "discrete SAC on a Box": (
        discrete_sac,
        {"env": "Pendulum-v1"},
        ValueError,
        "discrete_sac acts in discrete .*Pendulum-v1 has .*Box.*: use sac, td3 or ppo",
    ),
    "discrete SAC's entropy above log A": (
        discrete_sac,
        {"target_entropy": 1.1},
        ValueError,
        "discrete_sac.Config.target_entropy must be .*\\[0, 1\\], but is 1.1",
    ),
    "no policy delay": (td3, {"policy_delay": 0}, ValueError, "td3.Config.policy_delay must be at least 1, but is 0"),
    "policy delay does not divide": (
        td3,
        {"policy_delay": 8, "iterations_per_update": 5, "gradient_steps": 4},
        ValueError,
        "policy_delay = 8 must divide iterations_per_update \\* gradient_steps = 20",
    ),
    "negative target noise": (td3, {"target_noise": -0.2}, ValueError, "target_noise must be .*\\[0, inf\\].*-0.2"),
    "negative noise clip": (td3, {"noise_clip": -0.5}, ValueError, "noise_clip must be .*\\[0, inf\\].*-0.5"),
    "unknown field": (ppo, {"lr": 1e-3}, TypeError, "unexpected keyword argument 'lr'"),
}
# Of each algorithm with a replay memory and an actor.
OFF_POLICY = {
    "no tau": ({"tau": 0.0}, "tau must be a finite number in \\(0, 1\\], but is 0.0"),
    "tau above 1": ({"tau": 1.5}, "tau must be a finite number in \\(0, 1\\], but is 1.5"),
    "negative tau": ({"tau": -0.005}, "tau must be .*\\(0, 1\\], but is -0.005"),
    "NaN tau": ({"tau": NAN}, "tau must be .*\\(0, 1\\], but is nan"),
    "first batch too large": (
        {"batch_size": 65, "learning_starts": 64},
        "batch_size = 65 is larger than learning_starts = 64, so .*: raise learning_starts or lower batch_size",
    ),
    "buffer too small": (
        {"buffer_size": 63, "learning_starts": 64, "batch_size": 4},
        "buffer_size = 63 is smaller than learning_starts .* = 64",
    ),
    "n steps too long": (
        {"learning_starts": 8, "batch_size": 4, "n_step": 9},
        "learning_starts = 8 is smaller than n_step \\* num_envs = 9",
    ),
    "ends before one update": (
        {"learning_starts": 300, "iterations_per_update": 5, "gradient_steps": 2, "total_timesteps": 304},
        "total_timesteps = 304 is less than the 305 env steps",
    ),
    "negative rate of the critic": ({"critic_learning_rate": -1e-3}, "critic_learning_rate must be .*\\[0, inf\\]"),
}
CONTINUOUS = {
    "numbered actions": (
        {"env": "CartPole-v1"},
        "acts in continuous action spaces only, but CartPole-v1 has .*Discrete\\(2\\): use dqn, discrete_sac or ppo",
    ),
    "no bound": ({"env": Levers(low=(-2.0, -INF))}, "needs finite bounds in .*has \\[-inf, 10\\] in dimension 1"),
    "no bound above": ({"env": Levers(high=(INF, 10.0))}, "needs finite bounds in .*has \\[-2, inf\\] in dimension 0"),
    "the largest float": (
        {"env": Levers(low=(-FLOAT_MAX, 0.0), high=(FLOAT_MAX, 10.0))},
        "needs finite bounds in .*has \\[-3.40282e\\+38, 3.40282e\\+38\\] in dimension 0",
    ),
    "no room": ({"env": Levers(low=(-2.0, 10.0))}, "needs low < high in .*has \\[10, 10\\] in dimension 1"),
    "bounds swapped": ({"env": Levers(low=(3.0, 0.0))}, "needs low < high in .*has \\[3, 2\\] in dimension 0"),
    "no new noise": ({"noise_theta": 0.0}, "noise_theta must be .*\\(0, 1\\], but is 0.0"),
    "more than new noise": ({"noise_theta": 1.5}, "noise_theta must be .*\\(0, 1\\], but is 1.5"),
}
NOISY = {"negative noise": ({"exploration_noise": -0.1}, "exploration_noise must be .*\\[0, inf\\], but is -0.1")}
ENTROPIC = {
    "no alpha": ({"alpha": 0.0}, "alpha must be a finite number greater than 0, but is 0.0"),
    "negative alpha": ({"alpha": -1.0}, "alpha must be a finite number greater than 0, but is -1.0"),
    "negative rate of alpha": ({"alpha_learning_rate": -1e-3}, "alpha_learning_rate must be .*\\[0, inf\\]"),
}
CASES |= {
    f"{algorithm.__name__.split('.')[-1]}: {case}": (algorithm, fields, ValueError, said)
    for algorithm, cases in {
        ddpg: OFF_POLICY | CONTINUOUS | NOISY,
        td3: OFF_POLICY | CONTINUOUS | NOISY,
        sac: OFF_POLICY | CONTINUOUS | ENTROPIC,
        discrete_sac: OFF_POLICY | ENTROPIC,
    }.items()
    for case, (fields, said) in cases.items()
}


@pytest.fixture(autouse=True)
def nothing_is_traced(monkeypatch):
    """`init` is the first thing that a trace of `train` runs."""

    def init(*_):
        pytest.fail("train was traced")

    for algorithm in (ppo, dqn, trpo, ddpg, td3, sac, discrete_sac):
        monkeypatch.setattr(algorithm, "init", init)


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case):
    algorithm, fields, error, said = CASES[case]
    with pytest.raises(error, match=said) as caught:
        algorithm.train(KEY, algorithm.Config(**fields))
    assert "\n" not in str(caught.value)
    if case not in ("unknown field",):  # Python's own message
        assert str(caught.value).endswith(".")


VALUE_BASED = [name for name in purerl.ALGORITHMS if (Discrete,) == getattr(purerl, name).ACTIONS]


@pytest.mark.parametrize("name", VALUE_BASED)
def test_value_based_methods_refuse_a_box(name):
    """One sentence that says what the method needs and what the env has, and a discount outside [0, 1] is refused."""
    module = getattr(purerl, name)
    with pytest.raises(ValueError, match=rf"{name} acts in discrete action spaces only, but Pendulum-v1 has .*Box"):
        module.Config(env="Pendulum-v1")
    for gamma in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match=rf"{name}.Config.gamma must be a finite number in \[0, 1\]"):
            module.Config(gamma=gamma)
    assert len(VALUE_BASED) >= 7


@pytest.mark.parametrize("name", ["q_learning", "sarsa", "td"])
def test_tables_refuse_what_is_not_numbered(name):
    with pytest.raises(ValueError, match=rf"{name} keeps one entry.*CartPole-v1 are not numbered.*linear_q .*or dqn"):
        getattr(purerl, name).Config(env="CartPole-v1")


def test_train_takes_a_key_and_a_config_of_its_own():
    for wrong in ((KEY, dqn.Config()), (ppo.Config(), KEY), (0, ppo.Config())):
        with pytest.raises(TypeError, match=r"ppo.train needs a key, as jax.random.key\(0\) gives, and a ppo.Config"):
            ppo.train(*wrong)


def test_replace_is_checked_too():
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        ppo.Config().replace(num_envs=0)


@pytest.mark.parametrize(("algorithm", "field"), [(ppo, "num_envs"), (ppo, "total_timesteps"), (dqn, "buffer_size")])
def test_static_fields_refuse_tracers(algorithm, field):
    def train(value):
        return algorithm.train(KEY, algorithm.Config(**{field: value}))

    for transform in (jax.vmap, jax.jit):
        with pytest.raises(
            TypeError, match=f"{algorithm.__name__.split('.')[-1]}.Config.{field} is static.*Python int"
        ):
            transform(train)(jnp.array([8, 16]))


def test_a_list_is_as_good_as_a_tuple():
    """A Config holds the tuple, since a list has no hash and could change."""
    assert ppo.Config(actor_hidden_sizes=[8, 4]).actor_hidden_sizes == (8, 4)
    assert ppo.Config().replace(critic_hidden_sizes=[]).critic_hidden_sizes == ()
    with pytest.raises(TypeError, match=r"actor_hidden_sizes must be a tuple of Python ints, but is \(8, 4.0\)"):
        ppo.Config(actor_hidden_sizes=[8, 4.0])


def test_help_shows_the_text_of_each_field():
    shown = pydoc.plain(pydoc.render_doc(ppo.Config))
    assert "gamma: float = 0.99  (traced, at least 0, at most 1)\n |      Discount factor." in shown
    assert "num_envs: int = 4  (static, at least 1)\n |      Environments stepped side by side (N)." in shown
    assert "surrogate: str = 'clip'  (static, one of clip, kl, adaptive_kl, none)" in shown
    assert "target_kl: float = 0.01  (traced, more than 0)" in shown


def test_good_input():
    """The edges of the allowed ranges, and traced values, whose range cannot be known, pass."""
    ppo.Config(gamma=0, gae_lambda=1, learning_rate=0.0, clip_eps=0.0)
    ppo.Config(num_envs=2, num_steps=16, num_minibatches=32, total_timesteps=32)
    dqn.Config(learning_starts=100, iterations_per_update=5, total_timesteps=150, buffer_size=128)
    td3.Config(policy_delay=20, iterations_per_update=5, gradient_steps=4, tau=1.0, noise_theta=1.0, noise_clip=0.0)
    sac.Config(batch_size=64, learning_starts=64, n_step=64, alpha=1e-6, tau=1e-6, noise_theta=1e-6)
    discrete_sac.Config(target_entropy=1.0, learning_starts=300, iterations_per_update=5, total_timesteps=305)
    ddpg.Config(env=Levers(low=(-1e6, 0.0)), exploration_noise=0.0)
    # 31 steps of 2 envs are 62 transitions, and the first batch asks for no more.
    ddpg.Config(num_envs=2, learning_starts=61, batch_size=62)
    config = jax.vmap(lambda gamma: ppo.Config(gamma=gamma))(jnp.array([0.9, 0.5]))
    np.testing.assert_array_equal(config.gamma, np.float32([0.9, 0.5]))
    assert ppo.Config(critic_hidden_sizes=()).critic_hidden_sizes == ()


def test_derived_sizes():
    """A remainder below one update is not trained; DQN's prefill counts, rounded up to whole steps of its envs."""
    config = ppo.Config(num_envs=2, num_steps=16, total_timesteps=127)
    assert config.num_updates == 3 and config.env_steps(3) == 96
    config = dqn.Config(
        num_envs=4, num_steps=2, iterations_per_update=5, learning_starts=10, batch_size=4, total_timesteps=100
    )
    # prefill: 3 steps of 4 envs = 12; an update: 5 * 2 * 4 = 40
    assert [config.env_steps(n) for n in range(3)] == [12, 52, 92]
    assert config.num_updates == 2 and config.prefill_steps == 12


@pytest.mark.parametrize(
    ("algorithm", "fields", "said"),
    [
        (trpo, {"delta": np.float32(0.0)}, "delta must be a finite number greater than 0"),
        (trpo, {"delta": jnp.array([0.01, -1.0])}, "delta must be a finite number greater than 0"),
        (ppo, {"target_kl": np.array([0.01, NAN])}, "target_kl must be a finite number greater than 0"),
        (ppo, {"gamma": jnp.array([0.9, 2.0])}, r"gamma must be a finite number in \[0, 1\]"),
        (dqn, {"learning_rate": np.float64(-1.0)}, r"learning_rate must be a finite number in \[0, inf\]"),
    ],
)
def test_ranges_hold_in_arrays(algorithm, fields, said):
    """One bad entry of a sweep is as wrong as one bad number."""
    with pytest.raises(ValueError, match=said):
        algorithm.Config(**fields)
