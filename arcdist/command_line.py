"""The command line of a program that has none of the configuration's keys."""

import argparse
from typing import NoReturn

from arcdist.errors import ConfigError


class OneLineParser(argparse.ArgumentParser):
    """One whose mistakes are told in one line, like those of every program here."""

    def error(self, message: str) -> NoReturn:
        """Tell of a mistake.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"The command line: {message}. `{self.prog} --help` says what there is.")
