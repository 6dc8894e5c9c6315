"""Which checkpoint a command line asks for, in which folder, and which configurations it goes on under."""

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch

from arcdist.checkpoint.resume import check_configuration, find_start, set_aside_later_ones
from arcdist.checkpoint.store import FILES, MANIFEST, WEIGHTS, Snapshot, load_checkpoint, save_checkpoint, step_folder
from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.tracking.run_folder import held, own

BASE = {"model": "Qwen/Qwen2.5-1.5B", "sha256": "ab" * 32}

MAY_CHANGE = {
    *("output.dir", "output.log_every", "output.save_every", "output.keep_last", "output.on_save_error"),
    *("output.preempted_exit_code", "output.validate_every", "output.best_metric"),
    *("distributed.timeout", "distributed.silence", "distributed.replica_check_every"),
    *("tracking.wandb", "tracking.wandb_project", "tracking.wandb_entity", "tracking.upload_best"),
    *("tracking.tensorboard", "tracking.shown_queries"),
    *("train.accumulation", "train.device", "train.cpu_threads", "train.memory_history"),
    *("qwen.gradient_checkpointing", "data.source", "data.validation_source"),
}
WARNS = {
    *("train.precision", "qwen.dtype", "qwen.model"),
    *("optim.agent_lr", "optim.qwen_lr", "optim.solver_lr_scale", "optim.efe_lr_scale", "optim.task_vector_lr_scale"),
    *("optim.weight_decay", "optim.beta2", "optim.warmup_steps", "optim.final_lr_share", "optim.max_grad_norm"),
    *("optim.schedule", "optim.decay_share", "optim.muon_lr"),
}
WARNING_SECTIONS = ("efe", "reward", "curriculum")


DATA = {"training": "12" * 16, "validation": "34" * 16}


def state_of(config, **changes):
    """What a checkpoint of a run with this configuration says, once it has been JSON."""
    state = {"config": flatten(config), "base": BASE, "data": DATA, "step": 30, "epoch": 2, "batch": 0, "seconds": 0.0}
    return json.loads(json.dumps(state | changes))


def check(config, state, caplog, base=BASE, data=DATA):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        check_configuration(config, state, base, data)
    return [record.getMessage() for record in caplog.records]


def test_the_same_configuration_is_fine_and_nothing_is_told(caplog):
    assert check(Config(), state_of(Config()), caplog) == []


@pytest.mark.parametrize("name", flatten(Config()))
def test_every_key_may_change_bends_the_curve_or_is_refused(caplog, name):
    state = state_of(Config())
    state["config"][name] = "another"
    value = flatten(Config())[name]
    shown = ",".join(value) if isinstance(value, tuple) else value if isinstance(value, str) else json.dumps(value)
    if name in MAY_CHANGE:
        assert check(Config(), state, caplog) == []
    elif name in ("train.epochs", "train.budget_minutes"):
        (told,) = check(Config(), state, caplog)
        assert told == f"{name} is {shown} from here on, no longer another: the learning rates follow the new length."
    elif name in WARNS or name.partition(".")[0] in WARNING_SECTIONS:
        assert check(Config(), state, caplog) == [f"{name} is {shown} from here on, no longer another."]
    else:
        with pytest.raises(ConfigError) as raised:
            check(Config(), state, caplog)
        assert str(raised.value) == (
            f"{name} is {shown}, and the checkpoint's run has another: a run cannot change that on the way. "
            f"Resume with --{name} another, or start a new run."
        )


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("data.max_tasks", None, "null"),
        ("data.augment.colors", False, "false"),
        ("qwen.lora_targets", ["q_proj", "v_proj"], "q_proj,v_proj"),
        ("agent.hidden_dim", 17, "17"),
    ],
)
def test_the_value_to_resume_with_is_written_as_a_flag_takes_it(caplog, name, value, shown):
    config = Config(data=replace(Config().data, max_tasks=3))
    with pytest.raises(ConfigError, match=rf"Resume with --{re.escape(name)} {shown}, or start"):
        check(config, state_of(config) | {"config": state_of(config)["config"] | {name: value}}, caplog)


def test_every_change_that_bends_the_curve_is_told(caplog):
    state = state_of(Config())
    state["config"] |= {"optim.agent_lr": 0.5, "train.precision": "bf16"}
    assert len(check(Config(), state, caplog)) == 2


