"""How much memory a run needs and has: XLA's figure against what a process takes, and every limit around it."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from purerl import dqn, runner
from purerl.run import devices, memory
from tests import tiny

MEASURED = """
import sys, threading, time
import psutil
import purerl
from purerl import ppo, runner
purerl.use_all_cores()
rss = psutil.Process().memory_info
peak, said = [0], {}

def watch():
    while True:
        peak[0] = max(peak[0], rss().rss)
        time.sleep(0.001)

def say(line):
    if line.startswith("Memory:"):
        said["line"], said["base"] = line, rss().rss
        peak[0] = 0

threading.Thread(target=watch, daemon=True).start()
config = ppo.Config(env="Breakout-MinAtar", num_envs=128, num_steps=128, num_epochs=1, total_timesteps=128 * 128)
runner.train(ppo, config, progress=False, say=say)
print(said["line"])
print((peak[0] - said["base"]) / 1e6)
"""


@pytest.mark.thorough
def test_estimate_is_near_the_measured_peak() -> None:
    """In a process of its own: XLA's figure before the run, the growth of its memory while it runs."""
    command = [sys.executable, "-c", MEASURED]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, check=True)
    line, measured = result.stdout.splitlines()
    estimate = float(line.removeprefix("Memory: ").split(" MB")[0])
    assert 1 / 1.5 < float(measured) / estimate < 1.5, (estimate, measured)


@pytest.mark.parametrize(
    "buffer_size, message",
    [(100_000_000_000, "2\\^31 entries or more"), (1_000_000_000, "for the states of 3 seed")],
)
def test_an_absurd_buffer_never_reaches_xla(
    buffer_size: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("a program was asked for")

    monkeypatch.setattr(runner._Loop, "advance", never)
    with pytest.raises(runner.RunError, match=message):
        tiny.run(dqn, tiny.config(dqn, buffer_size=buffer_size), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_container_limits_of_version_2(tmp_path: Path) -> None:
    """Each group on the way up may have one; files that are cached count as free."""
    write(tmp_path / "a", memory__max="1000\n", memory__current="700\n", memory__stat="anon 500\ninactive_file 100\n")
    write(tmp_path / "a" / "b", memory__max="max\n", memory__current="600\n", memory__stat="inactive_file 0\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert memory.container_free(tmp_path / "cgroup", tmp_path) == [1000 - 700 + 100]
    write(tmp_path / "a" / "b", memory__max="600\n")
    assert memory.container_free(tmp_path / "cgroup", tmp_path) == [0, 400]


def test_container_limits_of_version_1(tmp_path: Path) -> None:
    """Inside a container the group's own path is not there, and its limit stands at the root."""
    limits = {"memory__limit_in_bytes": "900", "memory__usage_in_bytes": "500"}
    write(tmp_path / "memory", **limits, memory__stat="inactive_file 7\ntotal_inactive_file 50\n")
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n")
    assert memory.container_free(tmp_path / "cgroup", tmp_path) == [450]
    assert memory.container_free(tmp_path / "none", tmp_path) == []


def device(platform: str, stats: dict[str, int] | None = None) -> Any:
    return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def test_free_memory_is_the_least_of_machine_and_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory.free_bytes([device("cpu")])
    assert machine is not None and machine > 1_000_000
    monkeypatch.setattr(memory, "container_free", lambda membership, root: [5_000, 7_000])
    assert memory.free_bytes([device("cpu")] * 2) == 5_000


def test_free_memory_of_accelerators() -> None:
    """As much on each as on the fullest; unknown where one does not tell."""
    stats = [{"bytes_limit": 100, "bytes_in_use": used} for used in (10, 40)]
    assert memory.free_bytes([device("gpu", each) for each in stats]) == 120
    assert memory.free_bytes([device("gpu", stats[0]), device("gpu")]) is None
    assert memory.free_bytes([device("tpu", {})]) is None
    assert "unknown what is free" in memory.check_program(10**12, 1, None)


@pytest.mark.parametrize(
    "platform, free, expected",
    [("cpu", 10**12, 1), ("gpu", 10**12, 20), ("gpu", 1000, 10), ("gpu", 350, 3), ("gpu", 10, 1), ("tpu", None, 20)],
)
def test_seeds_at_once_where_nobody_says(platform: str, free: int | None, expected: int) -> None:
    """100 bytes a seed, 20 seeds: all that fit, by halves; on a CPU one, and no program is asked for."""

    def need(num: int) -> int:
        assert platform != "cpu"
        return 100 * num

    assert memory.seeds_at_once(platform, 20, need, free) == expected


@pytest.mark.parametrize(
    "platforms, plugins, expected",
    [
        (None, set(), True),
        ("", set(), True),
        (None, {"xla_cuda12"}, False),
        ("cpu", {"xla_cuda12"}, True),
        ("cpu,cuda", {"xla_cuda12"}, True),
        ("cuda,cpu", {"xla_cuda12"}, False),
        ("tpu", set(), False),
    ],
)
def test_cpu_flags_are_for_cpus(platforms: str | None, plugins: set[str], expected: bool) -> None:
    assert devices.cpu_does_the_work(platforms, plugins) == expected


def test_flags_that_were_given_stay() -> None:
    given = "--xla_backend_optimization_level=3 --xla_other=1"
    flags = devices.with_cpu_flags(given).split()
    assert flags[:2] == given.split() and len(flags) == 3 and "concurrency" in flags[2]


def test_plugins_are_found_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an entry point, and as a module of the namespace package jax_plugins."""
    assert devices.accelerator_plugins() == set()
    (tmp_path / "jax_plugins" / "xla_rocm").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "xla_rocm" / "__init__.py").touch()
    write(tmp_path / "a_plugin-1.dist-info", METADATA="Name: a-plugin\nVersion: 1\n")
    write(tmp_path / "a_plugin-1.dist-info", entry_points__txt="[jax_plugins]\nxla_cuda12 = nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert devices.accelerator_plugins() == {"xla_cuda12", "xla_rocm"}


def test_on_an_accelerator_no_cpu_flag_is_set() -> None:
    """In a process of its own, since a process takes its flags once."""
    code = (
        "import os, jax, purerl; from purerl.run import devices\n"
        "devices.accelerator_plugins = lambda: {'xla_cuda12'}\n"
        "purerl.use_all_cores(); print(repr(os.environ.get('XLA_FLAGS', '')))"
    )
    root = Path(__file__).parent.parent
    for platforms, flagged in (({}, False), ({"JAX_PLATFORMS": "cpu"}, True)):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), **platforms}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
        assert ("xla_backend_optimization_level" in result.stdout) == flagged
