"""The libraries that are measured, one file each; a file is run as a worker's program in its library's environment.

Nothing but the standard library is imported here, and a side imports no other side.
"""

import json
import os
import resource
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class Side(ABC):
    """What a worker does for its library: `build` prepares a training and sets `train`, `run` times it.

    train: (seed) -> anything; it returns when the results are there.
    """

    train: Callable[[int], Any]

    @abstractmethod
    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares a case of `cases.WORK`; seconds of each phase of it, such as tracing and compiling."""

    def run(self, seed: int) -> float:
        """Seconds of one whole training, from the seed to the finished results."""
        started = time.perf_counter()
        self.train(seed)
        return time.perf_counter() - started

    def peak_memory(self) -> float:
        """The most memory that this process has held so far, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The compiled program of a jitted function, and the seconds of tracing (with lowering) and of compiling."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {"trace": traced - started, "compile": time.perf_counter() - traced}


def serve(side: Side) -> None:
    """A worker's loop: for each line on stdin it calls the named method of `side` and writes the result as a line."""
    # Whatever else the libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(side, request.pop("do"))(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)
