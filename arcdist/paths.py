"""Paths as users write them."""

from pathlib import Path

from arcdist.errors import ConfigError


def expanded(place: str | Path) -> Path:
    """A path with `~` as the home folder that it stands for.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        name = Path(place).parts[0]
        raise ConfigError(
            f"{place}: {name} is nobody's home folder here; write the path in full, or ./{name} for a folder so named."
        ) from error
