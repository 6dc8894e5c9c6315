"""Random streams that depend on names, never on the process or on what was drawn before."""

from hashlib import blake2b

import numpy as np
from jaxtyping import Float

RESAMPLES, INTERVAL_LEVEL, _BOOTSTRAP_SEED = 10_000, 0.95, 0
"""Of a bootstrap: how often is drawn, and the share that its interval holds."""
PURPOSES = ("batches", "context", "augment", "unknown_task", "refinement", "dropout", "agent_dropout")
"""What training draws at random, by the seed, the purpose, the epoch and the sample or batch."""


def stream(seed: int, purpose: str, epoch: int, sample: str) -> np.random.Generator:
    """Give the generator of one sample, for one purpose, in one epoch.

    Equal arguments give equal numbers on every process, machine and Python version, so a sample is augmented the same
    wherever it is processed; any other argument gives an independent stream.
    """
    name = "\0".join((str(seed), purpose, str(epoch), sample))
    return np.random.default_rng(int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "big"))


def bootstrap() -> np.random.Generator:
    """Give the generator of a bootstrap, so that equal outcomes have equal intervals."""
    return np.random.default_rng(_BOOTSTRAP_SEED)


def percentile_interval(drawn: Float[np.ndarray, " D"]) -> tuple[float, float]:
    """The percentile interval of a statistic from its value in each resample, D of them."""
    low, high = np.quantile(drawn, [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2])
    return float(low), float(high)
