"""Processes that meet, as in the tests of `distributed`."""

from distributed.conftest import finish, run_ranks, start_ranks, started

__all__ = ["finish", "run_ranks", "start_ranks", "started"]
