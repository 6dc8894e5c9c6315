"""Two training steps of each family of today's Qwen, by one process and under ZeRO-2."""

import pytest
from shared.families import FAMILIES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("config", ["zero2"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next", "qwen3_5"])
def test_two_steps_are_those_of_a_single_process(launched, shared_folder, assert_same_trajectory, family, config):
    folder = shared_folder / family
    FAMILIES[family].save_pretrained(folder)
    flags = ("--qwen.model", str(folder), "--qwen.init=random", "--max_batches=2", "--epochs=1")
    single, several = launched("cpu", 1, *flags), launched(config, 2, *flags)
    assert_same_trajectory(several, single)
    assert [record["step"] for record in single.steps()] == [1, 2]
    assert all(record["grad_norm/qwen"] > 0 for record in single.steps())
