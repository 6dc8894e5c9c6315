"""The loop: its cadences, what ends it, and that a resumed run is the run that never ended."""

import logging
import math
import os
import shutil
import signal
import time

import pytest
import torch
from shared.loops import read_metrics, read_steps, signal_in_step, spoil_steps
from shared.measured import without_measured

from arcdist.checkpoint import store
from arcdist.checkpoint.state import gather_moments, gather_weights
from arcdist.checkpoint.store import checkpoints, load_checkpoint, save_checkpoint
from arcdist.distributed import Heartbeat
from arcdist.errors import HealthError, NotFiniteError, SaveError
from arcdist.training.loop import MOST_SKIPPED_STEPS, PREEMPTIONS, Interrupt, Loop
from arcdist.training.loop_state import Cost


@pytest.fixture
def clock(monkeypatch):
    """Set the seconds that the module's clock shows."""
    shown = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: shown[0])
    return lambda seconds: shown.__setitem__(0, seconds)


def test_the_first_ctrl_c_asks_and_the_second_interrupts(clock):
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        clock(101.5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_same_ctrl_c_by_way_of_the_launcher_is_no_second_one(clock):
    # A terminal signals the process and its launcher, which hands its own on.
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        for moment in (100.0, 100.3, 101.0):
            clock(moment)
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        # The second is counted from the first signal, not from its echoes.
        clock(101.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handler_of_before_is_put_back_whatever_ends_the_block():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="broken"), Interrupt():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_batch_systems_and_closed_terminals_send_is_known():
    assert set(PREEMPTIONS) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupt.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", PREEMPTIONS)
def test_a_batch_system_s_signal_preempts_however_often(number, clock):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert (interrupt.requested, interrupt.preempted) == (False, False)
        for moment in (100.0, 105.0):
            clock(moment)
            signal.raise_signal(number)
            assert (interrupt.requested, interrupt.preempted) == (True, True)
    assert signal.getsignal(number) is before


def test_ctrl_c_is_no_preemption():
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert (interrupt.requested, interrupt.preempted) == (True, False)


def test_all_handlers_of_before_are_put_back():
    def mine(_number, _frame):
        pass

    numbers = (signal.SIGINT, *PREEMPTIONS)
    before = {number: signal.signal(number, mine) for number in numbers}
    try:
        with Interrupt():
            assert all(signal.getsignal(number) is not mine for number in numbers)
        assert all(signal.getsignal(number) is mine for number in numbers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def launcher(monkeypatch):
    """Be the one process of `accelerate launch`; what is returned has the launcher end."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return lambda: monkeypatch.setattr(os, "getppid", lambda: 1)


def test_the_end_of_its_launcher_counts_as_the_signal_that_it_did_not_hand_on(launcher):
    with Interrupt() as interrupt:
        assert (interrupt.requested, interrupt.preempted) == (False, False)
        launcher()
        assert (interrupt.requested, interrupt.preempted) == (True, True)


@pytest.mark.parametrize(("name", "value"), [("ACCELERATE_MIXED_PRECISION", None), ("WORLD_SIZE", "2")])
def test_whoever_else_started_the_process_may_end(launcher, monkeypatch, name, value):
    # A shell, say; or torchrun, which hands signals on and ends its processes itself.
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with Interrupt() as interrupt:
        launcher()
        assert (interrupt.requested, interrupt.preempted) == (False, False)


def test_cadence_of_log_lines_checkpoints_and_validations(make_loop, tmp_path):
    loop = make_loop(
        *("--epochs=3", "--max_batches=3", "--log_every=2", "--save_every=4", "--output.validate_every=2"),
    )
    loop.run()
    assert loop.state.step == 9
    assert [(record["step"], record["epoch"]) for record in read_steps(tmp_path)] == [
        (2, 0),
        (4, 1),
        (6, 1),
        (8, 2),
        (9, 2),  # the run's end
    ]
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == [
        "step_00000004",
        "step_00000008",
        "step_00000009",
    ]
    epochs = read_metrics(tmp_path)["epochs"]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    # Every second epoch is validated, and the last one always.
    assert ["val/exact" in record for record in epochs] == [False, True, True]
    assert load_checkpoint(tmp_path / "checkpoints" / "step_00000009").state["step"] == 9


def test_the_last_checkpoints_are_kept(make_loop, tmp_path):
    make_loop("--max_batches=4", "--output.keep_last=2").run()
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == ["step_00000003", "step_00000004"]


def test_a_last_step_that_is_saved_already_is_saved_once(make_loop, tmp_path):
    make_loop("--max_batches=2", "--save_every=2").run()
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == ["step_00000002"]


def test_the_last_checkpoint_is_the_run_s_end_bit_for_bit(make_loop, tmp_path):
    loop = make_loop()
    loop.run()
    snapshot = load_checkpoint(tmp_path / "checkpoints" / "step_00000002")
    weights, state = snapshot.weights, snapshot.state
    expected = gather_weights(loop.session)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert state["memory_gate"] == loop.state.memory_gate.state()


def test_best_is_the_checkpoint_of_the_best_epoch(make_loop, tmp_path):
    make_loop("--epochs=4", "--output.best_metric=val/cell", "--agent_lr=0.03").run()
    metrics = read_metrics(tmp_path)
    cells = [record["val/cell"] for record in metrics["epochs"]]
    best = cells.index(max(cells))
    assert metrics["best"]["metric"] == "val/cell"
    assert metrics["best"]["epoch"] == best
    assert metrics["best"]["val/cell"] == cells[best]
    state = load_checkpoint(tmp_path / "best").state
    assert (state["epoch"], state["batch"], state["step"]) == (best + 1, 0, 2 * (best + 1))


def test_numbers_that_are_not_finite_end_the_run_before_they_do_harm(make_loop, tmp_path):
    loop = make_loop("--epochs=7", "--max_batches=2", "--save_every=1", "--output.keep_last=100")
    spoil_steps(loop.session, range(3, 100), math.nan)
    message = r"loss_not_finite at step 12: agent = nan, the last of 10 such steps in a row\. No such step changed a"
    with pytest.raises(NotFiniteError, match=message) as raised:
        loop.run()
    assert raised.value.exit_code == 5
    # The checkpoint of step 2 is still what the models are.
    root = tmp_path / "checkpoints"
    assert [folder.name for folder in checkpoints(root)] == [f"step_{step:08d}" for step in range(1, 13)]
    expected = gather_weights(loop.session) | gather_moments(loop.session)
    for step in (2, 12):
        snapshot = load_checkpoint(root / f"step_{step:08d}")
        saved = {**snapshot.weights, **snapshot.moments}
        assert expected.keys() == saved.keys()
        assert all(torch.equal(saved[name], expected[name]) for name in expected)
    assert snapshot.state["skipped_in_a_row"] == 0  # so that who resumes there has ten steps again
    assert read_steps(tmp_path)[-1] == {"step": 12, "epoch": 5, "flags": ["loss_not_finite"]}


def test_a_step_that_is_not_finite_is_skipped_logged_and_counted(make_loop, tmp_path, caplog):
    loop = make_loop("--epochs=4", "--max_batches=3")
    # Never ten in a row: nine of them, a good one, one more and a good one.
    spoil_steps(loop.session, (*range(1, 10), 11), math.nan)
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        loop.run()
    assert (loop.state.step, loop.state.skipped, loop.state.skipped_in_a_row) == (12, 10, 0)
    assert [(record["step"], record["skipped_steps"]) for record in read_steps(tmp_path)] == [(10, 9), (12, 10)]
    logged = [record.message for record in caplog.records if "was skipped" in record.message]
    assert logged[0] == "Step 1 was skipped on all processes: agent = nan."
    assert len(logged) == 10
    # The memory's gate and the interval's means know the good steps only.
    moments = load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1]).moments
    assert moments["grid.agent.from_prompt.weight@step"].item() == 2.0


def test_a_loss_that_is_not_finite_is_logged_with_the_rank_it_began_on(make_loop, tmp_path, caplog):
    loop = make_loop("--efe.lambda_risk=1e300", "--max_batches=1")
    with pytest.raises(NotFiniteError), caplog.at_level(logging.WARNING, logger="arcdist"):
        loop.run()
    (logged,) = [record.message for record in caplog.records if "was skipped" in record.message]
    assert logged.startswith("Step 1 was skipped on all processes: loss = inf, ")
    assert logged.endswith(" (from rank 0).")


def test_a_run_in_which_no_step_counted_has_failed(make_loop, tmp_path):
    loop = make_loop("--max_batches=3", "--save_every=100")
    spoil_steps(loop.session, range(1, 100), math.nan)
    with pytest.raises(NotFiniteError, match=r"at step 3: agent = nan, the last of 3 such steps in a row\.") as raised:
        loop.run()
    assert raised.value.exit_code == 5
    assert read_steps(tmp_path) == [{"step": 3, "epoch": 0, "flags": ["loss_not_finite"]}]
    assert checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("flags", [("--qwen.lora_alpha=0",)])
def test_a_group_without_gradient_ends_the_run_after_the_first_step(make_loop, tmp_path, flags):
    loop = make_loop(*flags)
    with pytest.raises(HealthError, match=r"^group_without_gradient: lora\.") as raised:
        loop.run()
    assert raised.value.exit_code == 5
    assert loop.state.step == 1
    assert read_steps(tmp_path) == [{"step": 1, "epoch": 0, "flags": ["group_without_gradient"]}]
    assert not (tmp_path / "checkpoints").exists()


def test_a_first_batch_in_which_all_queries_hide_their_task_is_no_failure(make_loop, tmp_path):
    assert make_loop("--agent.task_vector_dropout=0.9999").run()
    assert {record["flags"] == [] for record in read_steps(tmp_path)} == {True}


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_matrices_of_muon_have_a_gradient_as_soon_as_something_reads_them(make_loop, tmp_path, weight):
    loop = make_loop("--optim.matrix_optimizer=muon", f"--efe.reversibility_weight={weight}")
    assert loop.run()
    first, second = (record["grad_norm/agent_matrices"] for record in read_steps(tmp_path))
    assert (first > 0.0) is (weight > 0.0)
    assert second > 0.0


def test_overflows_of_a_loss_scale_are_skipped_without_a_word_and_have_no_part_in_the_means(
    make_loop, tmp_path, caplog, scale_losses
):
    loop = make_loop("--max_batches=4", "--epochs=1", "--log_every=1")
    scale_losses(loop.session.engines.precision, 1024.0)
    spoil_steps(loop.session, (1, 2), math.inf)
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        loop.run()
    assert caplog.records == []
    assert loop.session.engines.precision.loss_scale == 256.0
    assert loop.state.step == 4
    assert [record["step"] for record in read_steps(tmp_path)] == [3, 4]
    assert read_metrics(tmp_path)["epochs"][0]["train/loss"] is not None


def test_an_epoch_of_overflows_has_no_training_numbers_and_is_validated_all_the_same(make_loop, tmp_path, scale_losses):
    loop = make_loop("--max_batches=2", "--epochs=2")
    scale_losses(loop.session.engines.precision, 1024.0)
    spoil_steps(loop.session, (1, 2), math.inf)
    loop.run()
    bad, good = read_metrics(tmp_path)["epochs"]
    assert bad["train/loss"] is None
    assert good["train/loss"] > 0.0
    assert 0.0 <= bad["val/cell"] <= 1.0


def test_a_loss_scale_that_never_fits_ends_the_run(make_loop, scale_losses):
    loop = make_loop("--max_batches=1000", "--epochs=20")
    scale_losses(loop.session.engines.precision, 1024.0)
    spoil_steps(loop.session, range(1, 1000), math.inf)
    with pytest.raises(NotFiniteError):
        loop.run()
    assert loop.state.step == MOST_SKIPPED_STEPS == 10


def test_the_first_step_that_counts_is_the_one_whose_gradients_are_checked(make_loop, scale_losses):
    loop = make_loop("--qwen.lora_alpha=0", "--max_batches=4")
    scale_losses(loop.session.engines.precision, 1024.0)
    spoil_steps(loop.session, (1,), math.inf)
    with pytest.raises(HealthError, match="lora"):
        loop.run()
    assert loop.state.step == 2


def test_ctrl_c_ends_the_run_with_the_next_step_of_all_processes_and_saves_it(make_loop, tmp_path):
    loop = make_loop("--max_batches=5", "--save_every=100")
    signal_in_step(loop, 1, signal.SIGINT)  # which step 2 passes to every process
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    (folder,) = checkpoints(tmp_path / "checkpoints")
    snapshot = load_checkpoint(folder)
    weights, moments, state = snapshot.weights, snapshot.moments, snapshot.state
    assert folder.name == "step_00000002"
    assert (state["step"], state["epoch"]) == (2, 0)
    expected = gather_weights(loop.session)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert moments["grid.agent.from_prompt.weight@step"].item() == 2.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Two epochs of four steps. Answers and rewards change, the memory overflows, dropout draws, a line spans two steps.
LIVELY = (
    *("--epochs=2", "--max_batches=4", "--log_every=3", "--save_every=1", "--output.keep_last=100"),
    *("--agent_lr=0.01", "--qwen_lr=0.003", "--optim.warmup_steps=2", "--refiner.rl_delta_scale=200"),
    *("--solver.capacity=5", "--curriculum.memory_gate=0.5", "--qwen.lora_dropout=0.2"),
)
STEPS = 8


def assert_same_checkpoint(folder, expected):
    snapshot, other = load_checkpoint(folder), load_checkpoint(expected)
    for part in ("weights", "moments", "prompts"):
        tensors, others = getattr(snapshot, part), getattr(other, part)
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == others[name].dtype
            assert torch.equal(tensor, others[name]), f"{folder.name}: {name}"
    assert without_measured(snapshot.state) == without_measured(other.state)


def assert_same_run(folder, expected):
    """Two runs have left the same numbers, to the last bit."""
    assert without_measured(read_steps(folder)) == without_measured(read_steps(expected))
    assert without_measured(read_metrics(folder)) == without_measured(read_metrics(expected))
    steps = [[path.name for path in checkpoints(run / "checkpoints")] for run in (folder, expected)]
    assert steps[0] == steps[1]
    for name in (*(f"checkpoints/{name}" for name in steps[0]), "best"):
        assert_same_checkpoint(folder / name, expected / name)


@pytest.fixture
def whole_run(undrawn, build_tiny, tmp_path):
    """Make a run of `LIVELY` steps in one go, and give what resumes it in other folders.

    `prepare` is given each session and the number of steps that are behind it.
    """

    def loop_in(folder, flags, prepare, behind):
        session = build_tiny(*LIVELY, *flags)
        prepare(session, behind)
        return Loop(session, folder, Heartbeat(folder, 0))

    def make(*flags, prepare=lambda session, behind: None):
        whole = tmp_path / "whole"
        whole.mkdir()
        assert loop_in(whole, flags, prepare, 0).run()

        def resume(step, source=whole):
            """What a run leaves that is killed later than after this step, and continues from there to its end."""
            folder = tmp_path / f"{source.name}_{step}"
            shutil.copytree(source, folder)
            for checkpoint in checkpoints(folder / "checkpoints")[step:]:
                shutil.rmtree(checkpoint)
            loop = loop_in(folder, flags, prepare, step)
            loop.resume(load_checkpoint(checkpoints(folder / "checkpoints")[-1]))
            assert (loop.state.step, loop.state.epoch, loop.state.batch) == (step, step // 4, step % 4)
            assert loop.run()
            return folder

        return whole, resume

    return make


@pytest.fixture
def pace(monkeypatch):
    """Have each step and each validation take ten seconds; what is returned sets how many are over."""
    taken = [0]

    def seconds(_cost):
        taken[0] += 1
        return 10.0 * (taken[0] - 1)

    monkeypatch.setattr(Cost, "seconds", property(seconds))
    return lambda number: taken.__setitem__(0, number)


BUDGET = ("--max_batches=4", "--log_every=1", "--save_every=1", "--output.keep_last=100", "--optim.warmup_steps=2")


@pytest.fixture
def timed(build_tiny, tmp_path, undrawn):
    """Make a loop of `BUDGET` with a number of minutes in a folder, with another run's checkpoints up to a step."""

    def make(name, minutes, *flags, source=None, step=0):
        folder = tmp_path / name
        if source is None:
            folder.mkdir()
        else:
            shutil.copytree(source, folder)
            for checkpoint in checkpoints(folder / "checkpoints"):
                if int(checkpoint.name.removeprefix("step_")) > step:
                    shutil.rmtree(checkpoint)
        loop = Loop(build_tiny(*BUDGET, f"--budget_minutes={minutes}", *flags), folder, Heartbeat(folder, 0))
        if source is not None:
            loop.resume(load_checkpoint(checkpoints(folder / "checkpoints")[-1]))
        return loop

    return make


def test_a_budget_ends_the_run_amid_an_epoch_which_is_validated(timed, pace):
    loop = timed("whole", 2, "--agent_lr=1")
    assert loop.run()
    # Two epochs of four steps and a validation each, then the steps that begin after 100, 110 and 120 seconds.
    steps, epochs = read_steps(loop.folder), read_metrics(loop.folder)["epochs"]
    assert [(record["step"], record["epoch"]) for record in steps] == [
        *((step, 0) for step in range(1, 5)),
        *((step, 1) for step in range(5, 9)),
        *((step, 2) for step in range(9, 12)),
    ]
    assert [(record["step"], "val/exact" in record) for record in epochs] == [(4, True), (8, True), (11, True)]
    shares = [0.5 + 0.5 * math.cos(math.pi * used / 12) for used in (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12)]
    assert [record["lr/agent"] for record in steps] == pytest.approx([*shares[:-1], 0.0], abs=1e-12)
    assert (loop.state.step, loop.state.epoch, loop.state.batch, loop.state.is_complete) == (11, 3, 0, True)


def test_a_validation_that_uses_the_rest_of_the_time_is_the_last(timed, pace):
    loop = timed("whole", 1.5, "--log_every=3")
    assert loop.run()
    assert [record["step"] for record in read_metrics(loop.folder)["epochs"]] == [4, 8]
    assert [record["step"] for record in read_steps(loop.folder)] == [3, 6, 8]
    assert loop.state.step == 8


def test_an_epoch_that_is_not_validated_does_not_end_a_run(timed, pace):
    loop = timed("whole", 1, "--output.validate_every=3")
    assert loop.run()
    epochs = read_metrics(loop.folder)["epochs"]
    assert [(record["step"], "val/exact" in record) for record in epochs] == [(4, False), (7, True)]


def test_a_run_with_a_budget_has_the_rest_of_its_time_when_it_is_resumed(timed, pace):
    whole = timed("whole", 2)
    whole.run()
    for step, taken in ((3, 3), (6, 7), (10, 12)):
        loop = timed(f"from_{step}", 2, source=whole.folder, step=step)
        pace(taken)
        assert loop.session.engines.learning_rates()["agent"] == read_steps(whole.folder)[step - 1]["lr/agent"]
        assert loop.run()
        assert_same_run(loop.folder, whole.folder)


def test_one_that_is_interrupted_when_its_time_is_used_has_its_validation_before_it(timed, pace):
    whole = timed("whole", 2)
    whole.run()
    loop = timed("resumed", 2, source=whole.folder, step=10)
    pace(12)
    signal_in_step(loop, 1, signal.SIGTERM)
    assert not loop.run()
    assert (loop.state.step, loop.state.batch, loop.state.is_complete) == (11, 3, False)
    loop = timed("again", 2, source=loop.folder, step=11)
    assert loop.run()
    assert loop.state.step == 11
    for read in (read_steps, read_metrics):
        assert without_measured(read(loop.folder)) == without_measured(read(whole.folder))


def test_a_run_whose_time_is_used_is_complete_until_it_is_given_more(timed, pace):
    whole = timed("whole", 2)
    whole.run()
    left = files_of(whole.folder)
    loop = timed("again", 2, source=whole.folder, step=11)
    assert loop.state.is_complete
    assert loop.run()
    assert files_of(loop.folder) == left
    loop = timed("longer", 2.5, source=whole.folder, step=11)
    pace(14)
    assert loop.run()
    # A new epoch begins: the steps after 140 and 150 seconds.
    assert [record["step"] for record in read_metrics(loop.folder)["epochs"]] == [4, 8, 11, 13]
    # As many steps as epochs have, of which one was cut short.
    loop = timed("by_epochs", "null", "--epochs=4", source=whole.folder, step=11)
    assert loop.run()
    assert [record["step"] for record in read_metrics(loop.folder)["epochs"]] == [4, 8, 11, 15, 16]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# One step into an epoch, in its middle, at its end (whose numbers and validation are done), one after it.
@pytest.mark.parametrize(
    ("every", "optimizer", "places"),
    [
        (1, "adamw", (1, 4)),
        pytest.param(1, "adamw", (2, 5), marks=pytest.mark.slow),
        (2, "adamw", (3,)),
        (3, "muon", (2,)),
    ],
)
def test_a_run_that_is_resumed_anywhere_is_the_run_that_never_ended(whole_run, every, optimizer, places):
    whole, resume = whole_run(f"--qwen.every={every}", f"--optim.matrix_optimizer={optimizer}")
    assert len({record["reward/mean"] for record in read_steps(whole)}) > 1
    assert bool(load_checkpoint(whole / "best").prompts) is (every > 1)
    for step in places:
        assert_same_run(resume(step), whole)


@pytest.mark.slow
def test_a_run_may_be_resumed_twice_in_an_epoch_and_once_more_in_the_next(whole_run):
    whole, resume = whole_run("--qwen.every=2")
    once = resume(1)
    twice = resume(3, source=once)
    thrice = resume(6, source=twice)
    for folder in (once, twice, thrice):
        assert_same_run(folder, whole)


def test_steps_that_are_skipped_stay_skipped_and_counted(whole_run):
    spoiled = (1, 3, 4, 6)

    def prepare(session, behind):
        spoil_steps(session, [step - behind for step in spoiled if step > behind], math.nan)

    whole, resume = whole_run(prepare=prepare)
    assert load_checkpoint(checkpoints(whole / "checkpoints")[-1]).state["skipped"] == len(spoiled)
    for step in (1, 3):
        assert_same_run(resume(step), whole)


@pytest.mark.slow
def test_a_loss_scale_continues_where_it_was(whole_run, scale_losses):
    def prepare(session, behind):
        scale_losses(session.engines.precision, 1024.0)  # what a new run begins with, whatever the old one had come to
        spoil_steps(session, [step - behind for step in (2, 6) if step > behind], math.inf)

    whole, resume = whole_run(prepare=prepare)
    assert load_checkpoint(checkpoints(whole / "checkpoints")[-1]).state["loss_scale"]["scale"] == 256.0
    for step in (3, 6):
        assert_same_run(resume(step), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--agent.ema_decay=0", "--agent.kind=conv"),
        ("--train.accumulation=2",),
        ("--refiner.draws=3", "--agent.task_vector_dropout=0.5", "--refiner.alone_share=0.5", "--agent.dropout=0.2"),
    ],
)
def test_so_does_a_run_of_another_kind(whole_run, flags):
    whole, resume = whole_run(*flags)
    assert_same_run(resume(3), whole)


def test_a_finished_run_that_is_resumed_has_nothing_to_do(whole_run):
    whole, resume = whole_run()
    before = files_of(whole)
    assert files_of(resume(STEPS)) == before


def test_a_finished_run_can_be_given_more_epochs(undrawn, make_loop, tmp_path):
    assert make_loop("--epochs=1").run()
    longer = make_loop("--epochs=3")
    longer.resume(load_checkpoint(tmp_path / "checkpoints" / "step_00000002"))
    assert longer.run()
    assert (longer.state.step, longer.state.epoch) == (6, 3)
    assert [record["epoch"] for record in read_metrics(tmp_path)["epochs"]] == [0, 1, 2]
    assert [record["step"] for record in read_steps(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_batch_system_s_signal_saves_the_step_and_the_run_continues_from_there(undrawn, build_tiny, tmp_path, caplog):
    whole, part = tmp_path / "whole", tmp_path / "part"
    flags = (*LIVELY, "--save_every=100")
    for folder in (whole, part):
        folder.mkdir()
    Loop(build_tiny(*flags), whole, Heartbeat(whole, 0)).run()

    loop = Loop(build_tiny(*flags), part, Heartbeat(part, 0))
    signal_in_step(loop, 2, signal.SIGTERM)  # which step 3 passes to every process
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        assert loop.run() is False
    saved = part / "checkpoints" / "step_00000003"
    assert checkpoints(part / "checkpoints") == [saved]
    (logged,) = [record.getMessage() for record in caplog.records if "make room" in record.getMessage()]
    assert logged == f"Asked to make room: step 3 is saved in {saved}. Continue with --resume."

    again = Loop(build_tiny(*flags), part, Heartbeat(part, 0))
    again.resume(load_checkpoint(saved))
    assert again.run() is True
    shutil.rmtree(saved)
    assert_same_run(part, whole)


@pytest.mark.parametrize("on_save_error", ["continue", "stop"])
def test_a_checkpoint_that_cannot_be_written_is_reported_and_training_continues_or_ends(
    undrawn, make_loop, tmp_path, caplog, monkeypatch, on_save_error
):
    loop = make_loop(*LIVELY, f"--output.on_save_error={on_save_error}")

    def refuse_some(folder, snapshot):
        if snapshot.state["step"] == 2:
            raise SaveError("The disk is full.")
        save_checkpoint(folder, snapshot)

    monkeypatch.setattr(store, "save_checkpoint", refuse_some)
    with caplog.at_level(logging.ERROR, logger="arcdist"):
        if on_save_error == "continue":
            assert loop.run()
        else:
            with pytest.raises(SaveError, match=r"^The disk is full\.$") as raised:
                loop.run()
            assert raised.value.exit_code == 7
    logged = [record.getMessage() for record in caplog.records]
    saved = [int(folder.name.removeprefix("step_")) for folder in checkpoints(tmp_path / "checkpoints")]
    if on_save_error == "continue":
        assert saved == [1, 3, 4, 5, 6, 7, 8]
        assert logged == ["NOT SAVED: The disk is full. Training continues."]
    else:
        # All processes learn of it with step 3 or, where it was still being written then, with step 4.
        assert set(saved) <= {1, 3}
        assert logged == ["NOT SAVED: The disk is full."]


def test_a_run_does_not_end_well_without_its_last_checkpoint(undrawn, make_loop, tmp_path, monkeypatch):
    loop = make_loop("--save_every=100")

    def refuse(folder, snapshot):
        raise SaveError("The disk is full.")

    monkeypatch.setattr(store, "save_checkpoint", refuse)
    with pytest.raises(SaveError, match="The disk is full"):
        loop.run()
    assert loop.state.step == 2
