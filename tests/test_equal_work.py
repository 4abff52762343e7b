"""That the sides of a speed case do the same work: what each gives to its library, number by number."""

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import flax.linen as nn
import pytest

import purerl
from benchmarks.speed import cases, off_policy, policy_gradients
from benchmarks.speed.bench import Bench
from benchmarks.speed.sides.purerl import Purerl, make_config, pets_flops, sac_flops
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

    def agent(self, policy: str, env: Any, **arguments: Any) -> Any:
        made = {"policy": policy, "env": env, **arguments}
        trained = SimpleNamespace(actor_state=SimpleNamespace(params=()))
        return SimpleNamespace(
            learn=lambda env_steps: self.rivals.append(made | {"env_steps": env_steps}), policy=trained
        )

    def stable_baselines(self, vec_env: str) -> Any:
        """The side of Stable-Baselines3."""
        return pretending("sb3", self.libraries())["StableBaselines3"](vec_env)

    def sbx(self) -> Any:
        """The side of SBX."""
        return pretending("sbx", self.libraries())["SBX"]()

    def libraries(self) -> dict[str, dict[str, Any]]:
        """What the sides import, by module."""
        return {
            "torch": {"nn": SimpleNamespace(Tanh="tanh", ReLU="relu"), "get_num_threads": lambda: 1},
            "stable_baselines3": {"A2C": self.agent, "SAC": self.agent},
            "stable_baselines3.common.env_util": {
                "make_vec_env": lambda *names, **more: (*names, more.get("vec_env_cls", "dummy"))
            },
            "stable_baselines3.common.vec_env": {"DummyVecEnv": "dummy", "SubprocVecEnv": "subproc"},
            "sbx": {"SAC": self.agent},
        }


