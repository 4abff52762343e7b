"""Search for the settings of an algorithm: Optuna proposes, and whole rounds of proposals train as one program.

A round asks for several trials at once. Those whose static fields agree share a program, in which each trial and seed
is one training with traced fields of its own; they are spread over the devices, and race in successive halvings
(Jamieson and Talwalkar 2016, arXiv:1502.07943): at each rung the worse half of them leaves, and the states of the
others, picked by index, train on.

A trial's score is the mean return of its greedy policies over seeds and episodes. `study.log`, Optuna's journal, has
every trial as soon as its round ends, so that a search resumes and Optuna's dashboard reads it.
"""

import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from purerl import envs
from purerl.core.types import validate_value
from purerl.run import folder as run_folder
from purerl.run import memory, objects
from purerl.run.acting import read_by_policy
from purerl.run.errors import RunError
from purerl.run.evaluate import evaluation
from purerl.run.lock import lock
from purerl.run.ranges import Range

STUDY, SEARCH, SETTINGS = "study.log", "search.json", "settings.toml"
FIRST_SEED = 1000  # far from the seeds that scores are reported of
RUNGS = (0.25, 0.5)  # of the updates of a whole training


class Trial(NamedTuple):
    """One proposal. rung_scores: at each rung that it reached, the last one is its score. pruned: it left early."""

    number: int
    fields: dict[str, Any]
    rung_scores: tuple[float, ...]
    pruned: bool


class Search(NamedTuple):
    """What `tune` leaves: all trials that have a score, and the one that is best of those that were trained to the end.

    config: with the best fields.
    """

    trials: list[Trial]
    best: Trial
    config: Any


