"""The verdict in plain sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from arcdist.analysis.record import RunRecord
from arcdist.analysis.scores import LEVEL, Run, Side, paired_interval, sides
from arcdist.analysis.tables import Line, Sheet
from arcdist.formatting import hundredths, percent
from arcdist.tracking.metrics import Validation, task_of

Moment: TypeAlias = Literal["last", "best"]
MOMENTS: tuple[Moment, ...] = ("last", "best")


def exact_at(record: RunRecord, moment: Moment) -> Mapping[str, bool]:
    """Whether each query was answered exactly; empty where there is no such validation.

    The last one is the fair one to judge by: the best one was chosen for this very score, which flatters a run the
    more, the more validations it had to choose from.
    """
    validation = _at(record, moment)
    return {} if validation is None else {name: result.exact for name, result in validation.results.items()}


def _at(record: RunRecord, moment: Moment) -> Validation | None:
    if moment == "last":
        return record.validations[-1] if record.validations else None
    best = record.best.get("epoch")
    return next((validation for validation in record.validations if validation.epoch == best), None)


# T tasks, S runs of a side.


FEWEST_DIFFERING = 6
"""Tasks in which two sides must differ before any difference counts: five may all favour one side by chance, in more
than one of twenty cases (2 · 2^-5 > 0.05)."""

_ROUNDING = 1e-9
"""Means over several runs of equal shares may differ by this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """The leading side against another one, on the same queries."""

    leader: Side
    rival: Side
    queries: int
    tasks: int
    differing: int
    """Tasks of which the sides solved unequal shares."""
    leader_exact: float
    """Share of exact queries, of several runs their mean."""
    rival_exact: float
    low: float
    """Lower end of the 95 % interval of the difference, leader − rival."""
    high: float

    @property
    def difference(self) -> float:
        """Leader − rival."""
        return self.leader_exact - self.rival_exact

    @property
    def level(self) -> bool:
        """Whether both solve equally many."""
        return self.difference < _ROUNDING

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond what another choice of tasks may make of it."""
        return self.low > 0 and self.differing >= FEWEST_DIFFERING


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The leading side against each other one, the closest rival first; empty where nothing can be compared."""

    moment: Moment
    contests: tuple[Contest, ...]
    asked: int
    """Queries that any of the sides compared was asked; of them `queries` of a contest were asked of all."""
    without_validation: tuple[Run, ...]
    apart: tuple[Side, ...]
    """Sides that were asked other queries than those compared."""


def rankings(runs: Sequence[Run]) -> tuple[Ranking, ...]:
    """By the last validation of each run, and by its best one."""
    return tuple(rank(runs, moment) for moment in MOMENTS)


def rank(runs: Sequence[Run], moment: Moment) -> Ranking:
    """Compare the sides on the queries that all were asked.

    Where no query is common to all, the sides with the least in common with the others stand apart.
    """
    exact = {run.letter: exact_at(run.record, moment) for run in runs}
    missing = tuple(run for run in runs if not exact[run.letter])
    all_sides = sides([run for run in runs if exact[run.letter]])
    compared = list(all_sides)
    while compared and not _common(compared, exact):
        compared.remove(min(reversed(compared), key=lambda side: _shared(side, compared, exact)))
    common = sorted(_common(compared, exact))
    asked = {name for side in compared for run in side.runs for name in exact[run.letter]}
    return Ranking(
        moment=moment,
        contests=_contests(compared, common, exact) if len(compared) > 1 else (),
        asked=len(asked),
        without_validation=missing,
        apart=tuple(side for side in all_sides if side not in compared),
    )


def _contests(
    compared: Sequence[Side], common: Sequence[str], exact: Mapping[str, Mapping[str, bool]]
) -> tuple[Contest, ...]:
    names, task = np.unique([task_of(query) for query in common], return_inverse=True)
    queries = np.bincount(task, minlength=len(names)).astype(float)
    solved = [_solved(side, common, task, exact) for side in compared]
    shares = [float(counts.sum() / counts.shape[1] / len(common)) for counts in solved]
    order = sorted(range(len(compared)), key=lambda index: -shares[index])
    first = order[0]
    contests = []
    for other in order[1:]:
        low, high = paired_interval(solved[first], solved[other], queries)
        apart = np.abs(solved[first].mean(axis=1) - solved[other].mean(axis=1)) > _ROUNDING
        contests.append(
            Contest(
                leader=compared[first],
                rival=compared[other],
                queries=len(common),
                tasks=len(names),
                differing=int(apart.sum()),
                leader_exact=shares[first],
                rival_exact=shares[other],
                low=low,
                high=high,
            )
        )
    return tuple(contests)


def _solved(
    side: Side, common: Sequence[str], task: np.ndarray, exact: Mapping[str, Mapping[str, bool]]
) -> Float[np.ndarray, "T S"]:
    """How many queries of each task each run of a side answered exactly."""
    tasks = int(task.max()) + 1
    answers = [np.array([exact[run.letter][query] for query in common], dtype=float) for run in side.runs]
    return np.stack([np.bincount(task, weights=answer, minlength=tasks) for answer in answers], axis=1)


