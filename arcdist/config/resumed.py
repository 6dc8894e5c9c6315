"""The configuration of the run that a command line resumes: what it stands on where it names no other."""

from pathlib import Path


def config_of_run(resume: str | None, directory: str | None) -> Path | None:
    """The `config.yaml` beside what is resumed; none where there is none.

    Args:
        resume: `--resume`'s value, if it was given.
        directory: `--output_dir`'s.
    """
    if resume is None:
        return None
    if resume not in ("newest", "auto"):
        path = Path(resume).expanduser()
        places = [path, path.parent, path.parent.parent]
    elif directory is not None:
        places = [Path(directory).expanduser()]
    else:
        runs = sorted(Path("runs").glob("arcdist_*"), reverse=True)
        places = [folder for folder in runs if any((folder / "checkpoints").glob("step_*"))]
    return next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
