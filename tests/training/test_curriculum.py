import pytest
import torch

from arcdist.config.schema import CurriculumConfig
from arcdist.errors import ConfigError
from arcdist.training.curriculum import DynamicMemoryThreshold, SizeWarmupCurriculum


@pytest.mark.parametrize(("epoch", "weight"), [(0, 1.0), (0.75, 0.875), (1.5, 0.75), (3, 0.5), (7, 0.5)])
def test_size_weight_falls_linearly_over_three_epochs(epoch, weight):
    assert SizeWarmupCurriculum().weight(epoch) == pytest.approx(weight, abs=1e-12)


def test_size_weight_without_warm_up_is_its_end():
    assert SizeWarmupCurriculum(start=2.0, end=0.25, epochs=0).weight(0) == 0.25


def test_threshold_is_the_gate_times_the_average():
    threshold = DynamicMemoryThreshold()
    assert threshold.threshold == pytest.approx(0.22)
    threshold.update(0.7)
    assert threshold.threshold == pytest.approx(1.1 * 0.25)
    threshold.update(0.25)
    assert threshold.threshold == pytest.approx(1.1 * 0.25)


def test_memory_admits_what_exceeds_the_threshold():
    admitted = DynamicMemoryThreshold(start=0.5, gate=1.0).admits(torch.tensor([0.4, 0.5, 0.6, 1.0]))
    assert admitted.tolist() == [False, False, True, True]


def test_an_exact_grid_is_admitted_when_the_threshold_exceeds_one():
    threshold = DynamicMemoryThreshold(start=0.95)
    assert threshold.threshold > 1.0
    assert threshold.admits(torch.tensor([0.99, 1.0])).tolist() == [False, True]


def test_threshold_continues_from_its_state():
    first, second = DynamicMemoryThreshold(), DynamicMemoryThreshold()
    first.update(0.9)
    second.load_state(first.state())
    for threshold in (first, second):
        threshold.update(0.3)
    assert second.threshold == first.threshold


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"size_warmup_epochs": -1}, "size_warmup_epochs"), ({"memory_threshold_alpha": 0.0}, "memory_threshold_alpha")],
)
def test_impossible_curriculum_is_refused(changes, key):
    with pytest.raises(ConfigError, match=f"curriculum.{key} is .*: choose"):
        CurriculumConfig(**changes)
