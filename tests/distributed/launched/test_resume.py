"""A run that is killed and resumed is the run that never ended: to the last bit, or on other processes."""

import json

import pytest
import torch
from shared.measured import without_measured

pytestmark = pytest.mark.slow

# Two epochs of four batches: 3, 3, 3 and 2 of 11 queries, some of whose prompts are kept from the first epoch on.
STEPS = 8
SHORT = (
    *("--data.max_tasks=4", "--batch_size=3", "--epochs=2", "--qwen.every=3", "--solver.capacity=5"),
    *("--output.save_every=1", "--output.keep_last=100", "--output.log_every=1", "--output.validate_every=1"),
)


@pytest.fixture
def whole(launched):
    """Give the run that nothing interrupts."""
    return lambda config, processes, *flags: launched(config, processes, *SHORT, *flags, program="noting")


@pytest.fixture
def resumed(launched):
    """Give the run that continues, perhaps on other processes, after a step that another run has saved."""
    return lambda run, step, config, processes, *flags: launched(
        config, processes, *SHORT, *flags, program="noting", killed_after=(run, step)
    )


def assert_same_to_the_last_bit(run, expected):
    assert {*run.codes, *expected.codes} == {0}, run.err
    assert [record["step"] for record in run.steps()] == list(range(1, STEPS + 1))
    assert without_measured(run.steps()) == without_measured(expected.steps())
    assert without_measured(run.epochs()) == without_measured(expected.epochs())
    (tensors, state), (others, other_state) = run.checkpoint(STEPS), expected.checkpoint(STEPS)
    assert tensors.keys() == others.keys()
    assert {name.partition(".")[0] for name in tensors} == {"weights", "moments", "prompts"}
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []
    assert [name for name, tensor in tensors.items() if tensor.dtype != others[name].dtype] == []
    # The configuration says where the run is.
    for each in (state, other_state):
        each["config"].pop("output.dir")
    assert without_measured(state) == without_measured(other_state)


@pytest.mark.parametrize("step", [2, 4], ids=["amid an epoch", "between epochs"])
@pytest.mark.parametrize("config", ["cpu_2proc", "zero1", "zero2", "zero3"])
def test_on_as_many_processes_it_is_the_same_to_the_last_bit(whole, resumed, config, step):
    expected = whole(config, 2)
    run = resumed(expected, step, config, 2)
    assert_same_to_the_last_bit(run, expected)
    # It did continue, and did nothing twice.
    assert [len(notes) for notes in run.noted()] == [STEPS - step] * 2
    log = (run.folder / "training.log").read_text()
    place = run.folder / "checkpoints" / f"step_{step:08d}"
    assert f"Resumed from {place}: step {step}, epoch {step // 4}, batch {step % 4} of 4." in log
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        f"step_{number:08d}" for number in range(1, STEPS + 1)
    ]
    assert run.processes_left() == []


def test_with_muon_it_is_the_same_on_as_many_processes_and_continues_on_others(whole, resumed):
    muon = ("--optim.matrix_optimizer=muon", "--optim.muon_lr=0.005")
    expected = whole("cpu_2proc", 2, *muon)
    assert_same_to_the_last_bit(resumed(expected, 3, "cpu_2proc", 2, *muon), expected)
    for config, processes in (("cpu", 1), ("zero2", 2)):
        run = resumed(expected, 5, config, processes, *muon)
        assert set(run.codes) == {0}, run.err
        for record, other in zip(run.steps(), expected.steps(), strict=True):
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-3), (config, record["step"])


ELASTIC = {
    "other numbers of processes": [("cpu", 1), ("cpu_2proc", 2), ("cpu", 1), ("cpu_2proc", 3)],
    "other ways to share them": [("cpu_2proc", 2), ("zero2", 2), ("zero3", 2), ("cpu", 1)],
}


@pytest.mark.parametrize("name", ELASTIC)
def test_on_other_processes_it_is_the_same_but_for_rounding(whole, resumed, name):
    (config, processes), *others = ELASTIC[name]
    expected = run = whole(config, processes)
    batches = [note["batch"] for note in expected.noted()[0]]
    assert len(batches) == STEPS
    # Amid the first epoch, between epochs, amid the second.
    for step, (config, processes) in zip((2, 4, 6), others, strict=True):
        run = resumed(run, step, config, processes)
        assert set(run.codes) == {0}, run.err
        notes = run.noted()
        assert len(notes) == processes
        for rank_notes in notes:
            assert [note["batch"] for note in rank_notes] == batches[step:]
        for dealt in zip(*notes, strict=True):
            assert sorted(query for note in dealt for query in note["own"]) == sorted(dealt[0]["batch"])
        assert [record["step"] for record in run.steps()] == list(range(1, STEPS + 1))
        for record, other in zip(run.steps(), expected.steps(), strict=True):
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-4), (step, record["step"])
            assert record["epoch"] == other["epoch"]
        for record, other in zip(run.epochs(), expected.epochs(), strict=True):
            assert record["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4, abs=1e-4)
        state = json.loads((run.folder / "checkpoints" / f"step_{STEPS:08d}" / "state.json").read_text())
        assert state["processes"] == processes
        assert state["prompts"] == expected.checkpoint(STEPS)[1]["prompts"]
    assert run.checkpoint(STEPS)[0].keys() == expected.checkpoint(STEPS)[0].keys()
