"""A batch of 8 in one pass, in eight, or in four by each of two processes: the same run on every backend."""

import pytest

pytestmark = pytest.mark.slow

# 29 queries make batches of 8 and of 7: in some steps a process has a pass without a query of its own.
BATCHES_OF_8 = ("--batch_size=8", "--epochs=2")


@pytest.mark.parametrize(
    ("config", "processes", "passes"),
    [
        ("single_gpu", 1, 8),
        ("multi_gpu", 2, 4),
        ("zero1", 2, 4),
        ("zero2", 1, 8),
        ("zero2", 2, 4),
        ("zero2_offload", 2, 4),
        ("zero3", 2, 4),
    ],
)
def test_passes_add_up_to_the_batch(launched, assert_same_trajectory, config, processes, passes):
    whole = launched("cpu", 1, *BATCHES_OF_8)
    parts = launched(config, processes, *BATCHES_OF_8, f"--train.accumulation={passes}")
    assert [record["step"] for record in whole.steps()] == list(range(1, 9))
    assert_same_trajectory(parts, whole)
