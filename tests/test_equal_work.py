"""That the sides of a speed case do the same work: what each gives to its library, number by number."""

import json
import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import purerl
from benchmarks.speed import policy_gradients
from benchmarks.speed.bench import Bench
from benchmarks.speed.sides.purerl import Purerl
from benchmarks.speed.workers import Start
from tests.test_speed import bench


class Work:
    """What the sides of a case were asked for. configs: purerl's, by algorithm. rivals: the trainings of the others."""

    def __init__(self) -> None:
        self.configs: dict[str, Any] = {}
        self.rivals: list[dict[str, Any]] = []

    def build_train(self, side: Purerl, algorithm: str, config: Any) -> dict[str, float]:
        self.configs[algorithm] = config
        side.train = lambda seed: None
        return {}

    def a2c(self, policy: str, env: Any, **arguments: Any) -> Any:
        made = {"policy": policy, "env": env, **arguments}
        return SimpleNamespace(learn=lambda env_steps: self.rivals.append(made | {"env_steps": env_steps}))

    def stable_baselines(self, vec_env: str) -> Any:
        """The side, with modules in place of those that it imports; who else looks for PyTorch must not find this."""
        contents = {
            "torch": {"nn": SimpleNamespace(Tanh="tanh", ReLU="relu"), "get_num_threads": lambda: 1},
            "stable_baselines3": {"A2C": self.a2c},
            "stable_baselines3.common.env_util": {"make_vec_env": lambda *names, **more: (*names, more["vec_env_cls"])},
            "stable_baselines3.common.vec_env": {"DummyVecEnv": "dummy", "SubprocVecEnv": "subproc"},
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, values in contents.items():
                module = ModuleType(name)
                module.__dict__.update(values)
                patch.setitem(sys.modules, name, module)
            return runpy.run_module("benchmarks.speed.sides.sb3")["StableBaselines3"](vec_env)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Workers answer in this process, and their libraries only write down what they are given."""
    found = Work()

    class Here:
        def __init__(self, start: Start, case: str):
            self.side = found.stable_baselines(start.command[-1]) if start.name.startswith("sb3") else Purerl()

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, do: str, **arguments: Any) -> Any:
            arguments = json.loads(json.dumps(arguments))
            return getattr(self.side, do)(**arguments)

    monkeypatch.setattr(policy_gradients, "Worker", Here)
    monkeypatch.setattr(Purerl, "build_train", lambda *arguments: found.build_train(*arguments))
    monkeypatch.setattr(purerl, "use_all_cores", lambda: 1)
    return found


# What an env step costs, and how many there are.
SIZE = ("env", "env_params", "total_timesteps", "num_envs", "num_steps", "actor_hidden_sizes", "critic_hidden_sizes")
SIZE += ("actor_network", "critic_network", "activation", "anneal_learning_rate", "normalize_obs", "normalize_reward")
SIZE += ("gamma", "max_grad_norm")


def same_size(left: Any, right: Any) -> None:
    for name in SIZE:
        assert getattr(left, name) == getattr(right, name), name


@pytest.mark.parametrize("quick", [False, True])
def test_a2c_is_that_of_stable_baselines(quick: bool, work: Work) -> None:
    """By the names of either library; the critic's loss of the one lacks the factor of one half.

    It knows no n-step advantages but those to the end of the rollout, and neither annealing nor anything normalised.
    All four of its starts are trained three times here, the first of which does not count.
    """
    policy_gradients.measure_a2c(Bench(2, quick, {"sb3": "python"}, {}, bench().report))
    ours = work.configs["a2c"]
    expected = {
        "policy": "MlpPolicy",
        "n_steps": ours.num_steps,
        "learning_rate": ours.learning_rate,
        "gamma": ours.gamma,
        "gae_lambda": ours.gae_lambda,
        "ent_coef": ours.ent_coef,
        "vf_coef": ours.vf_coef / 2,
        "max_grad_norm": ours.max_grad_norm,
        "use_rms_prop": ours.optimizer == "rmsprop",
        "policy_kwargs": {
            "net_arch": {"pi": list(ours.actor_hidden_sizes), "vf": list(ours.critic_hidden_sizes)},
            "activation_fn": ours.activation,
        },
        "device": "cpu",
        "env_steps": ours.total_timesteps,
    }
    envs = [(ours.env, ours.num_envs, vec_env) for vec_env in ("dummy", "dummy", "subproc", "subproc")]
    assert work.rivals == [expected | {"env": env, "seed": seed} for seed in range(3) for env in envs]
    assert ours.n_step == ours.num_steps and ours.actor_network is None and ours.critic_network is None
    assert not (ours.anneal_learning_rate or ours.trust_region or ours.normalize_obs or ours.normalize_reward)
    assert (ours.env, ours.num_envs, ours.num_steps) == ("CartPole-v1", 64, 8)  # as the report says
    assert ours.env_steps(ours.num_updates) == ours.total_timesteps == (4 if quick else 200) * 512


def test_ppo_acts_as_a2c_does(work: Work) -> None:
    """On as many steps from as many envs, with the same networks, and with the four epochs that the report names."""
    policy_gradients.measure_a2c(bench())
    assert work.configs.keys() == {"a2c", "ppo"} and not work.rivals
    same_size(*work.configs.values())
    assert (work.configs["ppo"].num_epochs, work.configs["ppo"].num_minibatches) == (4, 4)


def test_ppo_works_as_trpo_does(work: Work) -> None:
    """The steps, the networks and the gradient steps of the critic are the same."""
    policy_gradients.measure_trpo(bench())
    trpo, ppo = (work.configs[name] for name in ("trpo", "ppo"))
    same_size(trpo, ppo)
    assert (trpo.num_epochs, trpo.num_minibatches) == (ppo.num_epochs, ppo.num_minibatches) == (4, 4)
    assert (trpo.env, trpo.num_envs, trpo.num_steps) == ("CartPole-v1", 4, 128)  # as the report says
    assert trpo.env_steps(trpo.num_updates) == trpo.total_timesteps
