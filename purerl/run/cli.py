"""The command line: `purerl train | tune | evaluate | plot | render | export | list`."""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import purerl
from purerl.core import checks
from purerl.core.types import field_docs
from purerl.run import checkpoint, logs, objects, processes, runner, settings
from purerl.run import folder as run_folder


@dataclasses.dataclass
class TrainOptions:
    """What a run is, apart from the algorithm's own fields."""

    num_seeds: int = 8
    """Seeds trained at once, spread over all cores."""
    first_seed: int = 0
    """The first of them."""
    seeds: tuple[int, ...] = ()
    """Which seeds, in place of a number of them."""
    out: str | None = None
    """Folder of the run; runs/<algo>_<env>_<time> where not given."""
    settings: str | None = None
    """File of settings to start from in place of the tuned ones, in the form of purerl/tuned/*.toml."""
    resume: str | None = None
    """Folder of an interrupted run to go on with."""
    seeds_at_once: int | None = None
    """Seeds that a device runs vmapped; the others wait their turn. Not given: 1 on a CPU, else as many as fit."""
    devices_per_seed: int | None = None
    """Devices over which the envs of each seed are split; not given: 1."""
    checkpoint_seconds: float = 30.0
    """Least time between checkpoints."""
    start_from: str | None = None
    """Folder of another run of the algorithm, whose final weights are the first ones here."""
    eval_every: int | None = None
    """Env steps of a seed from one evaluation of the greedy policy to the next; not given: none."""
    eval_episodes: int | None = None
    """Episodes of each evaluation; not given: 32."""
    tensorboard: bool = False
    """Write TensorBoard logs too."""
    wandb: bool = False
    """Send Weights & Biases logs too."""
    coordinator: str | None = None
    """Address and port of process 0, where several processes share the seeds and no launcher says it: node0:12345."""
    num_processes: int | None = None
    """How many they are; 1 for a process that trains alone, whatever a launcher says."""
    process_id: int | None = None
    """Which of them this is, from 0 on; process 0 keeps the folder."""


@dataclasses.dataclass
class TuneOptions:
    """What a search is, apart from the fields of all trials."""

    trials: int = 64
    """Trials in all, those of before included where the folder holds the same search."""
    seeds: int = 4
    """Trainings of each trial, from seed 1000 on."""
    ranges: str | None = None
    """File of ranges to search, in the form of purerl/tuned/ranges/defaults.toml; those where not given."""
    round_size: int = 16
    """Trials that train side by side, before more are proposed."""
    halving: bool = True
    """Of trials that share a program, let the worse half leave after a quarter and again after half of the training."""
    eval_episodes: int = 32
    """Episodes of each score."""
    final_seeds: int = 8
    """Seeds from 0 on that the best settings are trained and scored with in the end."""
    out: str | None = None
    """Folder of the search; runs/tune_<algo>_<env> where not given."""
    settings: str | None = None
    """File of settings to start from in place of the tuned ones."""


@dataclasses.dataclass
class EvaluateOptions:
    """Runs the final policy of every seed for whole episodes."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    best: bool = False
    """The best policy of each seed, of a run with --eval-every, in place of the final one."""
    num_episodes: int = 128
    """Episodes a seed."""
    stochastic: bool = False
    """Draw actions in place of the policy's mode."""
    seed: int = 0
    """Seed of the evaluation's own randomness."""


@dataclasses.dataclass
class PlotOptions:
    """IQM over seeds with a 95 % bootstrap band, several runs in one picture."""

    folders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of the runs."""
    metric: str | None = None
    """Column of metrics.csv; the return of the episodes where not given, or of a planner the first metric."""
    out: str | None = None
    """Picture to write; in the first folder curve.png of one run, or comparison.png of several, where not given."""


@dataclasses.dataclass
class RenderOptions:
    """One greedy episode of one seed's final policy as a GIF."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    best: bool = False
    """The best policy of each seed, of a run with --eval-every, in place of the final one."""
    seed: int | None = None
    """Which seed's policy; the run's first where not given."""
    episode: int = 0
    """Seed of the episode's own randomness."""
    max_steps: int = 500
    """Where the episode is cut."""
    out: str | None = None
    """File to write; <folder>/episode.gif where not given. For a Brax env page.html is Brax's own page, which loads its
    script, three.js, from the network."""


