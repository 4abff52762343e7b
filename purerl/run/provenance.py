"""Which code made a result."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

import purerl

PACKAGE = Path(__file__).resolve().parent.parent


def source_hash(package: Path = PACKAGE) -> str:
    """The first 12 hex digits of SHA-256 over the bytes of the package's .py files, in the order of their paths."""
    files = sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of purerl and its source, Python and JAX."""
    jax = importlib.metadata.version("jax")
    return {"purerl": purerl.__version__, "source": source_hash(), "python": platform.python_version(), "jax": jax}