def _common(compared: Sequence[Side], exact: Mapping[str, Mapping[str, bool]]) -> set[str]:
    asked = [set(exact[run.letter]) for side in compared for run in side.runs]
    return set.intersection(*asked) if asked else set()


def _shared(side: Side, others: Sequence[Side], exact: Mapping[str, Mapping[str, bool]]) -> int:
    return sum(len(_common([side, other], exact)) for other in others if other is not side)


def contest_sheet(ranking: Ranking) -> Sheet | None:
    """A column a rival, the closest first; none where nothing can be compared."""
    contests = ranking.contests
    if not contests:
        return None
    leader = contests[0].leader.letters
    others = contests[0].rival.letters if len(contests) == 1 else "the others"
    lines = (
        Line(key="leader", label=f"{leader}, %", values=tuple(c.leader_exact for c in contests), unit="percent"),
        Line(key="rival", label="the other, %", values=tuple(c.rival_exact for c in contests), unit="percent"),
        Line(key="difference", label="difference", values=tuple(c.difference for c in contests), unit="percent"),
        Line(
            key="low", label=f"{100 * LEVEL:.0f} % interval from", values=tuple(c.low for c in contests), unit="percent"
        ),
        Line(key="high", label="to", values=tuple(c.high for c in contests), unit="percent"),
        Line(key="differing", label="tasks that differ", values=tuple(c.differing for c in contests)),
        Line(
            key="clear",
            label="beyond the noise",
            values=tuple(c.clear for c in contests),
            unit="yes or no",
        ),
    )
    return Sheet(
        key=f"contests_{ranking.moment}",
        title=f"{leader} against {others}, {ranking.moment} validation",
        columns=tuple(contest.rival.letters for contest in contests),
        lines=lines,
        note=f"Exact grids, in percent of the {contests[0].queries} queries of {contests[0].tasks} tasks asked of all.",
    )


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


def verdict_sentences(last: Ranking, best: Ranking) -> tuple[str, ...]:
    """Which side is better and whether that is more than chance, then what the reader has to know of it."""
    return tuple(_sentences(last, best))


def _sentences(last: Ranking, best: Ranking) -> Iterator[str]:
    if last.contests:
        yield from _about(last.contests[0])
        yield from _conditions(last)
        if best.contests and _outcome(best.contests[0]) != _outcome(last.contests[0]):
            yield f"At the best validation of each run: {_in_short(best.contests[0])}."
    else:
        yield "No verdict is possible: " + (
            "the runs were not scored on the same queries."
            if last.apart
            else "it takes two runs that have been validated query by query."
        )
    for run in last.without_validation:
        yield f"{run.called} has no validation by queries and stands outside the verdict."
    if last.contests:
        for side in last.apart:
            yield f"{_capital(side.called)} was asked other queries and stands outside the verdict."


def _about(contest: Contest) -> Iterator[str]:
    leader, rival = contest.leader.called, contest.rival.called
    scores = f"{percent(contest.leader_exact)} against {percent(contest.rival_exact)} of {contest.queries} queries"
    if contest.level:
        yield f"{_capital(leader)} and {rival} are level: each solves {percent(contest.leader_exact)} of the queries."
    elif contest.clear:
        yield (
            f"{_capital(leader)} is better than {rival}: {scores} exact, {_points(contest.difference)} more, "
            f"which is beyond the noise."
        )
    else:
        yield (
            f"{_capital(leader)} is ahead of {rival}, but within the noise: {scores} exact, "
            f"{_points(contest.difference)} more."
        )
    yield (
        f"The {100 * LEVEL:.0f} % interval of the difference is {_interval(contest)} "
        f"(bootstrap over {contest.tasks} tasks)."
    )
    if contest.low > 0 and not contest.clear:
        yield f"They differ in {contest.differing} tasks only: fewer than {FEWEST_DIFFERING} prove nothing."


def _conditions(ranking: Ranking) -> Iterator[str]:
    contest = ranking.contests[0]
    if contest.queries < ranking.asked:
        yield f"Compared are the {contest.queries} queries that all were asked, of {ranking.asked}."
    compared = [run for one in ranking.contests for side in (one.leader, one.rival) for run in side.runs]
    if len({run.record.identity.group for run in compared}) == 1:
        yield "The runs repeat one recipe with other seeds: a difference between them is that of seeds."
    elif len(contest.leader.runs) == len(contest.rival.runs) == 1:
        yield "Another seed may change more: the interval knows one run of each."
    else:
        yield "Runs of one recipe are compared by their mean; the interval takes in how their seeds differ."


def _outcome(contest: Contest) -> tuple[str, str, bool]:
    return contest.leader.letters, contest.rival.letters, contest.clear


def _in_short(contest: Contest) -> str:
    leader, rival = contest.leader.called, contest.rival.called
    if contest.level:
        return f"{leader} and {rival} are level"
    noise = "beyond the noise" if contest.clear else "within the noise"
    return f"{leader} is ahead of {rival} by {_points(contest.difference)} ({_interval(contest)}), {noise}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _points(share: float) -> str:
    return f"{hundredths(share)} points"


def _interval(contest: Contest) -> str:
    return f"{hundredths(contest.low, '+')} to {hundredths(contest.high, '+')} points"
