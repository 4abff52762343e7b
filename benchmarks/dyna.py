"""What planning buys in tables: figures 8.2, 8.4 and 8.5 of Sutton and Barto (2018).

    python -m benchmarks.dyna        30 seeds of each, about a minute

Left: the maze of figure 8.2, where an episode is over at the goal, by Dyna-Q with 0, 5 and 50 planning steps after each
real one. A path is good once the greedy one from the start takes at most 16 steps: the shortest takes 14, paths differ
by even numbers, and about half of the seeds stay with one of 16. Middle: after 1,000 steps the short way through a wall
is blocked and a longer one opens. Right: after 3,000 steps a shorter way opens while the old one stays. Dyna-Q goes on
as it did; Dyna-Q+ looks what has become of what it has not tried for long. The walls are params of the env, so the
world changes within a training by going on from its state with other params.

Results go to benchmarks/results/dyna: `dyna.csv` with each seed's numbers and `dyna.png` with the three figures.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks import provenance
from purerl import dyna_q, envs, mdp, plot

SHORTEST, LONGEST = 14, 16  # steps of the best path, and of the longest that counts as good; none has 15
EPISODES = 50
PLANNING = (0, 5, 50)
MAZE_STEPS = {0: 20_000, 5: 8_000, 50: 4_000}  # enough for 50 episodes of nearly every seed
# A wall with a gap on its right, on its left, and on both sides.
_ABOVE, _BELOW = ("........G", *("." * 9,) * 2), ("." * 9, "...S.....")
RIGHT, LEFT, BOTH = (mdp.grid((*_ABOVE, wall, *_BELOW), {"G": 1.0}) for wall in ("########.", ".########", ".#######."))
# Of the mazes that change: the walls before and after, the steps until they change and in all, and the settings.
CHANGING: dict[str, tuple[Any, Any, int, int, dict[str, Any]]] = {
    "blocking": (RIGHT, LEFT, 1_000, 3_000, {"planning_steps": 10, "kappa": 1e-4}),
    "shortcut": (LEFT, BOTH, 3_000, 6_000, {"planning_steps": 50, "kappa": 1e-3}),
}
METHODS = {"Dyna-Q": "random", "Dyna-Q+": "bonus"}


@dataclass
class Options:
    """Trains Dyna-Q and Dyna-Q+ in the book's mazes."""

    num_seeds: int = 30
    """Seeds of each curve."""
    out: Path = Path("benchmarks/results/dyna")
    """Where results go."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.dyna", description=__doc__)
    facts = provenance.provenance("benchmarks.dyna", devices=True)
    keys = jnp.stack([jax.random.key(seed) for seed in range(options.num_seeds)])
    mazes = {steps: maze(keys, steps) for steps in PLANNING}
    worlds = {(name, method): changing(keys, name, method) for name in CHANGING for method in METHODS}
    rows: list[list[Any]] = [["maze", "method", "seed", "number"]]
    for steps, (_, good) in mazes.items():
        rows += [["dyna", f"{steps} planning steps", seed, int(x)] for seed, x in enumerate(good)]
        print(
            f"{steps} planning steps: {np.mean(good):.1f} +- {error(good):.1f} episodes until a good path", flush=True
        )
    for (name, method), totals in worlds.items():
        rows += [[name, method, seed, int(x)] for seed, x in enumerate(totals[:, -1])]
        print(f"{name} maze, {method}: {totals[:, -1].mean():.1f} +- {error(totals[:, -1]):.1f} rewards", flush=True)
    provenance.write_csv(options.out / "dyna.csv", facts, rows)
    provenance.save_figure(draw(mazes, worlds), options.out / "dyna.png", facts)


def error(values: np.ndarray) -> float:
    """Standard error of the mean of `[N]` values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def settings(total: int, **fields: Any) -> dyna_q.Config:
    """One env step an update, so that metrics tell of each."""
    return dyna_q.Config(num_steps=1, total_timesteps=total, **fields)


@functools.partial(jax.jit, static_argnums=2)
def steps_of(state: dyna_q.State, config: dyna_q.Config, num: int) -> tuple[dyna_q.State, Any]:
    """`num` updates from a state on: reward, length of the episode that ended or 0, and whether the path is good."""

    def step(state: dyna_q.State, _: None) -> tuple[dyna_q.State, Any]:
        state, metrics = dyna_q.update(state, config)
        ended = metrics["episodes"] > 0
        length = jnp.where(ended, metrics["episode_length"], 0.0)
        return state, (jnp.where(ended, metrics["episode_return"], 0.0), length, is_good(state.params, config))

    return jax.lax.scan(step, state, length=num)