def test_a_key_that_the_checkpoint_does_not_know_has_its_default(caplog):
    state = state_of(Config())
    del state["config"]["agent.hidden_dim"]
    state["config"]["agent.of_old"] = 3  # nor does one that no longer exists matter
    assert check(Config(), state, caplog) == []
    del state["config"]["efe.target_share"]
    changed = replace(Config(), efe=replace(Config().efe, target_share=0.5))
    assert check(changed, state, caplog) == ["efe.target_share is 0.5 from here on, no longer 0.9."]


def test_another_base_is_refused_whatever_it_is_called(caplog):
    other = {"model": "models/mine", "sha256": "cd" * 32}
    with pytest.raises(ConfigError) as raised:
        check(Config(), state_of(Config()), caplog, base=other)
    assert str(raised.value) == (
        "Qwen's frozen base is models/mine (SHA-256 cdcdcdcdcdcd), and the checkpoint's adapters belong to "
        "Qwen/Qwen2.5-1.5B (abababababab): give that one with --qwen.model."
    )
    # The same base from elsewhere is the same.
    config = Config(qwen=replace(Config().qwen, model="models/mine"))
    told = check(config, state_of(Config()), caplog, base={"model": "models/mine", "sha256": BASE["sha256"]})
    assert told == ["qwen.model is models/mine from here on, no longer Qwen/Qwen2.5-1.5B."]


@pytest.mark.parametrize("role", ["training", "validation"])
def test_other_tasks_are_refused_wherever_they_lie(caplog, role):
    with pytest.raises(ConfigError) as raised:
        check(Config(), state_of(Config()), caplog, data=DATA | {role: "56" * 16})
    assert str(raised.value) == (
        f"The {role} tasks are not those of the checkpoint's run (checksum 565656565656, there {DATA[role][:12]}): "
        f"name the same ones with --data.source, or start a new run."
    )


@pytest.mark.parametrize(
    ("epochs", "batch", "fits"), [(1, 0, False), (2, 0, True), (2, 1, False), (3, 1, True), (9, 0, True)]
)
def test_a_run_cannot_end_before_the_epoch_that_it_is_in(caplog, epochs, batch, fits):
    config = Config(train=replace(Config().train, epochs=epochs))
    if fits:
        assert check(config, state_of(config, batch=batch), caplog) == []
    else:
        begun = 2 + batch
        message = (
            rf"^train\.epochs is {epochs}, and .* after 30 steps, in the run's epoch {begun}: choose --epochs {begun}"
        )
        with pytest.raises(ConfigError, match=message):
            check(config, state_of(config, batch=batch), caplog)


def test_a_budget_cannot_end_before_the_time_that_is_used(caplog):
    used, less, more = (Config(train=replace(Config().train, budget_minutes=minutes)) for minutes in (5.0, 4.5, 6.0))
    state = state_of(used, seconds=300.5)
    assert check(used, state, caplog) == []  # It is complete.
    (told,) = check(more, state, caplog)
    assert told.startswith("train.budget_minutes is 6.0 from here on, no longer 5.0: the learning rates follow")
    with pytest.raises(ConfigError) as raised:
        check(less, state, caplog)
    assert str(raised.value) == (
        "train.budget_minutes is 4.5, and the checkpoint was taken after 5.01 minutes: choose --budget_minutes 5.1 or "
        "more."
    )
    # The number of epochs does not matter to it.
    check(more, state_of(used, epoch=100, seconds=300.5), caplog)


def test_all_that_is_refused_is_told_at_once(caplog):
    state = state_of(Config())
    state["config"] |= {"data.max_side": 8, "agent.hidden_dim": 32}
    with pytest.raises(ConfigError, match=r"Resume with --data\.max_side 8 --agent\.hidden_dim 32, or start"):
        check(Config(), state, caplog)


def saved_state(step):
    """What a resumed run needs of a checkpoint, and no more."""
    numbers = dict.fromkeys(("epoch", "batch", "skipped", "skipped_in_a_row", "gradients_checked"), 0)
    parts = ("memory_gate", "health", "cost", "since_log", "since_epoch", "steps_of_schedules", "loss_scale")
    others = ("averaged_agent", "prompts", "config", "data", "base")
    return {"step": step, "seconds": 0.0, **numbers, **{name: {} for name in (*parts, *others)}, "epochs": []}


def save(folder, step, missing=None):
    weights = {"a": torch.full((3,), float(step)), "b": torch.tensor(step, dtype=torch.bfloat16)}
    prompts = {"query": torch.zeros(2, 3)}
    state = {name: value for name, value in saved_state(step).items() if name != missing}
    save_checkpoint(folder, Snapshot(weights=weights, moments={}, prompts=prompts, state=state))


