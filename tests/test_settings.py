"""Settings are data: what purerl ships is whole and usable, and a wrong file gets one sentence that says where."""

import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import purerl
from purerl import dqn, linear_q, ppo
from purerl.run import cli, settings

FOLDER = Path(settings.__file__).parent.parent / "tuned"
ENTRIES = [(path.stem, env) for path in sorted(FOLDER.glob("*.toml")) for env in settings.shipped(path.stem)]


def whole(algorithm: str, env: str) -> Iterator[tuple[str, settings.Setting]]:
    entry = settings.shipped(algorithm)[env]
    yield from {"": entry, **entry.variants}.items()


def test_each_file_is_of_an_algorithm() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} <= set(purerl.ALGORITHMS) and len(ENTRIES) >= 15
    assert settings.shipped("value_iteration") == {}


@pytest.mark.parametrize(
    "algorithm, env",
    [pytest.param(*entry, marks=[pytest.mark.thorough] if entry[1].startswith("brax/") else []) for entry in ENTRIES],
)
def test_each_entry_makes_a_config_and_has_a_bar_with_its_source(algorithm: str, env: str) -> None:
    for variant, setting in whole(algorithm, env):
        config = purerl.tuned(algorithm, env, variant)
        assert config.env == env and config.num_updates > 0
        assert {name: getattr(config, name) for name in setting.fields} == setting.fields
        assert setting.bar is not None and len(setting.source) > 10 and not (variant and setting.variants)


def test_each_file_is_one_that_a_user_could_give() -> None:
    """What is checked of a user's file holds for the shipped ones too, values included."""
    for path in FOLDER.glob("*.toml"):
        config_class = getattr(purerl, path.stem).Config
        assert settings.read(path, config_class) == settings.shipped(path.stem)


