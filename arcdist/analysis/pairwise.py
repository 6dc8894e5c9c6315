"""The leading run against each other one, query by query: which is better, by how much, and whether beyond chance."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from arcdist.analysis.record import RunRecord
from arcdist.analysis.scores import Group, Run, group_runs
from arcdist.analysis.tables import Row, Table, Unit
from arcdist.formatting import counted, hundredths, percent
from arcdist.rng import INTERVAL_LEVEL, RESAMPLES, bootstrap, percentile_interval
from arcdist.tracking.metrics import task_of

# T tasks, S runs of a group, D draws, K kinds of tasks.

ValidationChoice: TypeAlias = Literal["last", "best"]
Answers: TypeAlias = Mapping[str, bool]
"""Whether each query was answered exactly, by its id."""

_FEWEST_DIFFERING = 6
"""Tasks in which two groups must differ before any difference counts: five may all favour the same one by chance, in
more than one of twenty cases (2 · 2^-5 > 0.05)."""
_ROUNDING = 1e-9
"""Means over several runs of equal shares may differ by this."""


def paired_interval(
    first: Float[np.ndarray, "T S1"], second: Float[np.ndarray, "T S2"], queries: Float[np.ndarray, " T"]
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two groups in the share of queries that are exact.

    Tasks are drawn with replacement, all queries of a task and all runs on it together, so that what makes a task easy
    for both does not count as chance. The runs of a group are drawn as well: the interval then contains what another
    seed may change, though two or three seeds tell little about that.

    Args:
        first: how many queries of each task each run of the first group answered exactly.
        second: the same for the second group.
        queries: how many queries each task has.

    Returns:
        Lower and upper end of first − second, between -1 and 1; the same for the same numbers, in any order of tasks.
    """
    random = bootstrap()
    # Tasks with the same outcome are interchangeable: drawing kinds of tasks by how many there are is the same draw,
    # with a few numbers in place of one for each task.
    kinds, sizes = np.unique(np.column_stack([first, second, queries]), axis=0, return_counts=True)
    drawn = random.multinomial(len(queries), sizes / len(queries), size=RESAMPLES)  # [D, K]
    totals = drawn @ kinds  # [D, S1 + S2 + 1]
    shares = totals[:, :-1] / totals[:, -1:]

    def mean(group: Float[np.ndarray, "D S"]) -> Float[np.ndarray, " D"]:
        runs = group.shape[1]
        weights = random.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs
        return (group * weights).sum(axis=1)

    runs = first.shape[1]
    return percentile_interval(mean(shares[:, :runs]) - mean(shares[:, runs:]))


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseResult:
    """The leading group against another one, on the same queries."""

    leader: Group
    rival: Group
    queries: int
    tasks: int
    differing: int
    """Tasks of which the two solved unequal shares."""
    leader_exact: float
    """Share of exact queries; the mean over several runs."""
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
        """Whether the difference is more than another choice of tasks may make."""
        return self.low > 0 and self.differing >= _FEWEST_DIFFERING


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The leading group against each other one."""

    choice: ValidationChoice
    results: tuple[PairwiseResult, ...]
    """The closest rival first; empty if nothing can be compared."""
    asked: int
    """Queries that any of the compared groups was asked; `queries` of a result were asked of all."""
    without_validation: tuple[Run, ...]
    apart: tuple[Group, ...]
    """Groups that were asked other queries than the compared ones."""


def rank(runs: Sequence[Run], choice: ValidationChoice) -> Ranking:
    """Compare groups, or the runs of a single group, on the queries that all were asked.

    While no query is common to all, the group with the least in common with the others is set apart.
    """
    answers = {run.letter: answers_at(run.record, choice) for run in runs}
    validated = [run for run in runs if answers[run.letter]]
    groups = group_runs(validated)
    if len(groups) == 1:
        groups = tuple(Group(runs=(run,)) for run in validated)
    asked = {group.letters: set.intersection(*(set(answers[run.letter]) for run in group.runs)) for group in groups}
    compared = list(groups)
    while compared and not (common := set.intersection(*(asked[group.letters] for group in compared))):
        overlaps = [
            sum(len(asked[group.letters] & asked[other.letters]) for other in compared if other is not group)
            for group in compared
        ]
        # Of several with as little, the last.
        del compared[len(overlaps) - 1 - overlaps[::-1].index(min(overlaps))]
    return Ranking(
        choice=choice,
        results=_compare(compared, sorted(common), answers) if len(compared) > 1 else (),
        asked=len({query for group in compared for run in group.runs for query in answers[run.letter]}),
        without_validation=tuple(run for run in runs if not answers[run.letter]),
        apart=tuple(group for group in groups if group not in compared),
    )


def answers_at(record: RunRecord, choice: ValidationChoice) -> Answers:
    """How the queries of the last or the best validation were answered; empty if there is none.

    The last one is the fair one to judge by: the best one was chosen for this very score, which flatters a run the
    more, the more validations it had to choose from.
    """
    epoch = record.best.get("epoch")
    validations = record.validations[-1:] if choice == "last" else [v for v in record.validations if v.epoch == epoch]
    return {query: result.exact for validation in validations for query, result in validation.results.items()}


def _compare(
    groups: Sequence[Group], common: Sequence[str], answers: Mapping[str, Answers]
) -> tuple[PairwiseResult, ...]:
    names, task = np.unique([task_of(query) for query in common], return_inverse=True)
    queries = np.bincount(task).astype(float)
    solved = []  # [T, S] for each group
    for group in groups:
        exact = [np.array([answers[run.letter][query] for query in common], dtype=float) for run in group.runs]
        solved.append(np.stack([np.bincount(task, weights=run) for run in exact], axis=1))
    shares = [float(found.sum() / found.shape[1] / len(common)) for found in solved]
    (best, leader, first), *others = sorted(zip(shares, groups, solved, strict=True), key=lambda entry: -entry[0])
    results = []
    for share, rival, second in others:
        low, high = paired_interval(first, second, queries)
        results.append(
            PairwiseResult(
                leader=leader,
                rival=rival,
                queries=len(common),
                tasks=len(names),
                differing=int((np.abs(first.mean(axis=1) - second.mean(axis=1)) > _ROUNDING).sum()),
                leader_exact=best,
                rival_exact=share,
                low=low,
                high=high,
            )
        )
    return tuple(results)


def pairwise_table(ranking: Ranking) -> Table | None:
    """A column for each rival, the closest first; None if nothing can be compared."""
    if not ranking.results:
        return None
    first, *others = ranking.results
    leader = first.leader.letters
    lines: list[tuple[str, str, Unit]] = [
        ("leader_exact", f"{leader}, %", "percent"),
        ("rival_exact", "the other, %", "percent"),
        ("difference", "difference", "percent"),
        ("low", f"{100 * INTERVAL_LEVEL:.0f} % interval from", "percent"),
        ("high", "to", "percent"),
        ("differing", "tasks that differ", "number"),
        ("clear", "beyond the noise", "yes or no"),
    ]
    return Table(
        key=f"pairwise_{ranking.choice}",
        title=f"{leader} against {'the others' if others else first.rival.letters}, {ranking.choice} validation",
        columns=tuple(result.rival.letters for result in ranking.results),
        rows=[
            Row(
                key=name.removesuffix("_exact"),
                label=label,
                values=[getattr(result, name) for result in ranking.results],
                unit=unit,
            )
            for name, label, unit in lines
        ],
        note=f"Exact grids, in percent of the {counted(first.queries, 'query')} asked of all, "
        f"of {counted(first.tasks, 'task')}.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryOutcome:
    """A query that some run has solved."""

    id: str
    last: tuple[bool | None, ...]
    """Whether each run solved it at its last validation; None if it was not asked."""
    best: tuple[bool | None, ...]
    """The same for its best validation."""

    @property
    def marks(self) -> tuple[str, ...]:
        """A sign for each run: solved, solved at the best validation only, not solved, not asked."""
        return tuple(
            "●" if last else "○" if best else "–" if last is None else "·"
            for last, best in zip(self.last, self.best, strict=True)
        )


def query_outcomes(runs: Sequence[Run]) -> tuple[QueryOutcome, ...]:
    """Every query that any run solved, at its last or its best validation.

    First those in which the last validations differ; queries that the same runs solved are neighbours.
    """
    last, best = ([answers_at(run.record, choice) for run in runs] for choice in get_args(ValidationChoice))
    solved = sorted({query for answers in (*last, *best) for query, exact in answers.items() if exact})
    found = (
        QueryOutcome(
            id=query, last=tuple(known.get(query) for known in last), best=tuple(known.get(query) for known in best)
        )
        for query in solved
    )
    return tuple(
        sorted(found, key=lambda outcome: (len({*outcome.last} - {None}) < 2, [not one for one in outcome.last]))
    )


def puzzle_table(runs: Sequence[Run]) -> Table:
    """How many queries each run solved at its last validation, and how many it alone solved or missed."""
    answers = [answers_at(run.record, "last") for run in runs]
    known = [given for given in answers if given]
    common = set.intersection(*map(set, known)) if known else set()
    solved = [{query for query in common if given[query]} if given else None for given in answers]
    counts = Counter(query for found in solved for query in found or ())

    def row(key: str, label: str, count: Callable[[set[str]], int]) -> Row:
        return Row(key=key, label=label, values=[None if found is None else count(found) for found in solved])

    rows = [row("solved", "solved", len)]
    if len(known) > 1:
        rows.append(row("only", "solved by no other", lambda found: sum(counts[query] == 1 for query in found)))
    if len(known) > 2:
        by_all_but_one = {query for query, times in counts.items() if times == len(known) - 1}
        rows.append(row("all_but", "solved by all but this", lambda found: len(by_all_but_one - found)))
    by_all = sum(times == len(known) for times in counts.values())
    return Table(
        key="puzzles",
        title="Puzzles",
        columns=tuple(run.letter for run in runs),
        rows=rows,
        note=f"Of {counted(len(common), 'query')} asked of all at their last validations: {by_all} solved by all, "
        f"{len(counts) - by_all} by some, {len(common) - len(counts)} by none."
        if len(known) > 1
        else "No two runs were validated query by query: what all solved is not known.",
    )


def verdict_sentences(last: Ranking, best: Ranking) -> tuple[str, ...]:
    """Which group is better and whether that is more than chance, then what the reader has to know about it."""
    sentences = []
    if last.results:
        sentences += [*_describe(last.results[0]), *_qualify(last)]
        if best.results and _outcome(best.results[0]) != _outcome(last.results[0]):
            sentences.append(f"At the best validation of each run: {_in_short(best.results[0])}.")
    elif last.apart:
        sentences.append("No verdict is possible: the runs were not scored on the same queries.")
    else:
        sentences.append("No verdict is possible: it takes two runs that have been validated query by query.")
    for run in last.without_validation:
        sentences.append(f"{run.called} has no validation by queries and is left out of the verdict.")
    for group in last.apart if last.results else ():
        sentences.append(f"{_capital(group.called)} was asked other queries and is left out of the verdict.")
    return tuple(sentences)


def _describe(result: PairwiseResult) -> Iterator[str]:
    leader, rival, exact = _capital(result.leader.called), result.rival.called, percent(result.leader_exact)
    scores = (
        f"{exact} against {percent(result.rival_exact)} of {counted(result.queries, 'query')} exact, "
        f"{hundredths(result.difference)} points more"
    )
    if result.level:
        yield f"{leader} and {rival} are level: each solves {exact} of the queries."
    elif result.clear:
        yield f"{leader} is better than {rival}: {scores}, which is beyond the noise."
    else:
        yield f"{leader} is ahead of {rival}, but within the noise: {scores}."
    yield (
        f"The {100 * INTERVAL_LEVEL:.0f} % interval of the difference is {_interval(result)} "
        f"(bootstrap over {counted(result.tasks, 'task')})."
    )
    if result.low > 0 and not result.clear:
        yield f"They differ in {counted(result.differing, 'task')} only: fewer than {_FEWEST_DIFFERING} prove nothing."


def _qualify(ranking: Ranking) -> Iterator[str]:
    first = ranking.results[0]
    if first.queries < ranking.asked:
        yield f"Compared are the {counted(first.queries, 'query')} that all were asked, of {ranking.asked}."
    runs = [run for result in ranking.results for group in (result.leader, result.rival) for run in group.runs]
    if len({run.record.identity.group for run in runs}) == 1:
        yield "The runs repeat one recipe with other seeds: a difference between them is that of seeds."
    elif len(first.leader.runs) == len(first.rival.runs) == 1:
        yield "Another seed may change more: the interval knows one run of each."
    else:
        yield "Runs of one recipe are compared by their mean; the interval takes in how their seeds differ."


def _outcome(result: PairwiseResult) -> tuple[str, str, bool]:
    return result.leader.letters, result.rival.letters, result.clear


def _in_short(result: PairwiseResult) -> str:
    leader, rival = result.leader.called, result.rival.called
    if result.level:
        return f"{leader} and {rival} are level"
    noise = "beyond the noise" if result.clear else "within the noise"
    return f"{leader} is ahead of {rival} by {hundredths(result.difference)} points ({_interval(result)}), {noise}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _interval(result: PairwiseResult) -> str:
    return f"{hundredths(result.low, '+')} to {hundredths(result.high, '+')} points"
