"""What goes wrong on one process, and what a user does wrong: all processes end alike, and one of them tells."""

import json
import re

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow

# From the tenth step on, every step is bad.
POISON = {1: ("features", 1), 3: ("qwen", 1), 5: ("grid", 1), 7: ("refiner", 0)} | dict.fromkeys(
    range(9, 30), ("features", 1)
)
GOOD = [1, 3, 5, 7, 9]


@pytest.fixture(scope="session")
def poisoned(launched):
    def launch(config, processes):
        flags = ("--output.save_every=1", "--output.keep_last=100", "--curriculum.memory_gate=0")
        return launched(config, processes, *flags, program="poisoned", environment=(("POISON", json.dumps(POISON)),))

    return launch


@pytest.mark.parametrize("config", ["cpu_2proc", "zero1", "zero2", "zero2_offload", "zero3"])
def test_nan_on_one_process_is_a_step_that_none_makes(poisoned, config):
    run = poisoned(config, 2)
    assert [(record["step"], record["skipped_steps"]) for record in run.steps() if "loss" in record] == [
        (step, step // 2) for step in GOOD
    ]
    checkpoints = {step: run.checkpoint(step) for step in range(1, 19)}
    for step in range(2, 19):
        (before, state_before), (after, state) = checkpoints[step - 1], checkpoints[step]
        same = {
            name
            for name in before.keys() & after.keys()
            if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
        }
        if step in GOOD:
            moved = before.keys() - same
            for part in ("qwen.body", "qwen.control_mlp", "grid.agent", "grid.efe", "refiner.trunk", "averaged_agent"):
                assert any(name.startswith(f"weights.{part}") for name in moved), part
            assert "weights.grid.solver.memory.keys" in moved
        else:
            assert same == before.keys() == after.keys()
            assert state["memory_gate"] == state_before["memory_gate"]
    log = (run.folder / "training.log").read_text()
    assert log.count("was skipped on all processes: ") == len(range(2, 9, 2)) + 9
    assert "Step 2 was skipped on all processes: loss = nan" in log
    assert "(from rank 1)." in log
    for step, group in ((4, "lora"), (6, "agent"), (8, "refiner")):
        line = next(line for line in log.splitlines() if f"Step {step} was skipped" in line)
        assert f"{group} = nan" in line
        assert "loss" not in line


@pytest.mark.parametrize("config", ["cpu_2proc", "zero1", "zero2", "zero2_offload", "zero3"])
def test_ten_such_steps_in_a_row_end_the_run(poisoned, config):
    run = poisoned(config, 2)
    assert run.codes == [5, 5]
    (message,) = run.messages
    assert message.startswith("loss_not_finite at step 19: loss = nan")
    assert re.search(r"\b10\w* .*in a row", message)
    assert run.steps()[-1] == {"step": 19, "epoch": 3, "flags": ["loss_not_finite"]}
    assert run.processes_left() == []


@pytest.mark.parametrize("config", ["cpu_2proc", "zero1", "zero2", "zero2_offload", "zero3"])
def test_the_run_goes_on_after_such_a_step_as_a_single_process_does(poisoned, config):
    run, single = poisoned(config, 2), poisoned("cpu", 1)
    last = GOOD[-1]
    for name, value in single.checkpoint(last)[0].items():
        torch.testing.assert_close(run.checkpoint(last)[0][name], value, rtol=0, atol=1e-4, msg=name)
    for record, other in zip(run.steps()[:-1], single.steps()[:-1], strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize(("config", "engine"), [("cpu_2proc", "grid"), ("zero2", "qwen")])
def test_an_exception_on_one_process_ends_all_within_seconds(launched, config, engine):
    run = launched(config, 2, program="failing", own_launcher=True, environment=(("FAILS", engine),))
    failed_at = float((run.notes / "failed_at").read_text())
    assert run.ended - failed_at < 10.0
    assert run.processes_left() == []
    assert run.codes == [1]
    assert run.root_cause == (1, 1)
    assert run.messages == ["rank 1 of 2 failed: RuntimeError: boom"]
    story = run.err.partition("train.py: ")[2]
    assert story.splitlines()[1] == "Traceback (most recent call last):"
    assert story.count('raise RuntimeError("boom")') == 1
    assert run.err.count("boom") == 3  # in that message, in the line of source, and as the traceback's last line
    assert "Rank 1 failed: RuntimeError: boom" in (run.folder / "training.log").read_text()
    assert run.steps()[-1]["step"] == 2


@pytest.mark.parametrize(("config", "processes"), [("cpu_2proc", 3)])
def test_a_replica_that_drifts_is_named_at_the_next_check(launched, config, processes):
    run = launched(config, processes, "--distributed.replica_check_every=2", program="drifting")
    assert run.codes == [6, 6, 6]
    (message,) = run.messages
    assert message.startswith(
        "After step 4 the processes no longer hold the same parameters: rank 1's agent differs from the others' ("
    )
    assert "; rank 1's averaged_agent differs from the others' (" in message
    assert message.count(" differs from ") == 2
    assert [record["step"] for record in run.steps()] == [1, 2, 3, 4]
    assert run.processes_left() == []


@pytest.fixture
def missing_deepspeed_file(tmp_path):
    """A launcher file whose DeepSpeed file does not exist."""
    content = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": "ds_configs/zero4.json"},
        "num_machines": 1,
        "num_processes": 2,
        "main_process_port": 0,
    }
    file = tmp_path / "zero4.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


MISTAKES = {
    "batch": (["--batch_size=1"], 2, "train.batch_size is 1, less than 2 processes x train.accumulation = 1 passes"),
    "flag": (["--epoch=3"], 2, "There is no flag --epoch. Did you mean --epochs?"),
    "tasks": (["--data.source=missing"], 2, "missing"),
    "precision": (["--train.precision=fp16"], 3, "--train.precision fp16 needs a CUDA GPU, and the device is cpu"),
}


def assert_reported_once(run, problem):
    (message,) = run.messages
    assert problem in message
    assert not message.startswith("rank")
    assert not run.folder.exists()


def test_a_process_that_would_train_something_else_is_named(launched):
    run = launched("cpu_2proc", 2, program="differing", own_launcher=True)
    assert run.codes == [1]
    assert run.root_cause == (1, 2)
    (message,) = run.messages
    assert message.startswith("rank 1 of 2: This process, on ")
    assert "would not train what rank 0 trains: train.seed is 7, there 0. Start every machine with the same" in message
    assert run.processes_left() == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_once_by_rank_0(launched, name):
    flags, code, problem = MISTAKES[name]
    run = launched("cpu_2proc", 2, *flags)
    assert run.codes == [code, code]
    assert_reported_once(run, problem)
    assert "Traceback" not in run.err


def test_a_missing_deepspeed_file_is_reported_once_and_ends_the_launcher(launched, missing_deepspeed_file):
    run = launched(missing_deepspeed_file, 2, own_launcher=True)
    assert run.codes == [1]
    assert run.root_cause[1] == 2
    assert_reported_once(run, "deepspeed_config_file is ds_configs/zero4.json, and there is no such file")
    assert run.err.count("Traceback") == 1  # the launcher's own, about its processes' end