def test_a_variant_has_the_fields_of_its_entry_and_may_have_a_bar(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("""
[CartPole-v1]
bar = 400
source = "own"
evaluate = "epsilon"
fields = { num_envs = 2, hidden_sizes = [8, 4], learning_rate = 1 }
[CartPole-v1.variants.wide]
fields = { num_envs = 16 }
[CartPole-v1.variants."n 3"]
bar = 450
source = "a paper"
fields = { n_step = 3 }
["mdp/random_walk"]
["tests.toy_envs:Chain"]
""")
    table = settings.read(file, dqn.Config)
    assert table["tests.toy_envs:Chain"].fields == {}
    cartpole, walk = table["CartPole-v1"], table["mdp/random_walk"]
    assert cartpole.fields == {"num_envs": 2, "hidden_sizes": (8, 4), "learning_rate": 1}
    wide, n_3 = cartpole.variants["wide"], cartpole.variants["n 3"]
    assert wide.fields == {**cartpole.fields, "num_envs": 16} and n_3.fields == {**cartpole.fields, "n_step": 3}
    assert [(x.bar, x.source, x.evaluate) for x in (cartpole, wide, n_3, walk)] == [
        (400, "own", "epsilon"),
        (400, "own", "epsilon"),
        (450, "a paper", "epsilon"),
        (None, "", "greedy"),
    ]


def test_tuned_says_what_there_is() -> None:
    with pytest.raises(KeyError, match=r"no tuned settings of ppo for nowhere; there are for: CartPole-v1, Acrobot"):
        purerl.tuned("ppo", "nowhere")
    with pytest.raises(KeyError, match=r"no tuned settings of td for CartPole-v1; there are for: none"):
        purerl.tuned("td", "CartPole-v1")
    with pytest.raises(KeyError, match=r"dqn on CartPole-v1 has no variant 'triple'; it has: double"):
        purerl.tuned("dqn", "CartPole-v1", "triple")


# Of each a file for PPO, where it is wrong, and what is said.
WRONG = {
    "no TOML": ("[CartPole-v1\n", "FILE is no valid TOML: "),
    "empty": ("# nothing\n", "FILE holds no table; it needs one an environment"),
    "no table": ("bar = 3\n", "FILE, table [bar] must be a table with fields, bar"),
    "unknown key": ("[CartPole-v1]\nbars = 3", "table [CartPole-v1]: there is no 'bars'; it may have fields, bar"),
    "bar is text": ("[CartPole-v1]\nbar = '3'\nsource = 'x'", "table [CartPole-v1]: bar must be a number, but is '3'"),
    "bar is true": ("[CartPole-v1]\nbar = true\nsource = 'x'", "bar must be a number, but is True"),
    "bar that cannot fail": ("[CartPole-v1]\nbar = -inf\nsource = 'x'", "bar must be finite, but is -inf"),
    "bar without source": ("[CartPole-v1]\nbar = 3", "table [CartPole-v1]: bar and source go together"),
    "bar with an empty source": ("[CartPole-v1]\nbar = 3\nsource = ' '", "bar and source go together"),
    "source without bar": ("[CartPole-v1]\nsource = 'x'", "bar and source go together"),
    "evaluate": ("[CartPole-v1]\nevaluate = 'best'", "evaluate must be one of greedy, epsilon, but is 'best'"),
    "no epsilon": ("[CartPole-v1]\nevaluate = 'epsilon'", "needs an algorithm with the field epsilon_end"),
    "unknown field": (
        "[CartPole-v1.fields]\nnum_env = 3",
        "FILE, table [CartPole-v1], field num_env: there is no such field; did you mean num_envs?",
    ),
    "env as a field": ("[CartPole-v1.fields]\nenv = 'x'", "field env: the table's own name is the env"),
    "physics": ("[CartPole-v1.fields]\nenv_params = { x = 1 }", "field env_params: it can be given in Python alone"),
    "type of a static field": (
        "[CartPole-v1.fields]\nnum_envs = 4.0",
        "table [CartPole-v1]: ppo.Config.num_envs must be a Python int, but is 4.0 of type float",
    ),
    "type of a traced field": ("[CartPole-v1.fields]\ngamma = true", "field gamma must be a number, but is True"),
    "array in a traced field": ("[CartPole-v1.fields]\ngamma = [0.9]", "field gamma must be a number, but is [0.9]"),
    "value": ("[CartPole-v1.fields]\ngamma = 1.5", "table [CartPole-v1]: ppo.Config.gamma must be a finite number in"),
    "env": ("['CartPol/e v1']\n", 'table ["CartPol/e v1"]: There is no'),
    "second table": ("[CartPole-v1]\n[Acrobot-v1.fields]\nnum_envs = 0", "table [Acrobot-v1]: ppo.Config.num_envs"),
    "variant": ("[CartPole-v1.variants.a.fields]\nnum_envs = 0", "table [CartPole-v1.variants.a]: ppo.Config.num_envs"),
    "field of a variant": ("[CartPole-v1.variants.a.fields]\nx = 0", "[CartPole-v1.variants.a], field x: there is no"),
    "key of a variant": ("[CartPole-v1.variants.a]\nevaluate = 'greedy'", "variants.a]: there is no 'evaluate'"),
    "variant that is none": ("[CartPole-v1.variants]\na = 3", "[CartPole-v1.variants.a] must be a table with fields"),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(settings.SettingsError, match=re.escape(message.replace("FILE", str(file)))) as error:
        settings.read(file, ppo.Config)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(settings.SettingsError, match=rf"^The settings {re.escape(str(path))} cannot be read: "):
            settings.read(path, ppo.Config)


def test_a_bar_is_one_that_can_be_missed() -> None:
    """No bar is above the optimum, nor so far below it that a poor policy reaches it."""
    most = {"CartPole-v1": 500, "Catch-bsuite": 1, "mdp/cliff_walking": -13, "DeepSea-bsuite": 0.99}
    least = {"CartPole-v1": 475, "Catch-bsuite": 0.95, "mdp/cliff_walking": -17, "DeepSea-bsuite": 0.9}
    for algorithm, env in ENTRIES:
        for _, setting in whole(algorithm, env):
            assert setting.bar is not None and math.isfinite(setting.bar)
            assert least.get(env, -math.inf) <= setting.bar <= most.get(env, math.inf)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text("""
[MountainCar-v0.fields]
num_tilings = 2
num_tiles = 4
learning_rate = 0.25
num_steps = 8
total_timesteps = 48
["mdp/gridworld".fields]
features = "one_hot"
total_timesteps = 2000
""")
    return file


def test_train_starts_from_a_users_own_file(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The file's table counts, flags override it, and it is read for the env that --env names."""
    trained = {}

    def train(algorithm: Any, config: Any, **options: Any) -> Any:
        trained["config"] = config
        return types.SimpleNamespace(stop_signal=None)

    monkeypatch.setattr(cli.runner, "use_all_cores", lambda: 2)
    monkeypatch.setattr(cli.runner, "train", train)
    monkeypatch.setattr(cli, "_report", lambda run, folder: None)
    cli.train(["linear_q", "--settings", str(mine), "--gamma", "0.5"])
    assert f"Settings in {mine} of linear_q for MountainCar-v0; flags override them." in capsys.readouterr().out
    fields = settings.read(mine, linear_q.Config)["MountainCar-v0"].fields
    assert trained["config"] == linear_q.Config(env="MountainCar-v0", gamma=0.5, **fields)
    cli.train(["linear_q", f"--settings={mine}", "--env", "mdp/gridworld"])
    assert trained["config"] == linear_q.Config(env="mdp/gridworld", features="one_hot", total_timesteps=2000)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "linear_q --settings FILE --env CartPole-v1",
            "FILE has no table for CartPole-v1: name an --env that it has, of ",
        ),
        ("ppo --settings FILE", "FILE, table [MountainCar-v0], field num_tilings: there is no such field"),
        ("ppo --settings missing.toml", "The settings missing.toml cannot be read"),
        ("ppo --settings", "--settings needs a value"),
        ("ppo --resume FOLDER --settings FILE", "A resumed run goes on with the settings that it began with"),
    ],
)
def test_a_wrong_use_of_settings_is_one_sentence(
    arguments: str, message: str, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli.runner, "use_all_cores", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["purerl", "train", *arguments.replace("FILE", str(mine)).split()])
    with pytest.raises(SystemExit) as status:
        cli.main()
    error = capsys.readouterr().err
    assert status.value.code == 2 and error.count("\n") == 1 and message.replace("FILE", str(mine)) in error
