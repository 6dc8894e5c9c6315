"""What a run is doing besides training, told where it takes long, so that nobody takes the run for stuck."""

from rich.console import Console

from arcdist.tracking.log import console as shared_console

FIRST_SECONDS = 10.0
"""A phase that takes no longer is not worth a line."""
AGAIN_SECONDS = 30.0


def is_long(doing: str, seconds: float) -> bool:
    """Whether a phase has lasted long enough to be told. Steps are counted by the progress bar."""
    return doing != "training" and seconds >= FIRST_SECONDS


class PhaseLines:
    """Prints a line such as `validating: 40 s` when a phase has lasted 10 s, and again every 30 s.

    Called now and then, from any thread, with what is being done and for how many seconds.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or shared_console()
        self._doing = ""
        self._due = FIRST_SECONDS

    def __call__(self, doing: str, seconds: float) -> None:
        """Print what is due."""
        if doing != self._doing or seconds < FIRST_SECONDS:
            self._doing, self._due = doing, FIRST_SECONDS
        if is_long(doing, seconds) and seconds >= self._due:
            self._due = seconds + AGAIN_SECONDS
            self._console.print(f"{doing}: {seconds:.0f} s", markup=False, highlight=False, soft_wrap=True)
