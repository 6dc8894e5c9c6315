"""How far a difference between runs may be chance: a paired bootstrap over tasks."""

# T tasks, S runs of a side, D draws, K kinds of tasks.
import numpy as np
from jaxtyping import Float

DRAWS = 10_000
LEVEL = 0.95
_SEED = 0


def paired_interval(
    first: Float[np.ndarray, "T S1"], second: Float[np.ndarray, "T S2"], queries: Float[np.ndarray, " T"]
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two sides in the share of queries that are exact.

    Tasks are drawn with replacement, all queries of a task and all runs on it together, so that what makes a task easy
    for both does not count as chance. Of a side with several runs these are drawn as well: the interval then holds
    what another seed may change, though of two or three seeds it knows too little of that.

    Args:
        first: how many queries of each task each run of the first side answered exactly.
        second: the same for the second side.
        queries: how many queries each task has.

    Returns:
        Lower and upper end of first − second, between -1 and 1; the same for the same numbers, in any order of tasks.
    """
    random = np.random.default_rng(_SEED)
    # Tasks with the same outcome are as good as each other: drawing kinds of tasks by how many there are is the same
    # draw, of a few numbers in place of one a task.
    kinds, sizes = np.unique(np.column_stack([first, second, queries]), axis=0, return_counts=True)
    drawn = random.multinomial(len(queries), sizes / len(queries), size=DRAWS)  # [D, K]
    totals = drawn @ kinds  # [D, S1 + S2 + 1]
    shares = totals[:, :-1] / totals[:, -1:]
    runs = first.shape[1]
    difference = _mean_of_drawn(shares[:, :runs], random) - _mean_of_drawn(shares[:, runs:], random)
    low, high = np.quantile(difference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _mean_of_drawn(shares: Float[np.ndarray, "D S"], random: np.random.Generator) -> Float[np.ndarray, " D"]:
    runs = shares.shape[1]
    weights = random.multinomial(runs, np.full(runs, 1 / runs), size=len(shares)) / runs
    return (shares * weights).sum(axis=1)
