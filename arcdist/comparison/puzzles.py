"""Which run solved which puzzle."""

from collections.abc import Sequence
from dataclasses import dataclass

from arcdist.comparison.runs import Run
from arcdist.comparison.sheet import Line, Sheet
from arcdist.comparison.validations import exact_at

SOLVED, ONCE, MISSED, NOT_ASKED = "●", "○", "·", "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Puzzle:
    """A query that some run has solved."""

    id: str
    last: tuple[bool | None, ...]
    """Whether each run solved it at its last validation; None where it was not asked."""
    best: tuple[bool | None, ...]
    """Likewise at its best one."""

    @property
    def differs(self) -> bool:
        """Whether one run solved it that another did not, at the last validation."""
        return len(set(self.last) - {None}) > 1

    @property
    def marks(self) -> tuple[str, ...]:
        """A sign a run: solved, solved at the best validation only, not solved, not asked."""
        return tuple(map(_mark, self.last, self.best))


def puzzles(runs: Sequence[Run]) -> tuple[Puzzle, ...]:
    """Every query that any run solved, at its last or its best validation; first those in which the last ones differ.

    Among them those stand together that the same runs solved.
    """
    last = [exact_at(run.record, "last") for run in runs]
    best = [exact_at(run.record, "best") for run in runs]
    ids = sorted({name for exact in (*last, *best) for name, solved in exact.items() if solved})
    found = (
        Puzzle(
            id=name,
            last=tuple(exact.get(name) for exact in last),
            best=tuple(exact.get(name) for exact in best),
        )
        for name in ids
    )
    return tuple(sorted(found, key=lambda puzzle: (not puzzle.differs, [not solved for solved in puzzle.last])))


def puzzle_sheet(runs: Sequence[Run]) -> Sheet:
    """How many queries each run solved at its last validation, and which of them no other run, or every other, did."""
    last = [exact_at(run.record, "last") for run in runs]
    asked = [set(exact) for exact in last if exact]
    common = set.intersection(*asked) if asked else set()
    solved = [{name for name in common if exact[name]} if exact else None for exact in last]
    known = [names for names in solved if names is not None]
    by_all = set.intersection(*known) if known else set()
    by_any: set[str] = set().union(*known)
    lines = [Line(key="solved", label="solved", values=_counts(solved))]
    if len(known) > 1:
        only = [None if names is None else names.difference(*_others(known, names)) for names in solved]
        lines.append(Line(key="only", label="solved by no other", values=_counts(only)))
    if len(known) > 2:
        but = [None if names is None else set.intersection(*_others(known, names)) - names for names in solved]
        lines.append(Line(key="all_but", label="solved by all but this", values=_counts(but)))
    return Sheet(
        key="puzzles",
        title="Puzzles",
        columns=tuple(run.letter for run in runs),
        lines=tuple(lines),
        note=f"Of {len(common)} queries asked of all at their last validations: {len(by_all)} solved by all, "
        f"{len(by_any - by_all)} by some, {len(common - by_any)} by none."
        if len(known) > 1
        else "No two runs were validated query by query: nothing can be said of what all solved.",
    )


def _counts(sets: Sequence[set[str] | None]) -> tuple[int | None, ...]:
    return tuple(None if names is None else len(names) for names in sets)


def _others(sets: Sequence[set[str]], one: set[str]) -> list[set[str]]:
    return [names for names in sets if names is not one]


def _mark(last: bool | None, best: bool | None) -> str:
    if last:
        return SOLVED
    if best:
        return ONCE
    return NOT_ASKED if last is None else MISSED
