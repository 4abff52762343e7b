"""Searching for settings: what Optuna proposes is what trains, the race, and what a search leaves."""

import functools
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optuna
import pytest

import purerl
from purerl import mdp, ppo
from purerl.run import cli, evaluate, ranges, runner, search_figure, settings, tune
from purerl.run.errors import RunError
from purerl.run.ranges import Range
from purerl.run.settings import SettingsError
from tests import tiny
from tests.test_cli import call
from tests.toy_envs import Chain

CONFIG = tiny.config(ppo)
RANGES = {"learning_rate": Range(1e-4, 1e-1, log=True), "gamma": Range(choices=(0.5, 0.9))}
FAST: dict[str, Any] = {"trials": 5, "seeds": 3, "round_size": 4, "eval_episodes": 2, "say": lambda line: None}


def race(traced: list[dict[str, Any]], rungs: list[float], config: Any = CONFIG) -> Any:
    return tune._race(ppo, (7, 8, 9), rungs, 2, config, traced)


@functools.partial(jax.jit, static_argnums=2)
def score(state: Any, key: Any, updates: int, config: Any) -> Any:
    return evaluate.evaluation(ppo, state, config, key, jnp.int32(updates), 2)


def return_of(config: Any, seed: int, updates: int) -> float:
    """Of the greedy policy after so many updates, one by one."""
    key = jax.random.key(seed)
    state, update = jax.jit(ppo.init)(key, config), jax.jit(ppo.update)
    for _ in range(updates):
        state, _ = update(state, config)
    return float(score(state, key, updates, config))


