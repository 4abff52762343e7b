"""What stands in the way of a run, in one sentence each."""


class RunError(Exception):
    """A run cannot start or go on; the message says why and what to do."""


class StoppedError(RunError):
    """A run that had started could not go on; what it had saved is kept."""


class NonFiniteError(StoppedError):
    """A loss or parameter became NaN or infinite."""