@dataclasses.dataclass
class ExportOptions:
    """One seed's final policy as a file: a StableHLO program, which jax runs without purerl, or purerl's own."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    best: bool = False
    """The best policy of each seed, of a run with --eval-every, in place of the final one."""
    seed: int | None = None
    """Which seed's policy; the run's first where not given."""
    stochastic: bool = False
    """Draw actions in place of the policy's mode, by numbers that the program is given."""
    out: str | None = None
    """File to write; <folder>/policy.stablehlo where not given. One that ends in .policy is for purerl.load_policy,
    which chooses between mode and draw itself."""


def main() -> None:
    """Entry point of the `purerl` command.

    Exits with one sentence where something is wrong: with 2 for the input, 1 for what failed in training, and
    128 + its number for a signal.
    """
    commands = {
        "train": train,
        "tune": tune,
        "evaluate": evaluate,
        "plot": plot,
        "render": render,
        "export": export,
        "list": show_list,
    }
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if arguments[0] == "--version":
        print(f"purerl {purerl.__version__}, jax {jax.__version__}")
        return
    if arguments[0] not in commands:
        _fail(f"There is no command {arguments[0]!r}{objects.near(arguments[0], list(commands))}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for algorithms and envs of one's own, as `python -m` would find them
    try:
        commands[arguments[0]](arguments[1:])
    except processes.ElsewhereError as error:
        _fail(str(error) if processes.index() == 0 else None, status=1)
    except runner.StoppedError as error:
        _fail(str(error), status=1)
    except (runner.RunError, checkpoint.CheckpointError, ValueError, TypeError, ImportError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _leave(f"Stopped by SIGINT.{_going_on(arguments)}", status=128 + signal.SIGINT)


def _going_on(arguments: list[str]) -> str:
    """What to do after an interrupt between two commands of the runner, such as while a program compiles."""
    if arguments[0] == "tune":
        return " The same command goes on after the rounds that are done."
    folder = _value_of("--resume", arguments) or _value_of("--out", arguments)
    there = folder is not None and (Path(folder) / run_folder.CONFIG).is_file()
    return f" Go on with --resume {folder}." if there else ""


_USAGE = """purerl: reinforcement learning in pure JAX

  purerl train ALGORITHM [--env NAME] [flags]   train seeds on all cores; `purerl train ppo --help` lists the flags
  purerl train ./mine.py [--env mine:MyEnv]     an algorithm, or an env, of your own: a file or a module's name
  purerl train --resume DIR                     go on with an interrupted run
  purerl tune ALGORITHM [--env NAME] [flags]    search for its settings, many trials at once
  purerl evaluate DIR                           returns of the final policies over whole episodes
  purerl plot DIR [DIR ...]                     learning curves, IQM over seeds with a 95 % interval
  purerl render DIR                             one episode of the final policy as a GIF
  purerl export DIR                             the final policy as a StableHLO program, which jax runs by itself
  purerl list                                   algorithms, what they can act on, environments
  purerl --version                              versions of purerl and jax"""


def _leave(message: str | None, status: int) -> None:
    """Ends the process at once: where XLA's threads still compile they crash while the interpreter is taken apart."""
    if message is not None:
        print(f"purerl: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fail(message: str | None, status: int = 2) -> None:
    if processes.connected():
        if message is not None:
            message = f"process {processes.index()} of {processes.count()}: {message}"
        _leave(message, status)  # at its end Python would wait for the others, and they for this one
    print(f"purerl: {message}", file=sys.stderr)
    raise SystemExit(status)


def train(arguments: list[str]) -> None:
    """`purerl train ALGORITHM ...`, or `purerl train [ALGORITHM] --resume DIR`."""
    if not {"-h", "--help"} & set(arguments):
        _connect(arguments)
    runner.use_all_cores()
    if processes.connected():
        processes.check_alike({"flags": shlex.join(_shared(arguments))})
    with contextlib.ExitStack() as stack:
        if processes.connected() and processes.index() > 0:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        _train(arguments)


def _shared(arguments: list[str]) -> list[str]:
    """Those that all processes of a run have alike."""
    own, kept, skip = ("--coordinator", "--num-processes", "--process-id"), list[str](), False
    for argument in arguments:
        given, equals, _ = argument.partition("=")
        place = not skip and given.replace("_", "-") in own
        if not (skip or place):
            kept.append(argument)
        skip = place and not equals
    return kept


def _connect(arguments: list[str]) -> None:
    """To the other processes of the run, as flags or a launcher say. Raises ValueError for a flag that is no number."""
    numbers = {name: _value_of(f"--{name}", arguments) for name in ("num-processes", "process-id")}
    for name, text in numbers.items():
        if text is not None and not text.removeprefix("-").isdecimal():
            raise ValueError(f"--{name} must be a whole number, but is {text!r}.")
    given = (None if text is None else int(text) for text in numbers.values())
    processes.connect(_value_of("--coordinator", arguments), *given, say=lambda line: print(line, flush=True))


def _train(arguments: list[str]) -> None:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    resume, file = _value_of("--resume", arguments), _value_of("--settings", arguments)
    if resume is not None and file is not None:
        raise ValueError("A resumed run goes on with the settings that it began with: leave out --settings.")
    if resume is not None:
        algorithm, default, options = _stored(name, resume)
    elif name is not None:
        algorithm = objects.algorithm_named(name)
        default, options = _settings(algorithm, _value_of("--env", arguments), file), TrainOptions()
    elif {"-h", "--help"} & set(arguments):
        print(f"usage: purerl train {{{','.join(purerl.ALGORITHMS)}}} [flags]\nEach algorithm lists its flags: --help.")
        return
    else:
        raise ValueError(f"Name an algorithm: purerl train {{{','.join(purerl.ALGORITHMS)}}} [flags].")
    config, options = _parsed(algorithm, default, options, arguments[1:] if name else arguments)
    folder = processes.first(lambda: Path(resume or options.out or _new_folder(algorithm, config)))
    print(f"Run folder: {folder}")
    run = runner.train(
        algorithm,
        config,
        seeds=_seeds(options, arguments),
        out=folder,
        resume=resume is not None,
        extend=True,
        seeds_at_once=options.seeds_at_once,
        devices_per_seed=options.devices_per_seed,
        checkpoint_seconds=options.checkpoint_seconds,
        start_from=options.start_from,
        eval_every=options.eval_every,
        eval_episodes=options.eval_episodes,
        loggers=[name for name in logs.NAMES if getattr(options, name)],
    )
    if run.stop_signal is not None:
        raise SystemExit(128 + run.stop_signal)
    processes.first(lambda: _report(run, folder))


def tune(arguments: list[str]) -> None:
    """`purerl tune ALGORITHM ...`."""
    from purerl.run import ranges as search_ranges
    from purerl.run import search_figure
    from purerl.run import tune as tuning

    runner.use_all_cores()
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"Name an algorithm: purerl tune {{{','.join(purerl.ALGORITHMS)}}} [flags].")
    tuning.check_installed()
    algorithm = objects.algorithm_named(arguments[0])
    default = _settings(algorithm, _value_of("--env", arguments), _value_of("--settings", arguments))
    config, options = _parsed(algorithm, default, TuneOptions(), arguments[1:], command="tune")
    if options.final_seeds < 1:
        raise ValueError(f"final_seeds must be at least 1, but is {options.final_seeds}.")
    name, env = objects.short_name(algorithm), objects.env_name(config.env)
    if options.ranges is None:
        ranges = search_ranges.shipped(name, algorithm.Config)
    else:
        ranges = search_ranges.read(options.ranges, algorithm.Config)
    for field in [x for x in ranges if _value_of(f"--{x.replace('_', '-')}", arguments) is not None]:
        if options.ranges is not None:
            raise ValueError(f"{field} is given and searched: leave it out of the flags, or of {options.ranges}.")
        del ranges[field]
        print(f"{field} is given, so it is not searched.")
    folder = Path(options.out or f"runs/tune_{name}_{env.replace('/', '-')}")
    print(f"Folder of the search: {folder}; {options.trials} trials over {', '.join(ranges)}.")
    search = tuning.tune(
        algorithm,
        config,
        ranges,
        out=folder,
        trials=options.trials,
        seeds=options.seeds,
        round_size=options.round_size,
        halving=options.halving,
        eval_episodes=options.eval_episodes,
    )
    _report_search(search, ranges)
    figure = search_figure.draw(search.trials, ranges, f"{name} {env}")
    figure.savefig(folder / "search.png", dpi=150)
    print(f"Picture: {folder / 'search.png'}")
    if search_ranges.write_settings(folder / tuning.SETTINGS, search.config):
        print(f"Settings: {folder / tuning.SETTINGS}, for purerl train {arguments[0]} --settings")
    else:
        print(f"No settings file, since no path leads to the env: the fields are {search.best.fields}.")
    seeds = range(options.final_seeds)
    print(f"Training the best settings on seeds 0 to {options.final_seeds - 1}, which the search has not seen.")
    run = runner.train(algorithm, search.config, seeds=seeds)
    if run.stop_signal is not None:
        raise SystemExit(128 + run.stop_signal)
    returns = _evaluations(run, num_episodes=100, deterministic=True, seed=0).mean(1)
    print(f"Their final greedy policies earn {returns.mean():.2f} ({returns.min():.2f} to {returns.max():.2f}).")


def _report_search(search: Any, ranges: Any) -> None:
    """The best five trials, side by side."""
    ranked = sorted(search.trials, key=lambda trial: (trial.pruned, -trial.rung_scores[-1]))[:5]
    table = Table(title=f"the best of {len(search.trials)} trials")
    for heading in ("trial", *(str(trial.number) for trial in ranked)):
        table.add_column(heading, justify="right")
    table.add_row("mean return", *(f"{trial.rung_scores[-1]:.4g}" for trial in ranked))
    table.add_row("", *("left early" if trial.pruned else "" for trial in ranked), end_section=True)
    for name in ranges:
        values = [trial.fields[name] for trial in ranked]
        table.add_row(name, *(f"{x:.3g}" if isinstance(x, float) else str(x) for x in values))
    Console().print(table)


def _stored(name: str | None, folder: str) -> tuple[Any, Any, TrainOptions]:
    """What a folder's config.json says, as defaults of the flags; the run's check names flags that differ."""
    given = None if name is None else objects.algorithm_named(name)
    content = processes.first(lambda: _content(folder))
    algorithm, config, seeds, before = run_folder.stored(folder, content, given)
    options = TrainOptions(**_seed_options(seeds))
    options.tensorboard, options.wandb = ("tensorboard" in before.loggers), ("wandb" in before.loggers)
    options.eval_every, options.eval_episodes = before.eval_every, before.eval_episodes
    return algorithm, config, options


def _content(folder: str) -> dict[str, Any]:
    if not Path(folder).is_dir():
        raise runner.RunError(f"There is no folder {folder} to resume.")
    return run_folder.read(folder)


def _seeds(options: TrainOptions, arguments: list[str]) -> Sequence[int]:
    """Those that are listed, or so many from the first one on. Raises ValueError where flags say both."""
    if not options.seeds:
        return range(options.first_seed, options.first_seed + options.num_seeds)
    for flag in ("--num-seeds", "--first-seed"):
        if _value_of(flag, arguments) is not None:
            raise ValueError(f"The seeds are {' '.join(map(str, options.seeds))}, as listed: leave out {flag}.")
    return options.seeds


def _seed_options(seeds: Sequence[int]) -> dict[str, Any]:
    """Flags that give these seeds: a range where they are one, so that its flags can be named again."""
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return {"num_seeds": len(seeds), "first_seed": seeds[0]}
    return {"seeds": tuple(seeds)}


def _settings(algorithm: Any, env: str | None, file: str | None) -> Any:
    """The Config to start from: the file's, else the tuned one where there is one, else the defaults; says which."""
    name = objects.short_name(algorithm)
    shipped = settings.shipped(name) if objects.algorithm_path(algorithm) in purerl.ALGORITHMS else {}
    table = shipped if file is None else settings.read(file, algorithm.Config)
    if file is not None and env is None and len(table) == 1:
        env = next(iter(table))
    env = env or objects.env_name(algorithm.Config().env)
    if env in table:
        print(
            f"{'Tuned settings' if file is None else f'Settings in {file}'} of {name} for {env}; flags override them."
        )
        return algorithm.Config(env=objects.env_named(env), **table[env].fields)
    if file is not None:
        raise ValueError(f"{file} has no table for {env}: name an --env that it has, of {', '.join(table)}.")
    print(f"No tuned settings of {name} for {env}: starting from the defaults.")
    return algorithm.Config()  # the env itself comes with the flags, some of which it may need to be valid


def _parsed(
    algorithm: Any, default: Any, options: Any, arguments: list[str], command: str = "train"
) -> tuple[Any, Any]:
    """Config and options after the flags."""
    unprefixed: Any = tyro.conf.OmitArgPrefixes
    run = dataclasses.field(default_factory=lambda: options)
    flags = _flags(algorithm.Config, default)
    fields = [("config", unprefixed[flags]), ("run", unprefixed[type(options)], run)]
    both: Any = dataclasses.make_dataclass(command.title(), fields)  # type: ignore[arg-type]  # pairs and triples
    prog = f"purerl {command} {objects.short_name(algorithm)}"
    parsed = tyro.cli(both, args=arguments, prog=prog, description=_headline(algorithm))
    before, after = dataclasses.asdict(flags()), dataclasses.asdict(parsed.config)
    changes = {name: value for name, value in after.items() if value != before[name]}
    if "env" in changes:
        changes["env"] = objects.env_named(changes["env"])
    return default.replace(**changes), parsed.run


def _headline(algorithm: Any) -> str:
    """What an algorithm says of itself in the first line of its docstring, or its name where it has none."""
    return (algorithm.__doc__ or objects.short_name(algorithm)).split("\n")[0]


def _flags(config_class: type, default: Any) -> Any:
    """A plain dataclass of a Config's fields as flags: the text under each field is its help, `default` its default.

    An env object stands as its import path.
    """
    helps, kinds, fields = field_docs(config_class), get_type_hints(config_class), []
    for field in dataclasses.fields(config_class):
        kind: Any = kinds[field.name]
        if kind is not Any:  # env_params and other arrays are for Python alone
            flag = Annotated[kind, tyro.conf.arg(help=helps.get(field.name, ""))]
            value = getattr(default, field.name)
            text = run_folder.config_dict(default)["env"] if field.name == "env" else value
            value = text["import"] if isinstance(text, dict) else value
            fields.append((field.name, flag, dataclasses.field(default=value)))
    return dataclasses.make_dataclass("Config", fields)


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        given, equals, value = argument.partition("=")
        given = given.replace("_", "-")  # tyro takes either
        if given == flag and equals:
            return value
        if given == flag:
            if i + 1 == len(arguments):
                raise ValueError(f"{flag} needs a value.")
            return arguments[i + 1]
    return None


def _new_folder(algorithm: Any, config: Any) -> str:
    env = objects.env_name(config.env).replace("/", "-")
    return f"runs/{objects.short_name(algorithm)}_{env}_{time.strftime('%Y%m%d-%H%M%S')}"


def _report(run: runner.Run, folder: Path) -> None:
    """The table at the end, and the picture."""
    from purerl.run import plot as plotting

    metrics = plotting.read_metrics(folder)
    greedy, drawn = (_evaluations(run, num_episodes=100, deterministic=mode, seed=0) for mode in (True, False))
    last_tenth = {name: x[:, -max(1, x.shape[1] // 10) :] for name, x in metrics.items()}
    headline = logs.headline(metrics)
    training = plotting.smooth(last_tenth, headline, points=1)[1][:, 0]
    per_seed = run.config.env_steps(run.updates)
    done = f"{per_seed:,} env steps a seed" if per_seed else f"{run.updates:,} updates"
    table = Table(title=f"{_title(run)}, {done}")
    learned = "return in training" if headline == "episode_return" else headline
    both = bool(_differ_by_much(greedy, drawn).any())
    headings = ["seed", f"{learned} (last tenth)", "return of the final policy (100 episodes, greedy)"]
    for heading in [*headings, "the same with drawn actions"] if both else headings:
        table.add_column(heading, justify="right")
    for seed, in_training, *returns in zip(run.seeds, training, greedy, *([drawn] if both else []), strict=True):
        table.add_row(str(seed), f"{in_training:.4g}", *(f"{x.mean():.2f}" for x in returns))
    Console().print(table)
    if next(iter(run.metrics.values())).size:
        steps = metrics_steps(run)
        rate = f", {steps / run.run_seconds:,.0f} env steps/s" if steps else ""
        print(f"Compile {run.compile_seconds:.1f} s, run {run.run_seconds:.1f} s{rate}.")
    _draw([folder], None, folder / "curve.png")


def _differ_by_much(greedy: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """For each seed whether the mean returns are further apart than a tenth and than three standard errors."""
    means, errors = (np.stack([f(x, axis=1) for x in (greedy, drawn)]) for f in (np.mean, _standard_error))
    apart = np.abs(means[0] - means[1])
    return (apart > 0.1 * np.abs(means).max(0)) & (apart > 3 * np.hypot(*errors))


def _standard_error(x: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(x.std(axis) / np.sqrt(x.shape[axis]))


def _title(run: runner.Run) -> str:
    return f"{objects.short_name(run.algorithm)} {objects.env_name(run.config.env)}"


def metrics_steps(run: runner.Run) -> int:
    """Env steps of all seeds that this call took."""
    before = run.updates - next(iter(run.metrics.values())).shape[1]
    return (run.config.env_steps(run.updates) - run.config.env_steps(before)) * len(run.seeds)


def _evaluations(run: runner.Run, *, num_episodes: int, deterministic: bool, seed: int) -> Any:
    def one(state: Any, key: Any) -> Any:
        return purerl.evaluate(
            run.algorithm, state, run.config, key, num_episodes=num_episodes, deterministic=deterministic
        ).returns

    keys = jax.random.split(jax.random.key(seed), len(run.seeds))
    return jax.device_get(jax.vmap(one)(jax.device_put(run.states, jax.local_devices()[0]), keys))


def evaluate(arguments: list[str]) -> None:
    """`purerl evaluate DIR`."""
    options = tyro.cli(EvaluateOptions, args=arguments, prog="purerl evaluate")
    run = _loaded(options.folder, options.best)
    returns = _evaluations(
        run, num_episodes=options.num_episodes, deterministic=not options.stochastic, seed=options.seed
    )
    from purerl.run.plot import bootstrap_interval, iqm

    which = "best policies" if options.best else f"update {run.updates}"
    table = Table(title=f"{_title(run)}, {which}, {options.num_episodes} episodes a seed")
    for heading in ("seed", "mean return", "standard deviation", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for seed, x in zip(run.seeds, returns, strict=True):
        table.add_row(str(seed), *(f"{value:.2f}" for value in (x.mean(), x.std(), x.min(), x.max())))
    Console().print(table)
    means = returns.mean(1)
    low, high = bootstrap_interval(means)
    print(f"Over seeds: mean {means.mean():.2f}, IQM {iqm(means):.2f} with 95 % interval [{low:.2f}, {high:.2f}].")


def plot(arguments: list[str]) -> None:
    """`purerl plot DIR ...`."""
    options = tyro.cli(PlotOptions, args=arguments, prog="purerl plot")
    if not options.folders:
        raise ValueError("Name at least one folder of a run: purerl plot DIR [DIR ...].")
    name = "curve.png" if len(options.folders) == 1 else "comparison.png"
    picture = Path(options.out or Path(options.folders[0]) / name)
    _draw(options.folders, options.metric, picture)


def _draw(folders: Sequence[str | Path], metric: str | None, picture: Path) -> None:
    """Writes the learning curves of runs, and says where."""
    from matplotlib import pyplot as plt

    from purerl.run import plot as plotting

    figure = plotting.figure_of(plotting.runs(folders, name=metric))
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    print(f"Curve: {picture}")


def render(arguments: list[str]) -> None:
    """`purerl render DIR`."""
    options = tyro.cli(RenderOptions, args=arguments, prog="purerl render")
    from purerl.run import render as rendering

    run = _loaded(options.folder, options.best)
    state = _state_of(run, options.folder, options.seed)
    key = jax.random.key(options.episode)
    path = options.out or Path(options.folder) / "episode"
    print(f"Episode: {rendering.save(path, run.algorithm, state, run.config, key, options.max_steps)}")


def export(arguments: list[str]) -> None:
    """`purerl export DIR`."""
    options = tyro.cli(ExportOptions, args=arguments, prog="purerl export")
    run = _loaded(options.folder, options.best)
    state = _state_of(run, options.folder, options.seed)
    path = Path(options.out or Path(options.folder) / "policy.stablehlo")
    if path.suffix == ".policy":
        print(f"Policy: {purerl.save_policy(path, run.algorithm, state, run.config)}, for purerl.load_policy")
        return
    purerl.export_policy(path, run.algorithm, state, run.config, deterministic=not options.stochastic)
    obs = purerl.envs.bind(run.config).transition.obs
    print(f"Policy: {path}, for jax.export.deserialize; its obs is {obs.dtype}{list(obs.shape)}")


def _loaded(folder: str, best: bool) -> runner.Run:
    """A run's folder, with the final policies or the best ones. Raises RunError where there are no best ones."""
    run = runner.load(folder)
    if best and run.best is None:
        how = "they come with purerl train ... --eval-every STEPS, at the first evaluation"
        raise runner.RunError(f"{folder} has no best policies: {how}.")
    return run._replace(states=run.best) if best else run


def _state_of(run: runner.Run, folder: str, seed: int | None) -> Any:
    """The state of a seed, of the first where it is None. Raises ValueError for one that the run has not."""
    seed = run.seeds[0] if seed is None else seed
    if seed not in run.seeds:
        raise ValueError(f"{folder} has no seed {seed}; it has {', '.join(map(str, run.seeds))}.")
    return jax.tree.map(lambda x: x[run.seeds.index(seed)], run.states)


def show_list(arguments: list[str]) -> None:
    """`purerl list`."""
    if arguments:
        raise ValueError(f"purerl list takes no arguments, but got {' '.join(arguments)}.")
    table = Table(title="algorithms")
    for heading in ("name", "acts on", "what it is", "tuned for"):
        table.add_column(heading)
    for name in purerl.ALGORITHMS:
        algorithm = objects.algorithm_named(name)
        tuned = ", ".join(settings.shipped(name))
        table.add_row(name, checks.action_kinds(algorithm.ACTIONS), _headline(algorithm).rstrip("."), tuned)
    console = Console()
    console.print(table)
    console.print("environments", style="bold")
    console.print(", ".join(purerl.envs.names()), highlight=False)
    console.print(
        "A Brax name takes a physics backend as a third part, such as brax/hopper/generalized (default: spring).",
        highlight=False,
    )