def test_scores_are_those_of_trainings_one_by_one() -> None:
    """Five trials of three seeds over two devices: each trial's mean at each rung; the better three, then two, stay."""
    rates = [1e-3, 1e-2, 3e-2, 1e-1, 3e-3]
    found = race([{"learning_rate": rate} for rate in rates], [1 / 3, 2 / 3, 1.0])
    configs = [CONFIG.replace(learning_rate=rate) for rate in rates]
    expected = np.array([[[return_of(c, s, n) for n in (2, 4, 6)] for s in (7, 8, 9)] for c in configs]).mean(1)
    alive = list(range(5))
    for rung in range(3):
        for trial in alive:
            assert found[trial][0][rung] == pytest.approx(expected[trial, rung], rel=1e-5)
        if rung < 2:
            alive = sorted(sorted(alive, key=lambda trial: -expected[trial, rung])[: (len(alive) + 1) // 2])
    assert [len(scores) for scores, _ in found].count(3) == 2 == sum(to_the_end for _, to_the_end in found)
    assert alive == [trial for trial in range(5) if found[trial][1]]


def test_a_trial_whose_weights_are_no_numbers_leaves_first() -> None:
    found = race([{"learning_rate": 1e-3}, {"learning_rate": 1e38}], [0.5, 1.0], CONFIG.replace(max_grad_norm=1e38))
    assert found[0][1] and len(found[0][0]) == 2 and np.isnan(found[1][0]).tolist() == [True]


@pytest.mark.parametrize("num", [1, 2, 3, 6, 7])
def test_pairs_are_spread_evenly_and_stand_first(num: int) -> None:
    slots = tune._slots(num, 8, 2)
    assert len(set(slots.tolist())) == num and slots.max() < 8
    for device in (0, 1):
        there = sorted(slot - 4 * device for slot in slots.tolist() if slot // 4 == device)
        assert there == list(range(len(there)))
    assert abs(sum(slots < 4) - sum(slots >= 4)) <= 1


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tune.Search]:
    out = tmp_path_factory.mktemp("tune") / "search"
    return out, tune.tune(ppo, CONFIG, RANGES, out=out, **FAST)


def test_a_search_finds_the_best_of_its_trials(searched: tuple[Path, tune.Search]) -> None:
    """Its config is the best trial's, and its score what training that config gives."""
    search = searched[1]
    assert [trial.number for trial in search.trials] == [0, 1, 2, 3, 4]
    whole = [trial for trial in search.trials if not trial.pruned]
    assert 2 <= len(whole) < 5 and search.best.rung_scores[-1] == max(trial.rung_scores[-1] for trial in whole)
    assert search.config == CONFIG.replace(**search.best.fields) and search.best.fields["gamma"] in (0.5, 0.9)
    returns = [return_of(search.config, seed, 6) for seed in (1000, 1001, 1002)]
    assert search.best.rung_scores[-1] == pytest.approx(np.mean(returns), rel=1e-5)
    assert len({trial.fields["learning_rate"] for trial in search.trials}) == 5


def test_a_search_goes_on_where_it_was(searched: tuple[Path, tune.Search], tmp_path: Path) -> None:
    """After a kill in its second round, whose trial was lost, and beyond its end; the dashboard's file has it all."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(searched[0] / "study.log")))
    optuna.load_study(study_name="purerl", storage=storage).ask()
    longer = tune.tune(ppo, CONFIG, RANGES, out=searched[0], **{**FAST, "trials": 6})
    assert [trial.number for trial in longer.trials] == [0, 1, 2, 3, 4, 6] and longer.trials[:5] == searched[1].trials
    states = [t.state.name for t in optuna.load_study(study_name="purerl", storage=storage).trials]
    assert longer.trials[5].fields != longer.trials[0].fields  # not what the search began with
    assert states[5] == "FAIL" and set(states) == {"FAIL", "PRUNED", "COMPLETE"}


def test_half_a_line_at_the_end_is_cut(searched: tuple[Path, tune.Search], tmp_path: Path) -> None:
    """As a full disk leaves it: what is added next does not make the whole study unreadable."""
    path = Path(shutil.copytree(searched[0], tmp_path / "copy"))
    with (path / "study.log").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    again = tune.tune(ppo, CONFIG, RANGES, out=path, **{**FAST, "trials": 5})
    assert [trial.number for trial in again.trials][:5] == [0, 1, 2, 3, 4]
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path / "study.log")))
    assert len(optuna.load_study(study_name="purerl", storage=storage).trials) >= 5


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tune.memory, "free_bytes", lambda devices: 1000)
    with pytest.raises(RunError, match=r"Memory: .* for the states of 16 seed"):
        tune.tune(ppo, CONFIG, RANGES, out=tmp_path / "search", **FAST)


def test_another_search_is_not_mixed_in(searched: tuple[Path, tune.Search], tmp_path: Path) -> None:
    before = (searched[0] / "study.log").read_bytes()
    for config, options, message in (
        (CONFIG.replace(vf_coef=0.1), {}, r"differs in config \(vf_coef\)"),
        (CONFIG, {"seeds": 2}, r"differs in seeds \(3 there, 2 here\)"),
    ):
        with pytest.raises(RunError, match=message):
            tune.tune(ppo, config, RANGES, out=searched[0], **{**FAST, **options})
    assert (searched[0] / "study.log").read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        tune.tune(ppo, CONFIG, RANGES, out=tmp_path, **FAST)


def test_static_fields_group_trials_and_those_that_cannot_be_made_are_told(tmp_path: Path) -> None:
    """Three minibatches do not divide sixteen steps: that trial is said, and the search goes on without it."""
    said: list[str] = []
    searched = {"num_minibatches": Range(choices=(2, 3)), "actor_hidden_sizes": Range(choices=((8,), (4, 4)))}
    options = {**FAST, "say": said.append, "halving": False, "sampler": optuna.samplers.RandomSampler(seed=0)}
    search = tune.tune(ppo, CONFIG, searched, out=tmp_path / "search", **{**options, "trials": 8})
    assert {tuple(trial.fields["actor_hidden_sizes"]) for trial in search.trials} == {(8,), (4, 4)}
    assert all(trial.fields["num_minibatches"] == 2 and not trial.pruned for trial in search.trials)
    refused = sum("cannot be made: num_minibatches = 3 must divide" in line for line in said)
    assert refused > 0 and refused + len(search.trials) == 8


def test_no_trial_with_a_score_is_one_sentence(tmp_path: Path) -> None:
    config = CONFIG.replace(max_grad_norm=1e38)
    with pytest.raises(RunError, match="None of 2 trials has a finite score"):
        tune.tune(ppo, config, {"learning_rate": Range(1e37, 1e38)}, out=tmp_path / "s", **{**FAST, "trials": 2})


@pytest.mark.parametrize(
    ("options", "searched", "message"),
    [
        ({"trials": 0}, RANGES, "trials must be at least 1, but is 0"),
        ({"seeds": 0}, RANGES, "seeds must be at least 1, but is 0"),
        ({"round_size": 0}, RANGES, "round_size must be at least 1"),
        ({}, {}, "nothing to search: no range is known for a field of ppo"),
        ({}, {"gama": Range(0.1, 0.2)}, "ppo has no field gama to search; there are activation, "),
        ({}, {"gamma": Range(0.9, 1.5)}, r"gamma must be a finite number in \[0, 1\], but is 1.5"),
        ({}, {"learning_rate": Range(0.9, float("inf"))}, "learning_rate must be .*finite.* inf"),
        ({}, {"clip_value": Range(0, 1)}, "clip_value must be a Python bool, but is 0"),
        ({}, {"gamma": Range(choices=("a",))}, "gamma must be a number or an array, but is 'a'"),
    ],
)
def test_bad_numbers(options: dict[str, int], searched: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        tune.tune(ppo, CONFIG, searched, out=tmp_path / "search", **{**FAST, **options})
    assert not list(tmp_path.iterdir())


def test_a_policy_that_learns_nothing_is_not_searched(tmp_path: Path) -> None:
    """Of td it is fixed, so that all trials would score the same."""
    config = tiny.config(purerl.td)
    with pytest.raises(ValueError, match="The policy of td does not depend on its training"):
        tune.tune(purerl.td, config, {"gamma": Range(0.1, 0.9)}, out=tmp_path / "search", **FAST)


def test_without_optuna_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'purerl\[tune\]'"):
        tune.tune(ppo, CONFIG, RANGES, out=tmp_path / "search", **FAST)


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_shipped_ranges_lie_within_the_fields_bounds(name: str) -> None:
    """Of every algorithm there is something to search; both ends make a Config."""
    algorithm = getattr(purerl, name)
    found = ranges.shipped(name, algorithm.Config)
    assert found
    for end in (0, -1):
        values = {field: (x.choices[end] if x.choices else (x.low, x.high)[end]) for field, x in found.items()}
        algorithm.Config(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table"),
        ("x = ", "is no valid TOML"),
        ("[learning_rat]\nlow = 1\nhigh = 2", r"ppo has no field of this name to search; did you mean learning_rate"),
        ("[env]\nchoices = ['Acrobot-v1']", "ppo has no field of this name to search"),
        ("gamma = 0.5", r"table \[gamma\] must have low and high, and log, or choices, but is 0.5"),
        ("[gamma]\nleast = 0.5", "but has least"),
        ("[gamma]\nlow = 0.5", "low and high must be numbers, but are 0.5 and None"),
        ("[num_steps]\nlow = 0.5\nhigh = 3", "low and high must be whole numbers, but are 0.5 and 3"),
        ("[gamma]\nlow = 0.9\nhigh = 0.5", "low must be below high"),
        ("[learning_rate]\nlow = 0.0\nhigh = 0.5\nlog = true", "above 0 with log = true"),
        ("[gamma]\nchoices = []", "choices must be a list of values"),
        ("[gamma]\nchoices = [0.5]\nlow = 0.1", "and stand alone"),
    ],
)
def test_a_file_of_ranges_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        ranges.read(tmp_path / "mine.toml", ppo.Config)
    with pytest.raises(SettingsError, match="cannot be read"):
        ranges.read(tmp_path / "missing.toml", ppo.Config)


def test_proposals_become_fields(tmp_path: Path) -> None:
    """Tuples and switches as the Config takes them, whole numbers whole."""
    text = "[actor_hidden_sizes]\nchoices = [[64, 64], [256]]\n[clip_value]\nchoices = [true, false]\n"
    (tmp_path / "mine.toml").write_text(text + "[num_steps]\nlow = 16\nhigh = 64\nlog = true\n")
    found = ranges.read(tmp_path / "mine.toml", ppo.Config)
    trial = optuna.create_study().ask({name: x.distribution() for name, x in found.items()})
    fields = tune._fields(trial, found)
    assert fields["actor_hidden_sizes"] in ((64, 64), (256,)) and type(fields["clip_value"]) is bool
    assert type(fields["num_steps"]) is int and 16 <= fields["num_steps"] <= 64


def test_settings_file_makes_the_config_again(tmp_path: Path) -> None:
    env, file = "mdp/frozen_lake_4x4", tmp_path / "settings.toml"
    config = ppo.Config(env=env, gamma=0.5, actor_hidden_sizes=(8, 8), clip_value=False, surrogate="kl")
    assert ranges.write_settings(file, config)
    (entry,) = settings.read(file, ppo.Config).values()
    assert ppo.Config(env=env, **entry.fields) == config
    assert "learning_rate" not in tomllib.loads(file.read_text())[env]["fields"]


def test_settings_of_an_env_of_ones_own(tmp_path: Path) -> None:
    """By its import path, or not at all where there is none."""
    config = ppo.Config(env=Chain(), gamma=0.5)
    assert ranges.write_settings(tmp_path / "mine.toml", config)
    (env,) = settings.read(tmp_path / "mine.toml", ppo.Config)
    assert env == "tests.toy_envs:Chain"
    walk = mdp.Tabular(mdp.random_walk(5))
    assert not ranges.write_settings(tmp_path / "none.toml", ppo.Config(env=walk))
    assert not (tmp_path / "none.toml").exists()


def test_importance_is_that_of_the_field_that_matters() -> None:
    rng = np.random.default_rng(0)
    searched = {"gamma": Range(0.0, 1.0), "vf_coef": Range(0.0, 1.0)}
    fields = [{"gamma": float(a), "vf_coef": float(b)} for a, b in rng.random((40, 2))]
    trials = [tune.Trial(i, x, (x["gamma"],), False) for i, x in enumerate(fields)]
    shares = search_figure.importances(trials, searched)
    assert shares["gamma"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    assert search_figure.importances(trials[:3], searched) == {}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Table, picture, settings that `purerl train` takes, and a score on seeds that the search has not seen."""
    monkeypatch.setattr(runner, "use_all_cores", lambda: 2)
    (tmp_path / "ranges.toml").write_text("[learning_rate]\nlow = 1e-3\nhigh = 1e-2\n[gamma]\nchoices = [0.9, 0.99]\n")
    out = tmp_path / "search"
    size = [f"--{name.replace('_', '-')}={x}" for name, x in tiny.FIELDS["ppo"].items() if "hidden_sizes" not in name]
    size += ["--actor-hidden-sizes", "8", "--critic-hidden-sizes", "8"]
    numbers = ["--trials", "4", "--seeds", "1", "--round-size", "4", "--eval-episodes", "2", "--final-seeds", "2"]
    flags = ["--ranges", str(tmp_path / "ranges.toml"), "--out", str(out)]
    trained: list[Any] = []
    train = runner.train
    monkeypatch.setattr(cli.runner, "train", lambda *x, **y: (trained.append(y["seeds"]), train(*x, **y))[1])
    call(monkeypatch, "tune", "ppo", *size, *numbers, *flags)
    assert [list(seeds) for seeds in trained] == [[0, 1]]  # and the search had 1000
    printed = capsys.readouterr().out
    for text in ("4 of 4 trials; best", "the best of 4 trials", "learning_rate", "Their final greedy policies earn"):
        assert text in printed
    assert matplotlib.image.imread(out / "search.png").std() > 0
    again = ["--settings", str(out / "settings.toml"), "--num-seeds", "1", "--out", str(out / "t")]
    call(monkeypatch, "train", "ppo", *again)
    stored = json.loads((out / "t" / "config.json").read_text())["config"]
    assert 1e-3 <= stored["learning_rate"] <= 1e-2 and stored["gamma"] in (0.9, 0.99) and stored["num_envs"] == 2
    for arguments, message in (
        (["tune"], "Name an algorithm: purerl tune"),
        (["tune", "pppo"], "There is no algorithm named 'pppo'; did you mean ppo"),
        (["tune", "ppo", "--trials", "0"], "trials must be at least 1, but is 0"),
        (["tune", "ppo", "--final-seeds", "0"], "final_seeds must be at least 1, but is 0"),
        (["tune", "ppo", *flags[:2], "--gamma", "0.5"], "gamma is given and searched: leave it out"),
    ):
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments, *([] if len(arguments) == 1 else ["--out", str(tmp_path / "none")]))
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