@pytest.fixture
def make_run(tmp_path):
    """A run's folder with checkpoints after these steps, `best` among its files."""

    def make(name, *steps):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in ("config.yaml", "training.log", "steps.jsonl"):
            (folder / file).write_text(f"{file} of {name}\n")
        for step in steps:
            save(step_folder(folder / "checkpoints", step), step)
        if steps:
            save(folder / "best", steps[0])
        return folder

    return make


@pytest.fixture
def find():
    """Find a start and give its folder free again."""

    def find_and_free(directory, resume):
        start = find_start(None if directory is None else str(directory), None if resume is None else str(resume))
        with held(start.lock):
            return start

    return find_and_free


def damage(checkpoint):
    (checkpoint / WEIGHTS).write_bytes(b"")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_without_resume_a_run_starts_in_a_folder_of_its_own(tmp_path, find):
    start = find(tmp_path / "run", None)
    assert (start.folder, start.checkpoint, start.snapshot, start.warnings) == (tmp_path / "run", None, None, ())
    assert start.is_new
    assert names(tmp_path / "run") == []


def test_a_folder_that_holds_a_run_is_not_resumed_unasked(make_run, find):
    with pytest.raises(ConfigError, match="holds another run"):
        find(make_run("run", 3), None)


def test_the_newest_checkpoint_of_the_named_folder_is_taken_with_its_files(make_run, find):
    run = make_run("run", 5, 100, 20)
    for resume in ("newest", "auto", run):
        start = find(None if resume is run else run, resume)
        assert (start.folder, start.checkpoint) == (run, step_folder(run / "checkpoints", 100))
        assert start.snapshot.state == load_checkpoint(start.checkpoint).state == saved_state(100)
        assert not start.is_new
        assert start.warnings == ()


def test_without_a_folder_the_run_that_saved_last_is_taken_whatever_its_name(make_run, find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for when, (name, *steps) in enumerate([("zebra", 9), ("arcdist_20250102_000000", 4), ("arcdist_2026",)]):
        run = make_run(f"runs/{name}", *steps)
        for path in run.rglob("*"):
            os.utime(path, (when, when))
    (tmp_path / "runs" / "file").write_text("no run")
    assert find(None, "newest").checkpoint.as_posix() == "runs/arcdist_20250102_000000/checkpoints/step_00000004"


def test_without_any_run_there_is_nothing_to_resume(find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^No run in runs/ has a checkpoint to resume from: .*--output_dir"):
        find(None, "newest")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_checkpoints_is_refused_unless_either_is_fine(make_run, find, tmp_path):
    for folder in (make_run("run"), tmp_path / "missing"):
        with pytest.raises(ConfigError, match=rf"^{folder} has no checkpoint to resume from: .*--resume auto"):
            find(folder, "newest")
    assert names(tmp_path) == ["run"]


def test_auto_starts_where_there_is_nothing(find, tmp_path):
    start = find(tmp_path / "run", "auto")
    assert (start.folder, start.checkpoint, start.is_new, start.warnings) == (tmp_path / "run", None, True, ())


def test_auto_needs_a_folder(find):
    with pytest.raises(ConfigError, match=r"^--resume auto needs to know the run's folder: .*--output_dir FOLDER"):
        find(None, "auto")


def test_auto_starts_anew_where_a_run_ended_before_its_first_checkpoint(make_run, find):
    run = make_run("run")
    (run / "heartbeats").mkdir()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".step_00000001.partial").mkdir()
    (run / "notes.txt").write_text("mine")
    start = find(run, "auto")
    assert (start.folder, start.checkpoint) == (run, None)
    assert start.warnings == (f"{run} held a run that had ended before its first checkpoint: it starts again.",)
    assert names(run) == ["notes.txt"]


def test_auto_removes_nothing_that_is_no_runs_or_a_running_runs(make_run, find, tmp_path):
    (tmp_path / "mine" / "best").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds another run \(best\)"):
        find(tmp_path / "mine", "auto")
    assert names(tmp_path / "mine") == ["best"]
    run = make_run("run")
    before = names(run)
    with held(own(run)), pytest.raises(ConfigError, match=f"Another process is training in {run}"):
        find(run, "auto")
    assert names(run) == before


def test_a_path_is_that_of_a_checkpoint_of_best_or_of_a_run(make_run, find):
    run = make_run("run", 5, 20)
    for path in (step_folder(run / "checkpoints", 5), run / "best"):
        start = find(None, path)
        assert (start.folder, start.checkpoint, start.is_new) == (run, path, False)
        assert start.snapshot.state["step"] == 5
        # Naming the run's folder as well changes nothing, however it is written.
        assert find(run.parent / "other" / ".." / "run", path).folder == run


def test_a_path_may_begin_with_the_home_folder(make_run, find, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = make_run("run", 5)
    assert find(None, "~/run/best").checkpoint == run / "best"
    assert find("~/run", "newest").folder == run


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "there is no such folder. Give that of a checkpoint, such as "),
        ("notes", "is neither a checkpoint (it has no manifest.json) nor a run folder that holds some."),
        ("run", "is neither a checkpoint (it has no manifest.json) nor a run folder that holds some."),
    ],
)
def test_a_path_of_something_else_is_refused(make_run, find, tmp_path, path, message):
    make_run("run")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match=f"^--resume {tmp_path / path}:? {re.escape(message)}"):
        find(None, tmp_path / path)


