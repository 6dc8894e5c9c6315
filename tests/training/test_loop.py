import json
import logging
import math
import signal

import pytest
import torch

from arcdist.distributed import Heartbeat
from arcdist.errors import HealthError, NotFiniteError
from arcdist.evaluation import Answerer, score
from arcdist.training.checkpoint import checkpoints, load_checkpoint
from arcdist.training.loop import MOST_SKIPPED_STEPS, Loop
from arcdist.training.state import gather_moments, gather_weights


@pytest.fixture
def make_loop(build_tiny, tmp_path):
    """A loop on a tiny session, ready to run in the test's folder."""
    return lambda *flags: Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0))


def read_steps(folder):
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_cadence_of_log_lines_checkpoints_and_validations(make_loop, tmp_path):
    loop = make_loop(
        *("--epochs=3", "--max_batches=3", "--log_every=2", "--save_every=4", "--output.validate_every=2"),
    )
    loop.run()
    assert loop.step == 9
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
    assert load_checkpoint(tmp_path / "checkpoints" / "step_00000009")[2]["step"] == 9


def test_the_last_checkpoints_are_kept(make_loop, tmp_path):
    make_loop("--max_batches=4", "--output.keep_last=2").run()
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == ["step_00000003", "step_00000004"]


def test_a_last_step_that_is_saved_already_is_saved_once(make_loop, tmp_path):
    make_loop("--max_batches=2", "--save_every=2").run()
    assert [folder.name for folder in checkpoints(tmp_path / "checkpoints")] == ["step_00000002"]


def test_the_last_checkpoint_is_the_run_s_end_bit_for_bit(make_loop, tmp_path):
    loop = make_loop()
    loop.run()
    weights, _, state = load_checkpoint(tmp_path / "checkpoints" / "step_00000002")
    expected = gather_weights(loop.session)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert state["memory_gate"] == loop.memory_gate.state_dict()


def test_best_is_the_checkpoint_of_the_best_epoch(make_loop, tmp_path):
    make_loop("--epochs=4", "--output.best_metric=val/cell", "--agent_lr=0.03").run()
    metrics = read_metrics(tmp_path)
    cells = [record["val/cell"] for record in metrics["epochs"]]
    best = cells.index(max(cells))
    assert metrics["best"]["metric"] == "val/cell"
    assert metrics["best"]["epoch"] == best
    assert metrics["best"]["val/cell"] == cells[best]
    state = load_checkpoint(tmp_path / "best")[2]
    assert (state["epoch"], state["step"]) == (best, 2 * (best + 1))


def test_an_epoch_s_scores_are_those_of_the_models_it_ends_with(make_loop, tmp_path):
    loop = make_loop()
    loop.run()
    (record,) = read_metrics(tmp_path)["epochs"]
    models = loop.session.models
    answerer = Answerer(
        read=models.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )
    batches = loop.session.validation.loader(0, loop.session.device)
    expected = score(answerer, ((batch.queries[0], True) for batch in batches))
    assert {name: record[name] for name in expected} == expected
    assert set(expected) == {
        *("val/exact", "val/cell", "val/size", "val/accuracy_delta", "floor/copy_exact", "floor/copy_cell"),
    }
    for name, value in expected.items():
        assert (-1.0 if name == "val/accuracy_delta" else 0.0) <= value <= 1.0


def test_logged_numbers_are_means_over_the_steps_since_the_last_line(make_loop, tmp_path, build_tiny):
    make_loop("--log_every=1", "--max_batches=4").run()
    single = read_steps(tmp_path)
    folder = tmp_path / "pairs"
    folder.mkdir()
    Loop(build_tiny("--log_every=2", "--max_batches=4"), folder, Heartbeat(folder, 0)).run()
    for index, record in enumerate(read_steps(folder)):
        first, second = single[2 * index : 2 * index + 2]
        for name in ("loss", "efe/total", "reward/mean", "mask_ratio", "grad_norm/agent", "grad_norm/refiner"):
            # Norms of several groups are joined after the means were taken.
            tolerance = 0.05 if name == "grad_norm/agent" else 1e-6
            assert record[name] == pytest.approx((first[name] + second[name]) / 2, rel=tolerance, abs=1e-9), name
        assert record["memory_threshold"] == second["memory_threshold"]


def test_curriculum_and_gate_move_with_the_steps(make_loop, tmp_path):
    loop = make_loop(
        *("--epochs=3", "--max_batches=2", "--curriculum.size_warmup_epochs=2", "--curriculum.memory_gate=2.0"),
        *("--curriculum.memory_threshold_start=0.5", "--curriculum.memory_threshold_alpha=0.25"),
    )
    loop.run()
    steps = read_steps(tmp_path)
    # From 1.0 to 0.5 over two epochs of two steps; a line tells where the curriculum has come to.
    assert [record["size_weight"] for record in steps] == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.5, 0.5])
    average = 0.5
    for record in steps:
        average += 0.25 * (record["train/cell"] - average)
        assert record["memory_threshold"] == pytest.approx(2.0 * average)


