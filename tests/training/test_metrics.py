"""The numbers that a run leaves, on disk and in what shows them."""

import signal

import pytest
from shared.loops import read_metrics, read_steps, signal_in_step

from arcdist.checkpoint.store import load_checkpoint
from arcdist.distributed import Heartbeat
from arcdist.evaluation import Predictor, score
from arcdist.tracking import Mirrors
from arcdist.tracking.metrics import read_validations
from arcdist.training.loop import Loop


def test_an_epoch_s_scores_are_those_of_the_models_it_ends_with(make_loop, tmp_path):
    loop = make_loop()
    loop.run()
    (record,) = read_metrics(tmp_path)["epochs"]
    models = loop.session.models
    predictor = Predictor(
        read=models.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )
    batches = loop.session.validation.loader(0, loop.session.device)
    expected = score(predictor, ((batch.queries[0], True) for batch in batches))
    assert {name: record[name] for name in expected} == expected
    assert set(expected) == {
        *("val/exact", "val/cell", "val/size", "val/accuracy_delta", "floor/copy_exact", "floor/copy_cell"),
    }
    for name, value in expected.items():
        assert (-1.0 if name == "val/accuracy_delta" else 0.0) <= value <= 1.0


def test_a_validation_s_results_are_its_scores(undrawn, make_loop, tmp_path):
    make_loop("--data.max_tasks=9", "--data.max_side=8").run()
    (validation,), (record,) = read_validations(tmp_path), read_metrics(tmp_path)["epochs"]
    results = validation.results.values()
    for name in ("exact", "cell"):
        assert sum(getattr(result, name) for result in results) / len(results) == pytest.approx(record[f"val/{name}"])
    assert len(validation.shown) == min(16, len(results))


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


def test_an_epoch_holds_every_metric_of_its_steps(make_loop, tmp_path):
    make_loop("--log_every=1", "--max_batches=1").run()
    (step,), (epoch,) = read_steps(tmp_path), read_metrics(tmp_path)["epochs"]
    of_lines = {"loss", "size_weight", "memory_threshold", "skipped_steps", "flags"}
    names = {name for name in step.keys() - of_lines if not name.startswith(("grad_norm/", "lr/", "time/"))}
    assert {name: epoch[name] for name in names} == {name: step[name] for name in names}
    assert epoch["train/loss"] == step["loss"]
    assert {"size_loss", "solver_loss", "reversibility_loss", "mask_ratio", "solver/confidence", "imbalance"} <= names


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


class Seen(Mirrors):
    """Mirrors that keep what they are given."""

    def __init__(self):
        super().__init__(())
        self.calls = []

    def catch_up(self, steps, epochs, validations):
        self.calls.append(("caught up", steps, epochs, validations()))

    def __bool__(self):
        return True

    def log_step(self, record, *, ends_epoch):
        self.calls.append(("step", record, ends_epoch))

    def log_epoch(self, step, record, validation, plot):
        self.calls.append(("epoch", step, record, validation, plot))

    def log_best(self, folder):
        self.calls.append(("best", load_checkpoint(folder).state["step"]))

    def of(self, kind):
        return [call[1:] for call in self.calls if call[0] == kind]


def test_mirrors_are_given_what_the_folder_is_given(undrawn, make_loop, tmp_path):
    loop, seen = (
        make_loop("--epochs=2", "--output.validate_every=2", "--log_every=1", "--tracking.upload_best=true"),
        Seen(),
    )
    loop.run(seen)
    assert [kind for kind, *_ in seen.calls] == ["caught up", "step", "step", "epoch", "step", "step", "epoch", "best"]
    assert seen.of("caught up") == [([], [], ())]
    assert [record for record, _ in seen.of("step")] == read_steps(tmp_path)
    assert [ends for _, ends in seen.of("step")] == [False, True, False, True]
    assert [record for _, record, _, _ in seen.of("epoch")] == read_metrics(tmp_path)["epochs"]
    (first, _, unvalidated, plot), (second, _, validation, _) = seen.of("epoch")
    assert (first, second, unvalidated) == (2, 4, None)
    assert plot == tmp_path / "metrics_plot.png"
    assert (validation,) == read_validations(tmp_path)
    assert seen.of("best") == [(4,)]


def test_mirrors_of_a_resumed_run_are_given_what_was_before(undrawn, build_tiny, tmp_path):
    flags = ("--epochs=3", "--log_every=1")
    Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0)).run()
    loop, seen = Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0)), Seen()
    before, epochs, validations = read_steps(tmp_path), read_metrics(tmp_path)["epochs"], read_validations(tmp_path)
    loop.resume(load_checkpoint(tmp_path / "checkpoints" / "step_00000004"))
    loop.run(seen)
    assert seen.of("caught up") == [(before[:4], epochs[:2], validations[:2])]
    assert [record["step"] for record, _ in seen.of("step")] == [5, 6]


def test_an_epoch_that_was_stopped_at_its_end_is_shown_with_its_last_step(undrawn, build_tiny, tmp_path):
    flags = ("--epochs=2", "--log_every=1")
    stopped, first = Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0)), Seen()
    signal_in_step(stopped, 2, signal.SIGTERM)
    assert not stopped.run(first)
    assert (stopped.state.step, stopped.state.epoch, stopped.state.batch) == (2, 0, 2)
    assert first.of("epoch") == []  # whose validation is left to whoever resumes it
    loop, seen = Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0)), Seen()
    loop.resume(load_checkpoint(tmp_path / "checkpoints" / "step_00000002"))
    assert loop.run(seen)
    (steps, epochs, _) = seen.of("caught up")[0]
    assert ([record["step"] for record in steps], epochs) == ([1], [])
    assert [(record["step"], ends) for record, ends in seen.of("step")] == [(2, True), (3, False), (4, True)]
    assert [step for step, *_ in seen.of("epoch")] == [2, 4]
    assert [record["step"] for record in read_metrics(tmp_path)["epochs"]] == [2, 4]


def test_time_that_a_run_took_continues_where_it_is_resumed(undrawn, build_tiny, tmp_path):
    Loop(build_tiny("--log_every=1"), tmp_path, Heartbeat(tmp_path, 0)).run()
    snapshot = load_checkpoint(tmp_path / "checkpoints" / "step_00000001")
    snapshot.state["cost"] = {"seconds": 1000.0, "device_seconds": 3600.0, "tracking": 0.0}
    loop = Loop(build_tiny("--log_every=1"), tmp_path, Heartbeat(tmp_path, 0))
    loop.resume(snapshot)
    loop.run()
    last = read_steps(tmp_path)[-1]
    assert 1000 < last["time/elapsed_s"] < 1100
    assert last["time/device_hours"] == pytest.approx((last["time/elapsed_s"] - 1000) / 3600 + 1)