def pretending(side: str, libraries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a side's file defines, with modules in place of those that it imports; nobody else may find these."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in libraries.items():
            module = ModuleType(name)
            module.__dict__.update(values)
            patch.setitem(sys.modules, name, module)
        return runpy.run_module(f"benchmarks.speed.sides.{side}")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Workers answer in this process, and their libraries only write down what they are given."""
    found = Work()

    class Here:
        def __init__(self, start: Start, case: str):
            if start.name.startswith("sb3"):
                self.side = found.stable_baselines(start.command[-1])
            else:
                self.side = found.sbx() if start.name.startswith("sbx") else Purerl()

        def __enter__(self) -> "Here":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, do: str, **arguments: Any) -> Any:
            arguments = json.loads(json.dumps(arguments))
            return getattr(self.side, do)(**arguments)

    monkeypatch.setattr(policy_gradients, "Worker", Here)
    monkeypatch.setattr(off_policy, "Worker", Here)
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


@pytest.mark.parametrize("quick", [False, True])
def test_sac_is_that_of_stable_baselines_and_sbx(quick: bool, work: Work) -> None:
    """By their names. The libraries learn both losses with one rate and a temperature that starts at 1.

    Each start of each is trained three times here, the first of which does not count.
    """
    off_policy.measure_sac(Bench(2, quick, {"sb3": "python", "sbx": "python"}, {}, bench().report))
    ours = work.configs["sac"]
    expected = {
        "policy": "MlpPolicy",
        "env": (ours.env, ours.num_envs, "dummy"),
        "buffer_size": ours.buffer_size,
        "learning_starts": ours.learning_starts,
        "batch_size": ours.batch_size,
        "learning_rate": ours.learning_rate,
        "gamma": ours.gamma,
        "tau": ours.tau,
        "train_freq": ours.num_steps,
        "gradient_steps": ours.gradient_steps,
        "ent_coef": "auto",
        "target_entropy": ours.target_entropy,
        "policy_kwargs": {"net_arch": list(ours.critic_hidden_sizes), "activation_fn": ours.activation},
        "env_steps": ours.total_timesteps,
    }
    torch, jax = expected | {"device": "cpu"}, expected | {"seed": 0}
    jax["policy_kwargs"] = expected["policy_kwargs"] | {"activation_fn": getattr(nn, ours.activation)}
    assert work.rivals == [side for seed in range(3) for side in (*[torch | {"seed": seed}] * 2, jax, jax)]
    assert ours.actor_hidden_sizes == ours.critic_hidden_sizes == (256, 256)  # as the report says
    learns_as_the_others_do(ours)


def learns_as_the_others_do(ours: Any) -> None:
    """What no other library's settings name."""
    assert ours.learning_rate == ours.critic_learning_rate and (ours.n_step, ours.gradient_steps) == (1, 1)
    assert ours.actor_network is None and ours.critic_network is None
    assert not (ours.layer_norm or ours.normalize_obs or ours.anneal_learning_rate)
    assert ours.noise_theta == 1 and ours.buffer_size >= ours.total_timesteps
    assert (ours.env, ours.num_envs, ours.batch_size) == ("Pendulum-v1", 1, 256)  # as the report says
    assert ours.prefill_steps == ours.learning_starts == 1000
    assert ours.env_steps(ours.num_updates) == ours.total_timesteps
    if ours.__class__.__module__.endswith("sac"):
        assert ours.learn_alpha and (ours.alpha, ours.alpha_learning_rate) == (1, ours.learning_rate)


class Rejax:
    """Stands for rejax: an algorithm is what it was made of."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def create(self, **arguments: Any) -> Any:
        self.made = arguments
        return SimpleNamespace(replace=lambda **_: arguments)


@pytest.mark.parametrize("case", ["sac-1", "td3-1"])
@pytest.mark.parametrize("quick", [False, True])
def test_rejax_learns_off_policy_as_purerl_does(case: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rejax's names; its TD3 has no other layers than two of 64, and its noise is in units of a torque up to 2."""
    monkeypatch.setattr(purerl, "use_all_cores", lambda: 1)
    configs: list[Any] = []
    monkeypatch.setattr(Purerl, "build_train", lambda side, algorithm, config: configs.append(config) or {})
    Purerl().build(case, quick)
    (ours,), work = configs, cases.WORK[case]
    rejax = pretending("rejax", {"rejax": {"SAC": Rejax(), "TD3": Rejax()}})
    expected = {
        "env": ours.env,
        "total_timesteps": ours.total_timesteps,
        "eval_freq": ours.total_timesteps,
        "skip_initial_evaluation": True,
        "num_envs": ours.num_envs,
        "buffer_size": ours.buffer_size,
        "fill_buffer": ours.learning_starts,
        "batch_size": ours.batch_size,
        "num_epochs": ours.gradient_steps,
        "learning_rate": ours.learning_rate,
        "gamma": ours.gamma,
        "polyak": 1 - ours.tau,
        "target_update_freq": 1,
    }
    network = {"activation": ours.activation}
    if case == "sac-1":
        expected |= {"hidden_layer_sizes": ours.actor_hidden_sizes, "agent_kwargs": network}
        assert ours.target_entropy == -1 and cases.TD3_NOISE.keys().isdisjoint(expected)
    else:
        noise = {"exploration_noise": ours.exploration_noise, "target_noise": ours.target_noise}
        noise |= {"target_noise_clip": ours.noise_clip}
        expected |= {name: 2 * value for name, value in noise.items()}
        expected |= {"policy_delay": ours.policy_delay, "actor_kwargs": network, "critic_kwargs": network}
        assert (ours.total_timesteps - ours.learning_starts) % ours.policy_delay == 0
    assert rejax["make_algorithm"](work, work.steps(quick)) == expected
    assert ours.actor_hidden_sizes == ours.critic_hidden_sizes == (64, 64)
    learns_as_the_others_do(ours)


def test_both_sides_of_the_parts_count_the_same_products() -> None:
    """With layers of 2 and 3, batch 1, observations of 3 and actions of 1 number: products of one input by hand.

    The actor's (3, 2, 3, 2) take 2 (6 + 6 + 6) = 36 forward, and backward to the weights 36 and to the inside 24. A
    critic's (4, 2, 3, 1) take 2 (8 + 6 + 3) = 34, 34 and 18. The target is a pass of the actor and of two critics; the
    critics' loss two whole passes; the actor's loss a whole pass of the actor, and two critics forward and to their
    input.
    """
    config = make_config("sac", 1500, batch_size=1, actor_hidden_sizes=(2, 3), critic_hidden_sizes=(2, 3))
    expected = (36 + 2 * 34) + 2 * (34 + 34 + 18) + (36 + 36 + 24) + 2 * (34 + 34)
    assert sac_flops(config, 3, 1) == expected


def test_memory_is_measured_when_it_is_full() -> None:
    """Pendulum's 3 + 3 numbers of observations, an action, a reward and a word of two flags; two counters in all."""
    side = Purerl()
    assert side.build_memory(env="Pendulum-v1", capacity=8, batch_size=4, steps=3) == 9 * 4 + 8 / 8
    side.run(seed=0)
    assert (int(side.memory.size), int(side.memory.position)) == (8, 3)


def test_sac_draws_from_a_memory_that_counts_as_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its 2,000 places the first 1,000 are written before; an update takes 500 env steps. None is run here."""
    side = Purerl()
    monkeypatch.setitem(side.build_full_sac.__globals__, "compile_timed", lambda *_: (lambda state, _: state, {}))
    assert side.build_full_sac(env="Pendulum-v1", capacity=2_000, num_updates=3) == 1_500
    assert (int(side.state.replay.size), int(side.state.replay.position)) == (2_000, 1_000)
    assert side.state.replay.rows.shape[0] == 2_000


def test_flops_of_pets_by_hand() -> None:
    """One hidden layer of 2; five inputs, two outputs of 4 numbers each."""
    fields = {"hidden_sizes": (2,), "num_members": 3, "batch_size": 4, "gradient_steps": 2, "horizon": 5}
    config = make_config("pets", 500, **fields, num_steps=6, population=10, planning_iterations=2)
    forward = 2 * (4 * 2 + 2 * 8)
    expected = {"planning": 6 * 5 * 3 * 21 * forward, "training": 2 * 3 * 4 * (2 * forward + 2 * 2 * 8)}
    assert pets_flops(config, 3, 1) == expected


def test_pets_has_the_settings_that_both_sides_read() -> None:
    config = make_config("pets", cases.WORK["pets"].env_steps)
    assert {name: getattr(config, name) for name in cases.PETS} == cases.PETS
    assert config.learn_reward and not config.learn_end and config.env_steps(config.num_updates) == 700


def test_trials_of_both_searches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """RL Zoo's Stable-Baselines3 gets the fixed fields, and a proposal, that purerl trains with."""
    managers, studies, samplers = list[dict[str, Any]](), list[Any](), dict[str, Any]()

    def manager(args: Any, algorithm: str, env: str, folder: str, **more: Any) -> Any:
        managers.append(more | json.loads(Path(more["config"]).read_text())[env])
        return SimpleNamespace(setup_experiment=lambda: None, objective="objective")

    def study(**options: Any) -> Any:
        studies.append(options)
        return SimpleNamespace(optimize=lambda objective, n_trials: studies.append(n_trials), best_value=7.0)

    libraries = {
        "optuna": {"create_study": study, "pruners": SimpleNamespace(NopPruner=lambda: "none")},
        "rl_zoo3": {"hyperparams_opt": SimpleNamespace(HYPERPARAMS_SAMPLER=samplers)},
        "rl_zoo3.exp_manager": {"ExperimentManager": manager},
    }
    zoo = pretending("zoo", libraries)["Zoo"]()
    zoo.build("tune", quick=False)
    found: dict[str, Any] = {}
    monkeypatch.setattr(purerl, "use_all_cores", lambda: 2)

    def search(_: Any, config: Any, ranges: Any, **options: Any) -> Any:
        found.update(config=config, ranges=ranges, **options)
        proposal = SimpleNamespace(fields=dict.fromkeys(ranges, 0.5), rung_scores=(1.0,))
        return SimpleNamespace(trials=[proposal])

    monkeypatch.setattr("purerl.run.tune.tune", search)
    (fields,) = Purerl().search(64, quick=False, seed=3)["fields"]
    assert zoo.trial(fields)["score"] == 7.0 and studies[1] == 1 and studies[0]["pruner"] == "none"
    config, given, proposed = found["config"], managers[0], samplers["ppo"](None, 2, 4, {})
    assert given["n_timesteps"] == config.total_timesteps == config.env_steps(config.num_updates)
    assert (given["n_envs"], given["n_steps"], given["n_epochs"]) == (4, 128, 4)
    assert (config.num_envs, config.num_steps, config.num_epochs) == (4, 128, 4)
    assert given["batch_size"] == 4 * 128 // config.num_minibatches
    assert given["n_eval_episodes"] == found["eval_episodes"] == 32 and given["n_evaluations"] == 1
    assert (found["trials"], found["seeds"], found["halving"], found["sampler_seed"]) == (64, 1, False, 3)
    assert not config.anneal_learning_rate and not config.clip_value and not config.normalize_obs
    theirs = {"learning_rate", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef", "max_grad_norm"}
    assert set(proposed) == theirs
    assert proposed.pop("vf_coef") == 0.25 and set(proposed.values()) == {0.5}
