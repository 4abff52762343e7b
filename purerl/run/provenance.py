"""Which code made a result."""

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def source_hash() -> str:
    """The first 12 hex digits of SHA-256 over the bytes of the package's .py files, in the order of their paths."""
    files = sorted(_PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(_PACKAGE).as_posix())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
