"""Several processes that train one run: what they leave is what one process leaves, and none waits for a lost one."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import processes as cost
from purerl import logs, ppo, runner, tuned
from purerl.run import memory, processes
from tests import tiny

ROOT = Path(__file__).parent.parent
CONFIG = tiny.config(ppo, total_timesteps=320)  # 20 updates
SEEDS = [3, 4, 5, 6, 7]  # the second process has three, the first pads its two
EVALUATED: dict[str, Any] = {"seeds": SEEDS, "checkpoint_seconds": 0.0, "eval_every": 64, "eval_episodes": 2}

# What both processes do, one scenario after the other; each says how it ended, in a file of its own.
TOGETHER = """
import json, os, signal, sys, time, types
from pathlib import Path
from purerl.run import processes
folder, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
processes.connect(f"localhost:{port}", 2, index, say=lambda line: None)
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from purerl import a2c, logs, ppo, runner
from purerl.run import memory
from tests import test_processes as here, tiny
said, ended = [], {}

def scenario(name, config=here.CONFIG, algorithm=ppo, **options):
    try:
        run = tiny.run(algorithm, config, say=said.append, **{**here.EVALUATED, "out": folder / name, **options})
        ended[name] = [run.updates, run.finished, here.digest(run), run.stop_signal]
    except Exception as error:
        ended[name] = [type(error).__name__, str(error)]

seen = []
def look(updates, states, metrics):
    seen.append([updates, len(jax.tree.leaves(states.params)[0]), len(metrics["entropy"])])
def second_stops(updates, states, metrics):
    return updates >= 5 and index == 1
def second_fails(updates, states, metrics):
    if updates >= 5 and index == 1:
        raise ZeroDivisionError("mine")
def second_is_terminated(updates, states, metrics):
    if updates >= 5 and index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
def broken_logger():
    raise LookupError("no room for a logger")
def open_logger():
    opened.append(index)
    return logs.CsvLogger(folder / "own.csv", ["entropy"])
opened = []
scenario("whole", on_chunk=look, loggers=[open_logger])
scenario("stopped", on_chunk=second_stops)
scenario("half", resume=True)
scenario("failed", on_chunk=second_fails)
scenario("terminated", on_chunk=second_is_terminated)
scenario("unopened", loggers=[broken_logger])
scenario("split", devices_per_seed=2)
scenario("pair", seeds=[1, 2])  # one each, where one process would have them on two devices
scenario("warm", start_from=folder / "whole", config=here.CONFIG.replace(total_timesteps=16))
scenario("whole")
scenario("few", seeds=[1])
scenario("other", config=here.CONFIG.replace(gamma=0.9 + index / 100))
scenario("homeless", out=folder / "homeless" if index == 0 else None)
scenario("strange", *([tiny.config(a2c, total_timesteps=320), a2c] if index == 1 else []))
scenario("nowhere", resume=True)
scenario("nan", config=here.CONFIG.replace(learning_rate=1e30, max_grad_norm=1e30))
if index == 1:  # whose chunks seem to take a thousand times as long, and whose clock alone says that it is time to save
    runner.time = types.SimpleNamespace(perf_counter=lambda: 1000 * time.perf_counter())
scenario("uneven", checkpoint_seconds=20.0)
if index == 1:
    memory.free_bytes = lambda devices: 10
scenario("big")
(folder / f"{index}.json").write_text(json.dumps({"ended": ended, "seen": seen, "opened": opened, "said": said}))
"""

DYING = """
import os, signal, sys
from purerl.run import processes
folder, port, index, victim = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
processes.connect(f"localhost:{port}", 2, index)
import jax
jax.config.update("jax_num_cpu_devices", 2)
from purerl import ppo, runner
from tests import test_processes as here, tiny

def die(updates, states, metrics):
    if updates >= 9 and index == victim:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    tiny.run(ppo, here.CONFIG, out=folder, on_chunk=die, **here.EVALUATED)
except runner.StoppedError as error:
    print(error, flush=True)
    os._exit(1)