@pytest.mark.parametrize("name", FILES)
def test_a_broken_newest_one_is_told_and_the_one_before_it_taken(make_run, find, name):
    run = make_run("run", 5, 20, 30)
    broken = [step_folder(run / "checkpoints", step) for step in (20, 30)]
    for checkpoint in broken:
        (checkpoint / name).unlink()
    start = find(run, "newest")
    assert start.checkpoint == step_folder(run / "checkpoints", 5)
    assert start.warnings == tuple(
        f"{checkpoint / name} cannot be read: No such file or directory. The one before it is taken."
        for checkpoint in reversed(broken)
    )


def test_where_none_is_whole_the_best_one_is_what_is_left(make_run, find):
    run = make_run("run", 5, 20)
    for step in (5, 20):
        damage(step_folder(run / "checkpoints", step))
    for resume in ("newest", "auto"):
        start = find(run, resume)
        assert start.checkpoint == run / "best"
        assert len(start.warnings) == 2


def test_where_none_is_whole_at_all_nothing_is_taken_and_nothing_removed(make_run, find):
    run = make_run("run", 5, 20)
    for checkpoint in (*(step_folder(run / "checkpoints", step) for step in (5, 20)), run / "best"):
        damage(checkpoint)
    for resume in ("newest", "auto"):
        with pytest.raises(DataError, match=rf"^None of the checkpoints in {run}/checkpoints is whole: .*--output_dir"):
            find(run, resume)
        assert ".lock" not in names(run)
    assert names(run / "checkpoints") == ["step_00000005", "step_00000020"]
    assert "best" in names(run)


@pytest.mark.parametrize("left", ["best", ".best.replaced", "aside"])
def test_auto_never_removes_what_a_run_has_saved(make_run, find, left):
    run = make_run("run", 5)
    if left == "aside":
        set_aside_later_ones(run, 0)
        shutil.rmtree(run / "best", ignore_errors=True)
        with pytest.raises(DataError, match="Resume from one that was set aside by its path"):
            find(run, "auto")
        assert names(run / "checkpoints") == ["aside_1_best", "aside_1_step_00000005"]
        return
    shutil.rmtree(run / "checkpoints")
    if left != "best":
        (run / "best").rename(run / left)
    start = find(run, "auto")
    assert (start.checkpoint, start.is_new) == (run / "best", False)


def test_a_fork_that_was_killed_goes_on_in_its_own_folder(make_run, find, tmp_path, monkeypatch):
    source = step_folder(make_run("run", 5, 20) / "checkpoints", 5)
    start = find(tmp_path / "fork", source)
    assert (tmp_path / "fork" / "config.yaml").read_text() == "config.yaml of run\n"
    own_one = step_folder(tmp_path / "fork" / "checkpoints", 5)
    for resume in ("newest", "auto"):
        assert find(tmp_path / "fork", resume).checkpoint == own_one
    # The same command is a new fork, for which there is no room; a launcher that repeats it means the old one.
    with pytest.raises(ConfigError, match="holds another run: resume that one by leaving out --resume's path"):
        find(tmp_path / "fork", source)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = find(tmp_path / "fork", source)
    assert (again.folder, again.checkpoint, again.is_new) == (start.folder, own_one, False)


