"""How programs end: alone, on ranks started by hand, and through the real launcher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed import TCPStore

from arcdist.distributed import failure, guard, run_guarded
from arcdist.errors import ConfigError, NotFiniteError

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def raising(error):
    def main(_watch):
        raise error

    return main


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("train.epochs is 0."), 2, "x.py: train.epochs is 0.\n"),
        (NotFiniteError("loss = inf"), 5, "x.py: loss = inf\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_with_one_process_an_error_is_a_message_and_an_exit_code(capsys, error, code, told):
    assert run_guarded("x.py", raising(error)) == code
    assert capsys.readouterr() == ("", told)


@pytest.mark.usefixtures("alone")
def test_with_one_process_other_exceptions_pass_and_output_is_printed(capsys):
    with pytest.raises(ValueError, match="broken"):
        run_guarded("x.py", raising(ValueError("broken")))
    with pytest.raises(SystemExit):
        run_guarded("x.py", raising(SystemExit(0)))
    assert run_guarded("x.py", lambda _watch: sys.stdout.writelines(["done\n"])) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (143, 143), (1, 1)])
def test_what_main_returns_is_the_exit_code(monkeypatch, ranks, returned, code):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert run_guarded("x.py", lambda _watch: returned) == code


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("Console().print('line')", 141),  # which meets the closed pipe and exits
        ("print('line')", 141),  # which is not delivered before the end
        ("print('line\\n' * 100_000)", 141),  # which meets it in the midst
        ("sys.stdout.reconfigure(write_through=True); print('line')", 141),  # of which no buffer tells
        ("argparse.ArgumentParser().parse_args(['--help'])", 141),
        ("print('line'); return 5", 5),
        ("print('line'); raise ConfigError('wrong.')", 2),
        ("return 0", 0),
        ("sys.exit(3)", 3),
    ],
)
def test_a_reader_who_has_seen_enough_ends_a_program_quietly(work, code):
    run = start(work)
    run.stdout.close()
    assert run.stderr.read() == ("x.py: wrong.\n" if code == 2 else "")
    run.stderr.close()
    assert run.wait(timeout=30) == code


def test_another_pipe_that_breaks_is_an_error():
    run = start("print('line'); raise BrokenPipeError('of another pipe')")
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (1, "line\n")
    assert err.endswith("BrokenPipeError: of another pipe\n")


def start(work):
    """A program of these lines, whose output goes into a real pipe."""
    program = f"""\
import argparse, sys
from rich.console import Console
from arcdist.distributed import run_guarded
from arcdist.errors import ConfigError

def main(watch):
    {work}

sys.exit(run_guarded("x.py", main))
"""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("rank", "printed"), [("0", "help\n"), ("1", "")])
def test_standard_output_is_rank_0s(monkeypatch, capsys, rank, printed):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_guarded("x.py", lambda _watch: sys.stdout.writelines(["help\n"])) == 0
    assert capsys.readouterr() == (printed, "")


@pytest.mark.parametrize(
    ("rank", "error", "told"),
    [
        (0, ConfigError("wrong"), "x.py: wrong\n"),
        (3, ConfigError("wrong"), "x.py: rank 3 of 4: wrong\n"),
        (3, KeyboardInterrupt(), ""),
        (3, ValueError("two\nlines"), "x.py: rank 3 of 4 failed: ValueError: two\nValueError: two\nlines\n"),
        (0, AssertionError(), "x.py: rank 0 of 4 failed: AssertionError\nAssertionError\n"),
    ],
)
def test_what_is_told(monkeypatch, rank, error, told):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert guard._story("x.py", error) == told


START = """\
import sys, time
from pathlib import Path
from arcdist.distributed import rank, run_guarded
from arcdist.errors import ConfigError, OutOfMemoryError

def early(rank): pass
"""
MIDDLE = """
def main(watch):
    early(rank())
    import torch
    from torch import distributed
    with watch:
        distributed.init_process_group("gloo")
        number = torch.ones(1)
        distributed.all_reduce(number)
        work(rank(), lambda: distributed.all_reduce(number))

def fail(error):
    Path("failed_at").write_text(repr(time.time()))
    raise error

"""
END = """
sys.exit(run_guarded("worker.py", main))
"""


def program(work):
    """A program that forms a process group and then does `work`; what it raises with `fail` is timed."""
    return START + MIDDLE + work + END


ONE_RAISES = """
def work(rank, all_reduce):
    if rank == 1:
        time.sleep(0.5)
        fail(RuntimeError("boom"))
    all_reduce()