def is_good(q: Any, config: dyna_q.Config) -> Any:
    """Whether the greedy path from the start reaches the goal in at most LONGEST steps."""
    world = envs.bind(config).params

    def step(place: Any, _: None) -> tuple[Any, None]:
        return world.successor[place, q[place].argmax(), 0], None

    place, _ = jax.lax.scan(step, world.start.argmax(), length=LONGEST)
    return world.terminal[place]


def maze(keys: Any, planning_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the first EPISODES episodes of each seed `[seeds, EPISODES]`, and how many end before a good path.

    NaN, or EPISODES, where a seed has not come so far.
    """
    config = settings(MAZE_STEPS[planning_steps], planning_steps=planning_steps)
    state = jax.vmap(dyna_q.init, (0, None))(keys, config)
    _, (_, lengths, good) = jax.vmap(lambda state: steps_of(state, config, config.total_timesteps))(state)
    return episodes(np.asarray(lengths), np.asarray(good))


def episodes(lengths: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same from the records of each step, `[seeds, steps]`."""
    of_each, until = np.full((len(lengths), EPISODES), np.nan), np.full(len(lengths), EPISODES)
    for seed, (row, is_there) in enumerate(zip(lengths, good, strict=True)):
        ends = np.flatnonzero(row)[:EPISODES]
        of_each[seed, : len(ends)] = row[ends]
        if is_there[ends].any():
            until[seed] = 1 + np.argmax(is_there[ends])
    return of_each, until


def changing(keys: Any, name: str, method: str) -> np.ndarray:
    """Rewards of each seed in a maze that changes, summed up to each step, `[seeds, steps]`."""
    before, after, change, total, fields = CHANGING[name]
    config = settings(total, env=mdp.Tabular(before, 10_000), planning=METHODS[method], learning_rate=1.0, **fields)
    state = jax.vmap(dyna_q.init, (0, None))(keys, config)
    rewards = []
    for world, num in ((before, change), (after, total - change)):
        there = config.replace(env_params=world)
        state, (reward, _, _) = jax.vmap(lambda state: steps_of(state, there, num))(state)  # noqa: B023 - called at once
        rewards.append(np.asarray(reward))
    return np.cumsum(np.concatenate(rewards, axis=1), axis=1)


def draw(mazes: dict[int, Any], worlds: dict[tuple[str, str], np.ndarray]) -> Figure:
    """Steps an episode, and rewards before and after each change; means and their standard errors."""
    _, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for steps, (lengths, good) in mazes.items():
        line(axes[0], np.arange(1, EPISODES + 1), lengths, f"{steps} planning steps: good after {np.mean(good):.1f}")
    axes[0].axhline(SHORTEST, color="0.4", lw=1, ls="--")
    axes[0].set(yscale="log", xlabel="episode", ylabel="steps to the goal", title="Maze")
    for ax, (name, (_, _, change, total, _)) in zip(axes[1:], CHANGING.items(), strict=True):
        for method in METHODS:
            line(ax, np.arange(1, total + 1), worlds[name, method], method)
        ax.axvline(change, color="0.4", lw=1, ls="--")
        title = {"blocking": "The short way is blocked", "shortcut": "A shorter way opens"}[name]
        ax.set(xlabel="env steps", ylabel="rewards so far", title=title)
    for ax in axes:
        ax.legend(frameon=False, fontsize="small")
        ax.title.set_fontsize("medium")
        ax.spines[["top", "right"]].set_visible(False)
    return plot.figure_of(axes[0])


def line(ax: Any, x: np.ndarray, values: np.ndarray, label: str) -> None:
    """The mean over seeds `[seeds, x]` with a band of its standard error."""
    mean = np.nanmean(values, 0)
    spread = np.nanstd(values, 0) / np.sqrt(np.maximum((~np.isnan(values)).sum(0), 1))
    ax.plot(x, mean, label=label)
    ax.fill_between(x, mean - spread, mean + spread, alpha=0.3, lw=0)


if __name__ == "__main__":
    main()