def test_a_fork_only_reads_the_run_that_it_comes_from(make_run, find, tmp_path):
    run = make_run("run", 5)
    with held(own(run)):  # It is training, or lies where nobody may write.
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        assert find(tmp_path / "a", run).checkpoint == step_folder(run / "checkpoints", 5)
        assert find(tmp_path / "b", run / "best").checkpoint == run / "best"
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_folder_of_checkpoints_means_its_run(make_run, find):
    run = make_run("run", 5, 20)
    assert find(None, run / "checkpoints").checkpoint == step_folder(run / "checkpoints", 20)


def test_an_empty_path_is_refused(find):
    with pytest.raises(ConfigError, match="--resume is given an empty path"):
        find(None, "")


def test_a_broken_one_that_was_asked_for_is_refused_by_its_file(make_run, find):
    run = make_run("run", 5, 20)
    broken = step_folder(run / "checkpoints", 20)
    damage(broken)
    with pytest.raises(DataError, match=f"^{broken / WEIGHTS} has 0 bytes in place of .*`launch/checkpoint.py list`"):
        find(None, broken)
    assert find(None, step_folder(run / "checkpoints", 5)).checkpoint == step_folder(run / "checkpoints", 5)


@pytest.mark.parametrize("name", saved_state(0))
def test_a_state_without_what_a_run_needs_is_refused_by_its_file(make_run, find, name):
    run = make_run("run", 5)
    foreign = step_folder(run / "checkpoints", 20)
    save(foreign, 20, missing=name)
    message = rf"^{foreign}/state\.json is no state of a run: it lacks {name} \(\w+\)\."
    with pytest.raises(DataError, match=rf"{message} Resume from another checkpoint: "):
        find(None, foreign)
    start = find(run, "newest")
    assert start.checkpoint == step_folder(run / "checkpoints", 5)
    assert re.match(message, start.warnings[0])


def test_what_a_killed_process_was_at_is_mended_and_cleared(make_run, find):
    run = make_run("run", 5, 20)
    (run / "best").rename(run / ".best.replaced")
    save(run / ".best.partial", 20)
    (run / "checkpoints" / ".step_00000030.partial").mkdir()
    step_folder(run / "checkpoints", 5).rename(run / "checkpoints" / ".step_00000005.removed")
    assert find(run, "newest").checkpoint == step_folder(run / "checkpoints", 20)
    assert names(run / "checkpoints") == ["step_00000020"]
    assert names(run) == ["best", "checkpoints", "config.yaml", "steps.jsonl", "training.log"]
    assert load_checkpoint(run / "best").state["step"] == 20


def test_a_best_that_was_being_replaced_is_mended_where_it_is_asked_for_by_name(make_run, find):
    run = make_run("run", 5)
    (run / "best").rename(run / ".best.replaced")
    start = find(None, run / "best")
    assert (start.folder, start.checkpoint) == (run, run / "best")
    assert ".lock" not in names(run)
    with pytest.raises(ConfigError, match="there is no such folder"):
        find(None, run / "checkpoints" / "step_00000007")


def test_in_another_folder_the_curve_is_continued_and_the_first_run_left_alone(make_run, find, tmp_path):
    run = make_run("run", 5, 20)
    before = names(run)
    for name, resume in (("a", run), ("b", run / "best"), ("c", step_folder(run / "checkpoints", 5))):
        start = find(tmp_path / name, resume)
        assert start.folder == tmp_path / name
        assert start.checkpoint.is_relative_to(run)
        assert start.is_new
        assert names(start.folder) == ["best", "checkpoints", "config.yaml", "steps.jsonl"]
        (own_one,) = (start.folder / "checkpoints").iterdir()
        # A copy of what it comes from, byte for byte.
        for copied, source in ((own_one, start.checkpoint), (start.folder / "best", run / "best")):
            for file in (*FILES, MANIFEST):
                assert (copied / file).read_bytes() == (source / file).read_bytes()
        assert load_checkpoint(start.folder / "best").state["step"] == 5
        assert (start.folder / "steps.jsonl").read_text() == "steps.jsonl of run\n"
        assert start.lock.lock_file == str(start.folder / ".lock")
    assert names(run) == before
    assert names(run / "checkpoints") == ["step_00000005", "step_00000020"]