"""
OTHERS_SLEEP = ONE_RAISES.replace("    all_reduce()", "    time.sleep(600)")


def assert_told_once_by(ended, rank, ranks):
    """Of all processes, the one that failed has printed its traceback, below a line that names it."""
    (told,) = [process.err for process in ended if "worker.py:" in process.err]
    assert f"worker.py: rank {rank} of {ranks} failed: RuntimeError: boom\nTraceback (most recent call last):\n" in told
    assert 'fail(RuntimeError("boom"))' in told
    assert told.count("boom") == 3  # in that line, in the traceback's line of source, and as its last


@pytest.mark.slow
@pytest.mark.parametrize("work", [ONE_RAISES, OTHERS_SLEEP], ids=["all_reduce", "sleep"])
def test_a_rank_that_fails_tells_and_the_others_end_quietly(run_ranks, tmp_path, work):
    ended = run_ranks(program(work), 3)
    failed_at = float((tmp_path / "failed_at").read_text())
    assert [process.code for process in ended] == [1, 1, 1]
    assert ended[0].err == ended[2].err == ""
    assert_told_once_by(ended, 1, 3)
    # The one that failed ends first, so that a launcher names it; the others soon after.
    assert ended[1].at < min(ended[0].at, ended[2].at)
    assert max(process.at for process in ended) - failed_at < 4.0


@pytest.mark.slow
def test_without_a_launchers_store_rank_0s_serves(start_ranks, finish):
    ended = finish(start_ranks(program(ONE_RAISES), 2))
    assert [process.code for process in ended] == [1, 1]
    assert_told_once_by(ended, 1, 2)
    assert ended[0].err == ""

    rank_0 = program(ONE_RAISES.replace("rank == 1", "rank == 0"))
    ended = finish(start_ranks(rank_0, 2))
    assert [process.code for process in ended] == [1, 1]
    assert_told_once_by(ended, 0, 2)
    assert ended[1].err == ""


@pytest.mark.slow
def test_without_a_launchers_store_rank_0_may_end_first(start_ranks, finish):
    ended = finish(start_ranks(program("def work(rank, all_reduce): time.sleep(3 * rank)"), 2))
    assert [process.code for process in ended] == [0, 0]
    assert ended[1].at - ended[0].at > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_an_error_that_all_meet_is_told_once_by_rank_0(run_ranks, slow):
    work = f"""
def work(rank, all_reduce):
    if rank == {slow}:
        time.sleep(2)
    raise ConfigError("the file is bad.")
"""
    ended = run_ranks(program(work), 2)
    assert [(process.code, process.err) for process in ended] == [(2, "worker.py: the file is bad.\n"), (2, "")]


@pytest.mark.slow
def test_an_error_that_one_rank_meets_is_told_by_that_rank(run_ranks):
    work = """
def work(rank, all_reduce):
    if rank == 1:
        raise OutOfMemoryError("the card is full.")
    all_reduce()
"""
    ended = run_ranks(program(work), 2)
    assert [(process.code, process.err) for process in ended] == [
        (4, ""),
        (4, "worker.py: rank 1 of 2: the card is full.\n"),
    ]


@pytest.mark.slow
def test_an_unexpected_error_on_all_ranks_is_told_once(run_ranks):
    ended = run_ranks(program("def work(rank, all_reduce): fail(RuntimeError('boom'))"), 2)
    assert [process.code for process in ended] == [1, 1]
    assert sorted(len(process.err) > 0 for process in ended) == [False, True]
    assert "".join(process.err for process in ended).count("failed: RuntimeError: boom") == 1


EARLY = """
def early(rank):
    if rank in AT: raise ConfigError("wrong flag.")

