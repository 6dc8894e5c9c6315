"""Random streams by name."""

import subprocess
import sys

import numpy as np
import pytest

from arcdist.rng import stream


def test_the_same_names_give_the_same_numbers():
    assert (
        stream(0, "augment", 3, "a:train:0").random(4).tolist()
        == stream(0, "augment", 3, "a:train:0").random(4).tolist()
    )


@pytest.mark.parametrize("names", [(1, "p", 0, "s"), (0, "q", 0, "s"), (0, "p", 1, "s"), (0, "p", 0, "t")])
def test_any_other_name_gives_another_stream(names):
    assert not np.array_equal(stream(*names).random(4), stream(0, "p", 0, "s").random(4))


def test_names_do_not_run_together():
    assert stream(0, "p", 1, "1s").random() != stream(0, "p", 11, "s").random()


def test_another_process_draws_the_same():
    program = "from arcdist.rng import stream; print(stream(7, 'augment', 2, 'x').integers(10**9))"
    environment = {"PYTHONHASHSEED": "123"}
    drawn = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(drawn.stdout) == stream(7, "augment", 2, "x").integers(10**9)
