"""What a run would take, measured on its longest batch."""

from arcdist.config import Config


def dry_run(config: Config) -> None:
    raise NotImplementedError