def check_installed() -> None:
    """Raises ImportError where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise ImportError("A search needs Optuna: `pip install 'purerl[tune]'`.")


def tune(
    algorithm: ModuleType,
    config: Any,
    ranges: Mapping[str, Range],
    *,
    out: str | Path,
    trials: int = 64,
    seeds: int = 4,
    first_seed: int = FIRST_SEED,
    round_size: int = 16,
    halving: bool = True,
    eval_episodes: int = 32,
    sampler: Any = None,
    sampler_seed: int = 0,
    say: Callable[[str], None] = print,
) -> Search:
    """Searches `ranges` of a Config's fields for the highest mean return of the final greedy policies.

    config: all other fields. out: folder for the search, gone on with where it holds the same one. trials: how many in
    all. seeds: trainings of each, from first_seed on. round_size: trials that train side by side, of which Optuna hears
    before it proposes more. halving: of those that share a program, the worse half leaves after a quarter, and again
    after half of the training.
    eval_episodes: of each score. sampler: of Optuna, its TPE by default, seeded with sampler_seed.
    Raises RunError where `out` holds something else or too little memory is free, ValueError for numbers that make no
    search, and ImportError where Optuna is missing.
    """
    check_installed()
    _check(algorithm, config, ranges, trials=trials, seeds=seeds, round_size=round_size, eval_episodes=eval_episodes)
    folder, rungs = Path(out), _rungs(config, halving)
    what = _what(algorithm, config, ranges, seeds, first_seed, halving, eval_episodes)
    _check_same(folder, what)
    run_folder.make(folder)
    with run_folder.disk(folder), lock(folder, say):
        _check_same(folder, what)  # another process may have begun here meanwhile
        if not (folder / SEARCH).is_file():
            run_folder.write_json(folder / SEARCH, what)
        study = _study(folder, sampler, sampler_seed)
        distributions = {name: x.distribution() for name, x in ranges.items()}
        race = functools.partial(_race, algorithm, range(first_seed, first_seed + seeds), rungs, eval_episodes)
        while (done := _finished(study)) < trials:
            asked = [study.ask(distributions) for _ in range(min(round_size, trials - done))]
            _round(study, asked, config, ranges, race, say)
            say(f"{_finished(study)} of {trials} trials; {_so_far(study)}.")
    return result(study, config, ranges)


def result(study: Any, config: Any, ranges: Mapping[str, Range]) -> Search:
    """What a study has found. Raises RunError where no trial has a score."""
    import optuna

    found = []
    for trial in study.get_trials(deepcopy=False):
        scores = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
        if scores and trial.state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED):
            pruned = trial.state == optuna.trial.TrialState.PRUNED
            found.append(Trial(trial.number, _fields(trial, ranges), scores, pruned))
    finished = [trial for trial in found if not trial.pruned]
    if not finished:
        raise RunError(
            f"None of {len(study.get_trials(deepcopy=False))} trials has a finite score: all of them left the finite "
            "numbers or could not be made. Narrow the ranges, or look at one of them with purerl train."
        )
    best = max(finished, key=lambda trial: trial.rung_scores[-1])
    return Search(found, best, config.replace(**best.fields))


def _check(algorithm: ModuleType, config: Any, ranges: Mapping[str, Range], **numbers: int) -> None:
    """Raises ValueError or TypeError where nothing can come of a search, before anything is written or compiled."""
    name = objects.short_name(algorithm)
    for number, value in numbers.items():
        if value < 1:
            raise ValueError(f"{number} must be at least 1, but is {value}.")
    if not ranges:
        raise ValueError(f"There is nothing to search: no range is known for a field of {name}; give a file of ranges.")
    if not read_by_policy(algorithm, config):
        raise ValueError(f"The policy of {name} does not depend on its training, so that no settings are better.")
    fields = {field.name for field in dataclasses.fields(config)}
    for field, searched in ranges.items():
        if field not in fields:
            raise ValueError(f"{name} has no field {field} to search; there are {', '.join(sorted(fields))}.")
        for value in searched.choices or (searched.low, searched.high):
            validate_value(type(config), field, value)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"The range of {field} must be finite, but has {value}.")


def _rungs(config: Any, halving: bool) -> list[float]:
    """Shares of a training after which its trials are scored; the last is the whole."""
    return [*(RUNGS if halving else ()), 1.0]


def _what(algorithm: Any, config: Any, ranges: Any, seeds: int, first_seed: int, halving: bool, num: int) -> Any:
    """What makes two searches the same, as JSON values."""
    searched = {name: dataclasses.asdict(x) for name, x in ranges.items()}
    fixed = {name: x for name, x in run_folder.config_dict(config).items() if name not in ranges}
    content = {
        "algorithm": objects.algorithm_path(algorithm),
        "config": fixed,
        "ranges": searched,
        "seeds": seeds,
        "first_seed": first_seed,
        "halving": halving,
        "eval_episodes": num,
    }
    return json.loads(json.dumps(content))


def _check_same(folder: Path, what: Any) -> None:
    """Raises RunError where the folder holds something else than this search."""
    path = folder / SEARCH
    if not path.is_file():
        run_folder.check_free(folder)
        return
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if differing := [name for name in what if there.get(name) != what[name]]:
        parts = []
        for name in differing:
            if isinstance(what[name], dict) and isinstance(there.get(name), dict):
                keys = [key for key in {**there[name], **what[name]} if there[name].get(key) != what[name].get(key)]
                parts.append(f"{name} ({', '.join(keys)})")
            else:
                parts.append(f"{name} ({there.get(name)} there, {what[name]} here)")
        raise RunError(f"{folder} holds another search: it differs in {', '.join(parts)}. Name another folder.")


def _study(folder: Path, sampler: Any, sampler_seed: int) -> Any:
    """The study in the folder's journal. What a kill left running has failed: those trials are lost, and asked anew."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _cut_half_a_line(folder / STUDY)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / STUDY)))
    study = optuna.create_study(storage=storage, study_name="purerl", direction="maximize", load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # Another seed each time, or a search that goes on would propose again what it began with.
    seed = sampler_seed + len(study.get_trials(deepcopy=False))
    study.sampler = sampler or optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return study


def _cut_half_a_line(path: Path) -> None:
    """Takes away what a kill or a full disk left of the last line, to which the next one would be added."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _finished(study: Any) -> int:
    """Trials of which the outcome is known: those that a kill cut off do not count, those that cannot be made do."""
    import optuna

    trials = study.get_trials(deepcopy=False)
    return sum(t.state != optuna.trial.TrialState.FAIL or "why" in t.user_attrs for t in trials)


def _so_far(study: Any) -> str:
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        return "none with a score yet"
    best = max(done, key=lambda trial: trial.value)
    return f"best {best.value:.4g} by trial {best.number}"


def _fields(trial: Any, ranges: Mapping[str, Range]) -> dict[str, Any]:
    return {name: ranges[name].value(x) for name, x in trial.params.items()}


def _round(study: Any, asked: list[Any], config: Any, ranges: Mapping[str, Range], race: Any, say: Any) -> None:
    """Trains the trials of one round, those that share a program together, and tells the study of each."""
    import optuna

    groups: dict[str, list[tuple[Any, dict[str, Any], Any]]] = {}
    for trial in asked:
        fields = _fields(trial, ranges)
        try:
            whole = config.replace(**fields)
        except (ValueError, TypeError) as error:
            trial.set_user_attr("why", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(f"Trial {trial.number} cannot be made: {error}")
            continue
        static = {name: x for name, x in fields.items() if not _is_traced(config, name)}
        groups.setdefault(repr(static), []).append((trial, fields, whole))
    for members in groups.values():
        traced = [{name: x for name, x in fields.items() if _is_traced(config, name)} for _, fields, _ in members]
        outcomes = race(members[0][2], traced)
        for (trial, _, _), (scores, to_the_end) in zip(members, outcomes, strict=True):
            _tell(study, trial, scores, to_the_end)


def _tell(study: Any, trial: Any, scores: Sequence[float], to_the_end: bool) -> None:
    import optuna

    for rung, score in enumerate(scores):
        if math.isfinite(score):
            trial.report(score, rung)
    if not math.isfinite(scores[-1]):
        trial.set_user_attr("why", "its score is not finite")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    elif to_the_end:
        study.tell(trial, scores[-1])
    else:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def _is_traced(config: Any, name: str) -> bool:
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return bool(field.metadata.get("pytree_node", True))


def _race(
    algorithm: ModuleType,
    seeds: Sequence[int],
    rungs: Sequence[float],
    eval_episodes: int,
    config: Any,
    traced: Sequence[dict[str, Any]],
) -> list[tuple[list[float], bool]]:
    """The scores of trials with the same static fields at each rung they reached, and whether that was the end.

    config: of one of them. traced: the other fields of each.
    """
    mesh = jax.make_mesh((len(jax.devices()),), ("slots",), axis_types=(AxisType.Auto,))
    base, programs = envs.with_tables(config), _programs(algorithm, mesh, eval_episodes)
    pairs = [(trial, seed) for trial in range(len(traced)) for seed in seeds]
    # A power of two, so that rounds of other sizes find the program compiled.
    capacity = mesh.size * 2 ** math.ceil(math.log2(math.ceil(len(pairs) / mesh.size)))
    memory.check_states(algorithm, config, capacity, memory.free_bytes(jax.devices()))
    slots = _slots(len(pairs), capacity, mesh.size)
    held = np.zeros(capacity, int)  # the pair of each slot; those that are idle hold the first
    held[slots] = np.arange(len(pairs))
    values = {name: jnp.array([traced[pairs[i][0]][name] for i in held]) for name in traced[0]}
    keys = jnp.stack([jax.random.key(pairs[i][1]) for i in held])

    scores: list[list[float]] = [[] for _ in traced]
    alive, done = list(range(len(traced))), 0
    states = programs.init(keys, values, base)
    for rung, share in enumerate(rungs):
        until = max(done + 1, round(share * config.num_updates))
        counts = np.bincount(slots // (capacity // mesh.size), minlength=mesh.size)
        states, returns = programs.advance(states, keys, values, base, counts, np.int32(done), np.int32(until))
        found = dict(zip(pairs, np.asarray(returns)[slots].tolist(), strict=True))
        for trial in alive:
            scores[trial].append(float(np.mean([found[trial, seed] for seed in seeds])))
        if rung + 1 == len(rungs) or until >= config.num_updates:
            break
        alive = _better_half(alive, scores)
        kept = [i for i, (trial, _) in enumerate(pairs) if trial in alive]
        before, slots = slots[kept], _slots(len(kept), capacity, mesh.size)
        source = np.full(capacity, before[0])
        source[slots] = before
        states, keys, values = programs.pick((states, keys, values), source)
        pairs, done = [pairs[i] for i in kept], until
    return [(scores[trial], trial in alive) for trial in range(len(traced))]


def _slots(num: int, capacity: int, devices: int) -> np.ndarray:
    """Where the pairs stand among the slots of all devices: in turns, each device's first ones first."""
    number = np.arange(num)
    return number % devices * (capacity // devices) + number // devices


def _better_half(alive: Sequence[int], scores: Sequence[Sequence[float]]) -> list[int]:
    """The trials with the higher last scores, one of two where they are odd; what is no number is the lowest."""
    ranked = sorted(alive, key=lambda trial: -scores[trial][-1] if math.isfinite(scores[trial][-1]) else math.inf)
    return sorted(ranked[: math.ceil(len(ranked) / 2)])


class _Programs(NamedTuple):
    """Compiled for one algorithm and mesh. They take arrays with a leading axis of slots, split over the devices."""

    init: Any  # (keys, values, base) -> states
    advance: Any  # (states, keys, values, base, counts [devices], done, until) -> (states, returns)
    pick: Any  # (trees, source) -> trees


@functools.cache
def _programs(algorithm: ModuleType, mesh: Mesh, eval_episodes: int) -> _Programs:
    over_slots, everywhere = PartitionSpec("slots"), PartitionSpec()

    def init(keys: Any, values: Any, base: Any) -> Any:
        return jax.lax.map(lambda own: algorithm.init(own[0], base.replace(**own[1])), (keys, values))

    def train(state: Any, key: Any, values: Any, base: Any, done: Any, until: Any) -> tuple[Any, Any]:
        """One training from update `done` to `until`, and its return there, NaN where its weights are not finite."""
        config, update = base.replace(**values), jax.jit(algorithm.update)
        state = jax.lax.fori_loop(done, until, lambda _, state: update(state, config)[0], state)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
        value = evaluation(algorithm, state, config, key, until, eval_episodes)
        return state, jnp.where(finite, value, jnp.nan)

    def advance(states: Any, keys: Any, values: Any, base: Any, counts: Any, done: Any, until: Any) -> Any:
        if jax.devices()[0].platform != "cpu":
            return jax.vmap(train, (0, 0, 0, None, None, None))(states, keys, values, base, done, until)

        def one(i: Any, carry: Any) -> Any:
            states, returns = carry
            state, key, own = jax.tree.map(lambda x: x[i], (states, keys, values))
            state, value = train(state, key, own, base, done, until)
            return jax.tree.map(lambda xs, x: xs.at[i].set(x), states, state), returns.at[i].set(value)

        return jax.lax.fori_loop(0, counts[0], one, (states, jnp.full(len(keys), jnp.nan)))

    def pick(trees: Any, source: Any) -> Any:
        return jax.tree.map(lambda x: x[source], trees)

    def sharded(body: Any, *specs: Any) -> Any:
        return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=over_slots, check_vma=False)

    return _Programs(
        jax.jit(sharded(init, over_slots, over_slots, everywhere)),
        jax.jit(sharded(advance, *[over_slots] * 3, everywhere, over_slots, everywhere, everywhere), donate_argnums=0),
        jax.jit(pick, out_shardings=jax.NamedSharding(mesh, over_slots)),
    )
