"""One writer for each folder: a lock that the system frees when its process ends, in whatever way."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from purerl.run.errors import RunError

FILE = ".lock"


@contextlib.contextmanager
def lock(folder: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds `folder` against other writers; its lock file, which stays, names the process that last wrote.

    say: told where the file system knows no locks, and the folder stays open to others.
    Raises RunError where another process holds it.
    """
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunError(
                f"Process {file.read().strip() or 'unknown'} is training in {folder}: wait for it, or stop it first."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            say(f"The file system of {folder} knows no locks: let no other process train in it.")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
