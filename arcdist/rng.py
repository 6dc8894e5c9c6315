"""Random streams that depend on names, never on the process or on what was drawn before."""

from hashlib import blake2b

import numpy as np

PURPOSES = ("batches", "context", "augment", "refinement", "dropout")
"""What training draws at random, by the seed, the purpose, the epoch and the sample or batch."""


def stream(seed: int, purpose: str, epoch: int, sample: str) -> np.random.Generator:
    """Give the generator of one sample, for one purpose, in one epoch.

    Equal arguments give equal numbers on every process, machine and Python version, so a sample is augmented the same
    wherever it is processed; any other argument gives an independent stream.
    """
    name = "\0".join((str(seed), purpose, str(epoch), sample))
    return np.random.default_rng(int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "big"))
