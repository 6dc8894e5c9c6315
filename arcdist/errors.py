"""The errors that end a run, each with the exit code a shell sees."""

from typing import ClassVar


class ArcdistError(Exception):
    """What went wrong, where, and how to correct it. `exit_code` is the program's documented exit status."""

    exit_code: ClassVar[int] = 1


class ConfigError(ArcdistError):
    """A key, a value or a combination of values that no run can have."""

    exit_code = 2


class DataError(ArcdistError):
    """A task, a pair or a grid that is not ARC, or a data source that cannot be read."""

    exit_code = 2


class PlatformError(ArcdistError):
    """The machine lacks what the configuration asks for: a device, a package, weights, a writable folder."""

    exit_code = 3


class OutOfMemoryError(ArcdistError):
    """The device or the host ran out of memory; the message ranks the settings that lower it."""

    exit_code = 4


class NotFiniteError(ArcdistError):
    """A loss or a gradient was NaN or infinite; raised before any parameter is updated with it."""

    exit_code = 5


class HealthError(ArcdistError):
    """Training cannot work as configured: after the first step, a trainable group has received no gradient."""

    exit_code = 5


class DistributedError(ArcdistError):
    """A process of the run failed, was lost, or disagrees with the others."""

    exit_code = 6


class ReplicaError(DistributedError):
    """Parameters that every process holds a copy of differ; the message names ranks and modules."""


class SaveError(ArcdistError):
    """A checkpoint could not be written; the one before it is still there."""

    exit_code = 7


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Of the CPU's allocator, the CUDA driver and cuBLAS, which have no own error type."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library's error says that the host or a device has no memory left."""
    says_so = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    return says_so or isinstance(error, MemoryError)


def reason(error: BaseException) -> str:
    """The first line of what an error says, of the system's without number and path; its kind if it is empty."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return text.strip().partition("\n")[0] or type(error).__name__


def kind_and_reason(error: BaseException) -> str:
    """The kind of an error and the first line of what it says, of the system's with number and path."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".removesuffix(": ")
