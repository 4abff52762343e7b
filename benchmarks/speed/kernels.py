"""Where a compiled program spends its time: the kernels that XLA's CPU backend ran, from a trace of jax.profiler.

A trace slows the program down several times over, since most kernels take less than it takes to write them down. So the
time of each kernel is that of its fastest call, less that of the cheapest kernel of all, which does next to nothing;
what the fastest untraced update takes beyond the sum is the price of starting its kernels one after the other. Every
call of a kernel does the same work, and what makes one slower is mostly other processes.
"""

import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_PLAIN_RUNS = 20


class Instruction(NamedTuple):
    """One instruction of a compiled program.

    kind: its opcode. shape: of its result. what: the JAX operation that it comes from, the last one where several were
    fused, "" where unknown. home: the computation that it stands in. calls: the computations that it runs. turns: of a
    loop, where known.
    """

    kind: str
    shape: str
    what: str
    home: str
    calls: list[str]
    turns: int | None


def profile(train: Callable[[], Any], program: str, updates: int) -> dict[str, Any]:
    """Runs `train` untraced and traced: seconds of the fastest untraced update, and the kernels of one update.

    program: the text of the compiled program that `train` runs. updates: the turns of its outer loop, which no other
    loop has. Each kernel: name, shape, what, loop ("128 > 5": in a loop of 5 turns in one of 128, within an update),
    product (whether it holds a matrix product), calls of one update, seconds of its fastest call as traced.
    """
    import jax

    train()
    plain = []
    for _ in range(_PLAIN_RUNS):
        started = time.perf_counter()
        train()
        plain.append(time.perf_counter() - started)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            train()
        traced = durations(next(Path(folder).rglob("*.xplane.pb")), program.split(maxsplit=2)[1].rstrip(","))
    return {"seconds": min(plain) / updates, "kernels": summarize(traced, parse(program), updates)}


def durations(trace: Path, module: str) -> dict[str, list[float]]:
    """Seconds of every call of every instruction of a compiled module, by the instruction's name.

    A call begins with an event of its own name and ends with another, which may lie on another thread; both carry the
    same number.
    """
    import jax

    begun: dict[int, tuple[str, float]] = {}
    ended: dict[int, float] = {}
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for event in (event for line in plane.lines for event in line.events):
            facts = dict(event.stats)
            if event.name.startswith("end: "):
                ended[facts["_c"]] = event.start_ns
            elif facts.get("hlo_module") == module:
                begun[facts["_p"]] = (event.name, event.start_ns)
    seconds = defaultdict(list)
    for number, (name, start) in begun.items():
        if number in ended:  # the last call of all may end after the trace
            seconds[name].append((ended[number] - start) / 1e9)
    return seconds


def parse(program: str) -> dict[str, Instruction]:
    """The instructions of a compiled program's text, by name."""
    found, home = {}, ""
    for line in program.splitlines():
        if line.endswith("{") and (computation := re.match(r"(?:ENTRY )?%(\S+) \(", line)):
            home = computation[1]
        elif instruction := re.match(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(", line):
            calls = re.findall(r"(?:body|condition|calls|to_apply)=%([\w.-]+)", line)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                calls += re.findall(r"%([\w.-]+)", branches[1])
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            origin = re.search(r'op_name="([^"]*)"', line)
            shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", instruction[2])
            what, kind = readable(origin[1]) if origin else "", instruction[3]
            found[instruction[1]] = Instruction(kind, shape, what, home, calls, int(turns[1]) if turns else None)
    return found


def readable(origin: str) -> str:
    """The end of the path of JAX operations, less program, loops and calls: "jvp(Network)/Dense_1/dot_general"."""
    program, *parts = origin.split("/")
    left_out = {program, "while", "body", "closed_call", "cond"}
    return "/".join([part for part in parts if part not in left_out][-3:])


def summarize(
    seconds: dict[str, list[float]], instructions: dict[str, Instruction], updates: int
) -> list[dict[str, Any]]:
    """The kernels within the loop over updates. What holds other kernels that were traced is no kernel itself."""
    callers = {computation: name for name, x in instructions.items() for computation in x.calls}
    products = {x.home for x in instructions.values() if x.kind == "dot"}  # computations that hold a matrix product
    chains = {name: list(holders(name, instructions, callers)) for name in seconds}
    inside = {holder for chain in chains.values() for holder in chain}
    kernels = []
    for name in seconds.keys() - inside:
        turns = [
            instructions[holder].turns for holder in reversed(chains[name]) if instructions[holder].kind == "while"
        ]
        if updates not in turns:
            continue
        loop = " > ".join(str(x or "?") for x in turns[turns.index(updates) + 1 :])
        calls = len(seconds[name]) / updates
        kind, shape, what, _, runs, _ = instructions[name]
        facts = {"name": name, "shape": shape, "what": what, "loop": loop}
        product = kind == "dot" or not products.isdisjoint(runs)
        kernels.append({**facts, "product": product, "calls": calls, "seconds": min(seconds[name])})
    return kernels


def holders(name: str, instructions: dict[str, Instruction], callers: dict[str, str]) -> Iterator[str]:
    """The instructions that run this one, innermost first."""
    while (home := instructions[name].home) in callers:
        name = callers[home]
        yield name
