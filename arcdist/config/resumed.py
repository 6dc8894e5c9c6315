"""Which run a command line resumes, and its configuration: what the line stands on where it names no other."""

from pathlib import Path

from arcdist.paths import expanded

NEWEST, AUTO = "newest", "auto"
"""What `--resume` may be given beside a path: nothing, and the word for schedulers."""

DEFAULT_ROOT = Path("runs")
"""Where runs go that are given no folder."""


def newest_run() -> Path | None:
    """The run in `runs/` that has saved last, by the clock of the disk; none if none has."""
    saved = {
        run: max(place.stat().st_mtime_ns for place in places)
        for run in DEFAULT_ROOT.glob("*")
        if (run / "config.yaml").is_file() and (places := [*(run / "checkpoints").glob("step_*"), *run.glob("best")])
    }
    return max(saved, key=lambda run: (saved[run], run.name), default=None)


def config_of_run(resume: str | None, directory: str | None) -> Path | None:
    """The `config.yaml` beside what is resumed; none where there is none.

    Args:
        resume: `--resume`'s value, if it was given.
        directory: `--output_dir`'s.
    """
    if resume is None:
        return None
    if resume not in (NEWEST, AUTO):
        path = expanded(resume)
        places = [path, path.parent, path.parent.parent]
    elif directory is not None:
        places = [expanded(directory)]
    else:
        run = newest_run()
        places = [run] if run else []
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