def spoil_steps(session, steps, value):
    """In these steps, counted from 1, a gradient of the agent's is not finite."""
    calls = []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * value if len(calls) in steps else gradient

    return session.models.agent.from_prompt.weight.register_hook(spoil)


def test_numbers_that_are_not_finite_end_the_run_before_they_do_harm(make_loop, tmp_path):
    loop = make_loop("--epochs=7", "--max_batches=2", "--save_every=1", "--output.keep_last=100")
    spoil_steps(loop.session, range(3, 100), math.nan)
    message = r"loss_not_finite at step 12: agent = nan, the last of 10 such steps in a row\. No such step changed a"
    with pytest.raises(NotFiniteError, match=message) as raised:
        loop.run()
    assert raised.value.exit_code == 5
    # The checkpoint of step 2 is still what the models are.
    root = tmp_path / "checkpoints"
    assert [folder.name for folder in checkpoints(root)] == [f"step_{step:08d}" for step in range(1, 12)]
    weights, moments, _ = load_checkpoint(root / "step_00000002")
    expected = gather_weights(loop.session) | gather_moments(loop.session)
    assert expected.keys() == weights.keys() | moments.keys()
    assert all(torch.equal((weights | moments)[name], expected[name]) for name in expected)
    assert read_steps(tmp_path)[-1] == {"step": 12, "epoch": 5, "flags": ["loss_not_finite"]}


def test_a_step_that_is_not_finite_is_skipped_told_and_counted(make_loop, tmp_path, caplog):
    loop = make_loop("--epochs=4", "--max_batches=3")
    # Never ten in a row: nine of them, a good one, one more and a good one.
    spoil_steps(loop.session, (*range(1, 10), 11), math.nan)
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        loop.run()
    assert (loop.step, loop.skipped, loop.skipped_in_a_row) == (12, 10, 0)
    assert [(record["step"], record["skipped_steps"]) for record in read_steps(tmp_path)] == [(10, 9), (12, 10)]
    told = [record.message for record in caplog.records if "was skipped" in record.message]
    assert told[0] == "Step 1 was skipped on all processes: agent = nan."
    assert len(told) == 10
    # The memory's gate and the interval's means know the good steps only.
    assert loop.since_epoch.steps == 2
    moments = load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])[1]
    assert moments["grid.agent.from_prompt.weight@step"].item() == 2.0


def test_a_loss_that_is_not_finite_is_told_with_the_rank_it_began_on(make_loop, tmp_path, caplog):
    loop = make_loop("--efe.lambda_risk=1e300", "--max_batches=1")
    with pytest.raises(NotFiniteError), caplog.at_level(logging.WARNING, logger="arcdist"):
        loop.run()
    (told,) = [record.message for record in caplog.records if "was skipped" in record.message]
    assert told.startswith("Step 1 was skipped on all processes: loss = inf, ")
    assert told.endswith(" (from rank 0).")


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
    assert loop.step == 1
    assert read_steps(tmp_path) == [{"step": 1, "epoch": 0, "flags": ["group_without_gradient"]}]
    assert not (tmp_path / "checkpoints").exists()


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
    assert loop.step == 4
    assert [record["step"] for record in read_steps(tmp_path)] == [3, 4]
    assert loop.since_epoch.steps == 2
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
    assert loop.step == MOST_SKIPPED_STEPS == 10


def test_the_first_step_that_counts_is_the_one_whose_gradients_are_checked(make_loop, scale_losses):
    loop = make_loop("--qwen.lora_alpha=0", "--max_batches=4")
    scale_losses(loop.session.engines.precision, 1024.0)
    spoil_steps(loop.session, (1,), math.inf)
    with pytest.raises(HealthError, match="lora"):
        loop.run()
    assert loop.step == 2


def test_ctrl_c_ends_the_run_with_the_next_step_of_all_processes_and_saves_it(make_loop, tmp_path):
    loop = make_loop("--max_batches=5", "--save_every=100")
    calls = []

    def interrupt(gradient):
        calls.append(gradient)
        if len(calls) == 1:  # in the middle of step 1: what step 2 tells every process
            signal.raise_signal(signal.SIGINT)

    loop.session.models.agent.from_prompt.weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    (folder,) = checkpoints(tmp_path / "checkpoints")
    weights, moments, state = load_checkpoint(folder)
    assert folder.name == "step_00000002"
    assert (state["step"], state["epoch"]) == (2, 0)
    expected = gather_weights(loop.session)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert moments["grid.agent.from_prompt.weight@step"].item() == 2.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