@pytest.mark.parametrize("name", ["steps.jsonl", "epoch_00000.json"])
def test_a_fork_that_finds_no_room_is_one_message_and_leaves_no_folder(make_run, find, tmp_path, monkeypatch, name):
    run = make_run("run", 5)
    (run / "validation").mkdir()
    (run / "validation" / "epoch_00000.json").write_text("{}")
    copyfile = shutil.copyfile

    def full(source, target, **keywords):
        if source.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        return copyfile(source, target, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(SaveError, match=rf"^The run folder {tmp_path}/fork could not be written \(No space left"):
            find(tmp_path / "fork", run)
    assert names(tmp_path) == ["run"]
    fork = find(tmp_path / "fork", run).folder
    assert (fork / "validation" / "epoch_00000.json").read_text() == "{}"


def test_a_curve_that_was_never_begun_is_not_continued(make_run, find, tmp_path):
    run = make_run("run", 5)
    (run / "steps.jsonl").unlink()
    assert names(find(tmp_path / "other", run).folder) == ["best", "checkpoints", "config.yaml"]


def test_a_best_of_later_on_or_a_broken_one_is_no_part_of_the_curve(make_run, find, tmp_path):
    run = make_run("run", 5, 20)
    save(run / "best", 20)
    assert names(find(tmp_path / "a", step_folder(run / "checkpoints", 5)).folder) == [
        "checkpoints",
        "config.yaml",
        "steps.jsonl",
    ]
    damage(run / "best")
    assert names(find(tmp_path / "b", run).folder) == ["checkpoints", "config.yaml", "steps.jsonl"]


def test_another_folder_that_holds_a_run_is_refused_and_neither_stays_taken(make_run, find):
    run, other = make_run("run", 5), make_run("other", 7)
    with pytest.raises(ConfigError, match=f"{other} holds another run"):
        find(other, run)
    for folder in (run, other):
        assert ".lock" not in names(folder)
        own(folder).release()


@pytest.mark.parametrize("resume", [None, "newest", "auto", "path"])
def test_a_folder_has_one_owner_until_it_is_given_free(make_run, find, tmp_path, resume):
    folder = tmp_path / "run" if resume is None else make_run("run", 5)
    what = folder / "best" if resume == "path" else resume
    start = find_start(str(folder), None if what is None else str(what))
    with held(start.lock):
        assert ".lock" in names(folder)
        for other in ("newest", "auto", folder / "best"):
            message = (
                f"Another process is training in {folder}: wait" if resume else "no checkpoint|no such folder|is tr"
            )
            with pytest.raises(ConfigError, match=message):
                find(folder, other)
    assert ".lock" not in names(folder)
    with held(own(folder)):
        pass


def test_later_checkpoints_are_set_aside_and_told(make_run, caplog):
    run = make_run("run", 5, 20, 30)
    root = run / "checkpoints"
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        set_aside_later_ones(run, 20)
    assert names(root) == ["aside_1_step_00000030", "step_00000005", "step_00000020"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}/step_00000030 is later than the step to resume from: it is now {root}/aside_1_step_00000030."
    ]
    # Again and again, without losing what was set aside before.
    save(step_folder(root, 30), 31)
    damage(step_folder(root, 20))  # broken ones too: they would be kept in a whole one's place
    set_aside_later_ones(run, 5)
    assert names(root) == [
        *("aside_1_step_00000020", "aside_1_step_00000030", "aside_2_step_00000030", "step_00000005"),
    ]
    assert load_checkpoint(root / "aside_1_step_00000030").state["step"] == 30
    set_aside_later_ones(run / "missing", 5)


def test_the_best_of_a_path_that_is_left_goes_with_it(make_run):
    run = make_run("run", 5, 20)
    save(run / "best", 20)
    set_aside_later_ones(run, 20)
    assert "best" in names(run)
    set_aside_later_ones(run, 5)
    assert "best" not in names(run)
    assert names(run / "checkpoints") == ["aside_1_best", "aside_1_step_00000020", "step_00000005"]


def test_a_best_that_the_run_comes_to_once_more_stays(make_run):
    run = make_run("run", 5, 20)
    save(run / "best", 20)
    damage(step_folder(run / "checkpoints", 20))
    set_aside_later_ones(run, 5)
    assert names(run / "checkpoints") == ["aside_1_step_00000020", "step_00000005"]
    assert "best" in names(run)


def test_one_that_was_set_aside_can_be_resumed_from_by_its_path(make_run, find):
    run = make_run("run", 5, 20)
    set_aside_later_ones(run, 5)
    aside = run / "checkpoints" / "aside_1_step_00000020"
    assert (find(None, aside).folder, find(None, aside).checkpoint) == (run, aside)
    assert find(run, "newest").checkpoint == step_folder(run / "checkpoints", 5)