"""


CRASHING = """
import sys
from purerl.run import processes
folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
processes.connect(f"localhost:{port}", 2, index)
from purerl import ppo
from tests import test_processes as here, tiny

tiny.run(ppo, here.CONFIG, seeds=[1, 2])
if index == 1:
    raise KeyError("mine")
tiny.run(ppo, here.CONFIG, seeds=[1, 2])
"""


def digest(run: runner.Run) -> list[float]:
    """A number for each of the metrics and leaves, to compare what processes return."""
    leaves = jax.tree.leaves((run.metrics, run.states.params, run.best.params))
    return [float(np.nansum(np.abs(np.asarray(leaf, np.float64)))) for leaf in leaves]


def both(code: str, folder: Path, *more: str) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of two processes that run the code with a folder, a port and their numbers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        running = []
        for index in range(2):
            command = [sys.executable, "-c", code, str(folder), port, str(index), *more]
            pipes = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            running.append((subprocess.Popen(command, stdout=pipes[0], stderr=pipes[1], cwd=ROOT), pipes))
            stack.callback(running[-1][0].kill)
        deadline = time.monotonic() + 240
        while any(process.poll() is None for process, _ in running) and time.monotonic() < deadline:
            if any(process.poll() for process, _ in running):  # where one fails the other has no more to wait for
                deadline = min(deadline, time.monotonic() + 30)
            time.sleep(0.1)
        for process, _ in running:
            process.kill()
        for pipe in (pipe for _, pipes in running for pipe in pipes):
            pipe.seek(0)
        return [(process.wait(), pipes[0].read(), pipes[1].read()) for process, pipes in running]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Run]:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "whole"
    return out, tiny.run(ppo, CONFIG, out=out, **EVALUATED)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, alone: tuple[Path, runner.Run]) -> tuple[Path, list[Any]]:
    """The folder of the scenarios, and what each of the two processes says of them."""
    folder = tmp_path_factory.mktemp("together")
    tiny.run(ppo, CONFIG, out=folder / "half", on_chunk=lambda updates, *_: updates >= 5, **EVALUATED)
    for status, _, errors in both(TOGETHER, folder):
        assert status == 0, errors
    return folder, [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]


def assert_same(folder: Path, alone: tuple[Path, runner.Run]) -> None:
    """The same bits in all that a run leaves."""
    for file in ("metrics.csv", "config.json", *(f"checkpoints/best/{seed}.policy" for seed in SEEDS)):
        assert (folder / file).read_bytes() == (alone[0] / file).read_bytes(), file
    loaded = runner.load(folder)
    tiny.assert_same_bits((loaded.states, loaded.best), (alone[1].states, alone[1].best))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["whole", "half", "uneven"])
def test_two_processes_leave_what_one_does(
    together: tuple[Path, list[Any]], alone: tuple[Path, runner.Run], name: str
) -> None:
    """Begun by both, or by one and gone on with by both, or by one that is slow; the run returned is whole in both."""
    folder, (first, second) = together
    assert_same(folder / name, alone)
    if name == "half":
        assert first["ended"][name] == second["ended"][name]
        assert first["ended"][name][:2] == [CONFIG.num_updates, True]
    assert not second["said"] and any("Going on from update" in line for line in first["said"])


@pytest.mark.thorough
def test_fewer_seeds_than_devices_are_no_other_numbers(together: tuple[Path, list[Any]], tmp_path: Path) -> None:
    tiny.run(ppo, CONFIG, out=tmp_path / "pair", **{**EVALUATED, "seeds": [1, 2]})
    assert (together[0] / "pair" / "metrics.csv").read_bytes() == (tmp_path / "pair" / "metrics.csv").read_bytes()


@pytest.mark.thorough
def test_one_process_goes_on_with_what_two_began(
    together: tuple[Path, list[Any]], alone: tuple[Path, runner.Run], tmp_path: Path
) -> None:
    """One of them answered True to its hook, which ended it in both."""
    ended = [said["ended"]["stopped"] for said in together[1]]
    assert ended[0] == ended[1] and not ended[0][1] and 5 <= ended[0][0] < CONFIG.num_updates and ended[0][3] is None
    folder = shutil.copytree(together[0] / "stopped", tmp_path / "stopped")
    tiny.run(ppo, CONFIG, out=folder, resume=True, **EVALUATED)
    assert_same(folder, alone)


@pytest.mark.thorough
def test_hooks_see_their_own_seeds_and_loggers_all(
    together: tuple[Path, list[Any]], alone: tuple[Path, runner.Run]
) -> None:
    folder, (first, second) = together
    assert [x[1:] for x in first["seen"]] == [[2, 2]] * len(first["seen"])
    assert [x[1:] for x in second["seen"]] == [[3, 3]] * len(second["seen"])
    assert [x[0] for x in first["seen"]] == [x[0] for x in second["seen"]]
    assert (first["opened"], second["opened"]) == ([0], [])
    own, kept = logs.read_csv(folder / "own.csv"), logs.read_csv(alone[0] / "metrics.csv")
    np.testing.assert_array_equal(own["entropy"], kept["entropy"])
    np.testing.assert_array_equal(own["seed"], kept["seed"])


@pytest.mark.thorough
def test_an_error_in_one_process_ends_both_saved(together: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, (first, second) = together
    assert second["ended"]["failed"] == ["ZeroDivisionError", "mine"]
    assert first["ended"]["failed"][0] == "ElsewhereError"
    assert any("Ended by an error after update" in line for line in first["said"])
    assert 5 <= runner.load(folder / "failed").updates < CONFIG.num_updates


@pytest.mark.thorough
def test_a_signal_to_one_process_ends_both_saved(
    together: tuple[Path, list[Any]], alone: tuple[Path, runner.Run], tmp_path: Path
) -> None:
    ended = [said["ended"]["terminated"] for said in together[1]]
    assert ended[0] == ended[1] and ended[0][3] == signal.SIGTERM and 5 <= ended[0][0] < CONFIG.num_updates
    folder = shutil.copytree(together[0] / "terminated", tmp_path / "terminated")
    tiny.run(ppo, CONFIG, out=folder, resume=True, **EVALUATED)
    assert_same(folder, alone)


@pytest.mark.thorough
def test_seeds_over_processes_and_envs_over_devices(together: tuple[Path, list[Any]], tmp_path: Path) -> None:
    tiny.run(ppo, CONFIG, out=tmp_path / "split", devices_per_seed=2, **EVALUATED)
    assert_same(together[0] / "split", (tmp_path / "split", runner.load(tmp_path / "split")))


@pytest.mark.thorough
def test_weights_of_another_run_reach_all(together: tuple[Path, list[Any]], alone: Any, tmp_path: Path) -> None:
    config = CONFIG.replace(total_timesteps=16)
    mine = tiny.run(ppo, config, out=tmp_path / "warm", start_from=alone[0], **EVALUATED)
    tiny.assert_same_bits(runner.load(together[0] / "warm").states, mine.states)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("whole", ("RunError", "ElsewhereError"), "is not empty"),
        ("few", ("RunError", "RunError"), "2 processes cannot share 1 seed"),
        ("other", ("ElsewhereError", "RunError"), "it differs in config.gamma (0.9 there, 0.91 here)."),
        ("unopened", ("LookupError", "ElsewhereError"), "no room for a logger"),
        ("homeless", ("ElsewhereError", "RunError"), "it differs in arguments.out (True there, False here)."),
        ("strange", ("ElsewhereError", "RunError"), " there, nothing here), "),
        ("nowhere", ("RunError", "ElsewhereError"), "no folder"),
        ("nan", ("NonFiniteError", "ElsewhereError"), "left the finite numbers at update"),
        ("big", ("ElsewhereError", "RunError"), "for the states of 3 seed(s); 0.0 MB free"),
    ],
)
def test_what_one_process_refuses_ends_all(
    together: tuple[Path, list[Any]], name: str, kinds: tuple[str, str], message: str
) -> None:
    """One says why; the others do not wait for it."""
    ended = [said["ended"][name] for said in together[1]]
    assert tuple(kind for kind, _ in ended) == kinds
    assert all(message in text for kind, text in ended if kind != "ElsewhereError")


def test_a_lost_process_ends_the_other_which_goes_on_alone(alone: tuple[Path, runner.Run], tmp_path: Path) -> None:
    (status, said, _), (killed, *_) = both(DYING, tmp_path / "run", "1")
    assert (status, killed) == (1, -signal.SIGKILL)
    assert "Another process of the run has ended" in said and f"go on with --resume {tmp_path / 'run'}" in said
    tiny.run(ppo, CONFIG, out=tmp_path / "run", resume=True, **EVALUATED)
    assert_same(tmp_path / "run", alone)


@pytest.mark.thorough
def test_the_first_process_lost_ends_the_other(tmp_path: Path) -> None:
    """JAX ends it, by a message of its own."""
    (killed, *_), (status, said, errors) = both(DYING, tmp_path / "run", "0")
    assert killed == -signal.SIGKILL and status != 0
    assert "Another process of the run has ended" in said or "another task died" in errors


@pytest.mark.thorough
def test_an_error_that_nobody_catches_ends_both(tmp_path: Path) -> None:
    """Neither waits for the other at its end."""
    (first, _, told), (second, _, errors) = both(CRASHING, tmp_path)
    assert (first, second) == (1, 1)
    assert "KeyError: 'mine'" in errors and "Another process of the run has ended" in told


@pytest.mark.thorough
def test_another_command_line_in_one_process_is_told(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from purerl.run import cli\n"
        "folder, port, index = sys.argv[1:]\n"
        "flags = ['--num-sedes', '3'] if index == '1' else ['--num-seeds', '3']\n"
        "place = ['--coordinator', f'localhost:{port}', '--num-processes', '2', f'--process-id={index}']\n"
        "sys.argv = ['purerl', 'train', 'ppo', *place, *flags, '--out', folder]\n"
        "cli.main()\n"
    )
    (first, _, told), (second, _, errors) = both(code, tmp_path / "run")
    assert (first, second) == (1, 2) and not (tmp_path / "run").exists()
    there, here = (f"ppo {flag} 3 --out {tmp_path / 'run'}" for flag in ("--num-seeds", "--num-sedes"))
    assert f"it differs in flags ({there} there, {here} here)" in errors
    assert "process 0 of 2: Process 1 could not go on; it says why." in told


@pytest.mark.thorough
def test_the_command_line_finds_what_a_launcher_says(alone: tuple[Path, runner.Run], tmp_path: Path) -> None:
    """As under `srun`, whose variables JAX reads; the report and the picture come from the first process."""
    code = (
        "import os, sys\n"
        "folder, port, index = sys.argv[1:]\n"
        "os.environ |= {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2',\n"
        "  'SLURM_STEP_NUM_TASKS': '2', 'SLURM_PROCID': index, 'SLURM_LOCALID': index, 'JAX_COORDINATOR_PORT': port}\n"
        "from purerl.run import cli\n"
        "sys.argv = ['purerl', 'train', 'ppo', '--out', folder, '--num-seeds', '3', '--total-timesteps', '2048']\n"
        "cli.main()\n"
    )
    (status, said, errors), (other, quiet, _) = both(code, tmp_path / "run")
    assert (status, other) == (0, 0), errors
    assert "return in training" in said and (tmp_path / "run" / "curve.png").is_file()
    assert not [line for line in quiet.splitlines() if "Gloo" not in line]
    mine = tiny.run(ppo, tuned("ppo", "CartPole-v1").replace(total_timesteps=2048), seeds=[0, 1, 2])
    for x, y in zip(
        *(jax.tree.leaves(states.params) for states in (runner.load(tmp_path / "run").states, mine.states)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-4)  # the command line compiles with flags of its own


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("node0:1", 2, 2), "--process-id must be at least 0 and at most 1, as --num-processes 2, but is 2"),
        (("node0:1", 2, -1), "but is -1"),
        (("node0:1", 0, 0), "--num-processes must be at least 1, but is 0"),
        (("node0", 2, 0), "an address and a port such as node0:12345, but is 'node0'"),
        (("node0:x", 2, 0), "but is 'node0:x'"),
        (("node0:65536", 2, 0), "but is 'node0:65536'"),
        ((None, 2, 0), "--coordinator must be given too"),
        (("node0:1", None, None), "--num-processes, --process-id must be given too"),
    ],
)
def test_bad_flags_are_told_before_anything_starts(
    given: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with pytest.raises(runner.RunError, match=message):
        processes.connect(*given)


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", None)
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(runner.RunError, match=f"Port {port} of --coordinator localhost:{port} cannot be had"):
            processes.connect(f"localhost:{port}", 2, 0)


def test_no_answer_at_the_coordinators_address_is_told() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(runner.RunError, match=f"No process 0 answers at {coordinator} after 0 s"):
        processes.connect(coordinator, 2, 1, patience=0)
    with pytest.raises(runner.RunError, match=r"No process 0 answers at no\.such\.host\.invalid:1"):
        processes.connect("no.such.host.invalid:1", 2, 1, patience=0)


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, False),  # a shell in an allocation of eight tasks
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_a_launcher_of_several_processes_is_known(environ: dict[str, str], several: bool) -> None:
    assert processes.launched(environ) is several


def test_alone_nothing_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    processes.connect()
    assert not processes.connected() and (processes.count(), processes.index()) == (1, 0)
    assert processes.share([1, 2, 3]) == [1, 2, 3]


def test_a_process_may_train_alone_whatever_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SLURM_STEP_NUM_TASKS": "4"})
    monkeypatch.setattr(jax.distributed, "initialize", None)
    processes.connect(num_processes=1)
    with pytest.raises(runner.RunError, match="--process-id must be at least 0 and at most 0"):
        processes.connect("node0:1", 1, 1)


def test_a_launcher_that_does_not_say_enough_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an indexed job of Kubernetes whose image lacks the client that JAX asks."""

    def missing(*_: Any, **__: Any) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(os, "environ", {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"})
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", missing)
    with pytest.raises(runner.RunError, match="give --coordinator, --num-processes and --process-id, or"):
        processes.connect()


def test_the_cpu_is_there_beside_the_accelerator() -> None:
    assert [processes.with_cpu(x) for x in (None, "", "cpu", "cuda", "cuda,cpu")] == [
        *("", "", "cpu"),
        *("cuda,cpu", "cuda,cpu"),
    ]


@pytest.mark.parametrize(("num", "of"), [(5, 2), (8, 3), (3, 3), (1000, 64)])
def test_shares_are_all_seeds_in_turn(num: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: of)
    shares = [processes.share(range(num), index) for index in range(of)]
    assert [seed for share in shares for seed in share] == list(range(num))
    assert {len(share) for share in shares} <= {num // of, -(-num // of)}


@pytest.mark.parametrize(("num", "folder", "copies"), [(1, None, 0), (1, Path("run"), 2), (2, None, 2)])
def test_states_of_all_seeds_are_counted_where_they_come_together(
    num: int, folder: Path | None, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a checkpoint, and of several processes in each for what it returns."""
    monkeypatch.setattr(processes, "count", lambda: num)
    loop: Any = types.SimpleNamespace(algorithm=ppo, config=CONFIG, seeds=SEEDS, folder=folder)
    state = jax.eval_shape(ppo.init, jax.random.key(0), CONFIG)
    assert runner._Loop.saved_bytes(loop) == copies * len(SEEDS) * memory.tree_bytes(state)


def test_the_estimate_by_hand() -> None:
    """Rows: 2 x 63 ms and .8 MB eight times over a host's 25 Gbit/s; states: 10 x 63 ms and 100 MB likewise."""
    _, chunk, states = cost.estimate({"rows": 40, "state": 100_000, "leaves": 10}, 1e-3)
    assert chunk == ["rows of a chunk", "0.8", "0.13", "1", "12.8%"]
    assert states == ["states of a checkpoint", "100.0", "0.89", "30", "3.0%"]