def work(rank, all_reduce): time.sleep(600)
"""


@pytest.mark.slow
def test_before_the_watch_rank_0_tells_and_the_others_see_its_launcher_end(start_ranks, finish):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(program(EARLY.replace("AT", "(0, 1)")), 2, store)
    assert processes[0].wait(30) == 2
    assert processes[1].poll() is None
    del store
    start = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - start < 4.0 < guard.PATIENCE_SECONDS
    assert [(process.code, process.err) for process in ended] == [(2, "worker.py: wrong flag.\n"), (2, "")]


@pytest.mark.slow
def test_before_the_watch_a_rank_alone_tells_and_ends_the_others(run_ranks):
    start = time.time()
    ended = run_ranks(program(EARLY.replace("AT", "(1,)")), 2)
    assert [(process.code, process.err) for process in ended] == [(2, ""), (2, "worker.py: rank 1 of 2: wrong flag.\n")]
    assert ended[0].at - start > guard.PATIENCE_SECONDS


INTERRUPTED = """
def work(rank, all_reduce):
    Path(f"at_work{rank}").touch()
    if rank == AT:
        time.sleep(600)
    all_reduce()
"""


@pytest.mark.slow
def test_ctrl_c_is_130_on_every_rank_without_a_word(start_ranks, finish, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(program(INTERRUPTED.replace("AT", "0")), 2, store)
    while not ((tmp_path / "at_work0").exists() and (tmp_path / "at_work1").exists()):
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGINT)
    assert [(process.code, process.out, process.err) for process in finish(processes)] == [(130, "", "")] * 2


@pytest.mark.slow
def test_an_interrupted_rank_waits_while_rank_0_saves_and_not_after_a_second_ctrl_c(start_ranks, finish, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(program(INTERRUPTED.replace("AT", "1")), 2, store)
    while not (tmp_path / "at_work1").exists():
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    time.sleep(2 * failure.OTHERS_SECONDS)
    assert [process.poll() for process in processes] == [None, None]
    processes[1].send_signal(signal.SIGINT)
    assert processes[1].wait(5) == 130
    processes[0].kill()


@pytest.fixture
def worker(tmp_path):
    def write(work):
        script = tmp_path / "worker.py"
        script.write_text(program(work))
        return script

    return write


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "processes", "machines"),
    [
        pytest.param(ONE_RAISES, 2, 1, id="all_reduce-2"),
        pytest.param(ONE_RAISES, 3, 1, id="all_reduce-3"),
        pytest.param(OTHERS_SLEEP, 2, 1, id="sleep-2"),
        pytest.param(OTHERS_SLEEP, 3, 1, id="sleep-3"),
        pytest.param(ONE_RAISES, 2, 2, id="all_reduce-two machines"),
        pytest.param(OTHERS_SLEEP, 4, 2, id="sleep-two machines"),
    ],
)
def test_through_the_launcher_the_whole_run_is_gone(launch, worker, tmp_path, work, processes, machines):
    ended = launch(worker(work), processes=processes, machines=machines)
    failed_at = float((tmp_path / "failed_at").read_text())
    assert [launcher.code for launcher in ended] == [1] * machines
    assert max(launcher.at for launcher in ended) - failed_at < 10.0
    assert_told_once_by(ended, 1, processes)
    # The launcher that ran the failed rank calls it the cause.
    (told,) = [launcher.err for launcher in ended if "worker.py:" in launcher.err]
    assert "rank      : 1 " in told.partition("Root Cause")[2]


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_through_the_launcher_a_wrong_flag_is_told_once(launch, machines):
    ended = launch(CHECKOUT / "launch" / "train.py", "--epochs", "x", processes=4, machines=machines)
    assert [launcher.code for launcher in ended] == [1] * machines
    told = [line for launcher in ended for line in launcher.err.splitlines() if line.startswith("train.py: ")]
    assert told == ["train.py: train.epochs is 'x' (the command line): choose a whole number."]


@pytest.mark.slow
def test_through_the_launcher_the_configuration_and_help_are_printed_once(launch):
    train = CHECKOUT / "launch" / "train.py"
    (printed,) = launch(train, "--print_config", "--epochs", "3", processes=2)
    assert (printed.code, printed.err) == (0, "")
    assert yaml.safe_load(printed.out)["train"]["epochs"] == 3
    (helped,) = launch(train, "--help", processes=2)
    assert (helped.code, helped.out.count("usage: train.py")) == (0, 1)


def test_a_mistake_needs_no_torch_on_rank_0():
    program = """\
import sys
from arcdist.distributed import run_guarded
from arcdist.errors import ConfigError
import arcdist.distributed.guard as guard

def main(watch):
    raise ConfigError("wrong flag.")

guard.leave = lambda code: sys.exit(f"{code} {'torch' in sys.modules}")
run_guarded("x.py", main)
"""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.stderr == "x.py: wrong flag.\n2 False\n"
