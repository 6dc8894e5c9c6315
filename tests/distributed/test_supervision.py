"""How programs end: alone, on ranks started by hand, and through the real launcher."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed import TCPStore

from arcdist.distributed import run_guarded, supervision
from arcdist.distributed.heartbeat import BEAT_SECONDS
from arcdist.distributed.supervision import Failure, FailureWatch
from arcdist.errors import ConfigError, NotFiniteError

FAILURE = Failure(rank=1, exit_code=4, error="OutOfMemoryError: full")
FAILED, ENDED, MINE = (f"arcdist/run/0/{name}" for name in ("failed", "ended", "beat/1"))


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def launched(monkeypatch, store):
    """Make this process rank 1 of 2, beside the store of a launcher."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)


def watching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "failure watch"]


def test_with_one_process_there_is_no_thread(monkeypatch, store):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    with FailureWatch() as watch:
        assert not watch.started
        assert watching_threads() == []
        assert watch.report(FAILURE)
    assert not store.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_a_failure_is_left_in_the_store_for_the_others(store):
    with FailureWatch() as watch:
        assert watch.report(FAILURE)
    assert json.loads(store.get(FAILED)) == {"rank": 1, "exit_code": 4, "error": "OutOfMemoryError: full"}
    assert watching_threads() == []


@pytest.mark.usefixtures("launched")
def test_a_failure_before_the_watch_has_begun_is_reported_too(store):
    assert FailureWatch().report(FAILURE)
    assert store.check([FAILED])


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_good_end_stops_the_thread_and_is_known_of_rank_0(monkeypatch, store, rank):
    monkeypatch.setenv("RANK", str(rank))
    with FailureWatch():
        assert len(watching_threads()) == 1
        time.sleep(2 * supervision.POLL_SECONDS)
    assert watching_threads() == []
    assert store.check([ENDED]) is (rank == 0)
    assert not store.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_the_failure_of_an_earlier_attempt_is_not_this_ones(monkeypatch, store):
    store.set(FAILED, json.dumps({"rank": 0, "exit_code": 1, "error": "ValueError"}))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with FailureWatch() as watch:
        time.sleep(2 * supervision.POLL_SECONDS)
        assert watch.report(FAILURE)
    assert json.loads(store.get("arcdist/run/1/failed"))["rank"] == 1


@pytest.mark.usefixtures("launched")
def test_a_store_that_rank_0_has_yet_to_open_is_waited_for(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    with FailureWatch() as watch:
        time.sleep(2 * supervision.POLL_SECONDS)
        assert len(watching_threads()) == 1
        opened = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        assert watch.report(FAILURE)
    assert opened.check([FAILED])


@pytest.mark.usefixtures("launched")
def test_a_rank_that_reaches_nobody_reports_soon(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    monkeypatch.setenv("MASTER_PORT", "9")
    monkeypatch.setattr(supervision, "REPORT_SECONDS", 0.2)
    start = time.monotonic()
    with FailureWatch() as watch:
        assert watch.report(FAILURE)
    assert time.monotonic() - start < 2.0


def test_leaving_writes_what_was_printed_and_waits_for_no_thread():
    program = """\
import threading, time
from arcdist.distributed.supervision import leave
threading.Thread(target=time.sleep, args=(600,)).start()
print("said", end="")
leave(7)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (7, "said", "")


WAITING = """\
import logging, sys, time
from pathlib import Path
import torch
from arcdist.distributed import FailureWatch, rank

if rank() == 0:
    file = logging.FileHandler("training.log")
    file.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("arcdist").addHandler(file)
with FailureWatch():
    Path(f"ready{rank()}").touch()
    time.sleep(WAIT)
"""


def wait_for_files(*paths):
    give_up = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.slow
def test_a_failure_ends_the_others_soon_and_is_in_the_log(start_ranks, tmp_path, store):
    processes = start_ranks(WAITING.replace("WAIT", "600"), 2, store)
    wait_for_files(tmp_path / "ready0", tmp_path / "ready1")
    start = time.monotonic()
    store.set("arcdist//0/failed", json.dumps({"rank": 2, "exit_code": 4, "error": "OutOfMemoryError: full"}))
    assert [process.wait(10) for process in processes] == [4, 4]
    assert supervision.OTHERS_SECONDS <= time.monotonic() - start < 4.0
    assert [process.communicate() for process in processes] == [("", "")] * 2
    assert (tmp_path / "training.log").read_text() == "ERROR Rank 2 failed: OutOfMemoryError: full\n"


@pytest.mark.slow
def test_the_end_of_the_launcher_amid_the_run_ends_the_ranks(start_ranks, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(WAITING.replace("WAIT", "600"), 2, store)
    wait_for_files(tmp_path / "ready0", tmp_path / "ready1")
    time.sleep(1.0)
    del store
    assert [process.wait(10) for process in processes] == [6, 6]
    for rank, process in enumerate(processes):
        out, err = process.communicate()
        assert out == ""
        assert f"rank {rank} of 2 stops: the first machine's launcher, which answered at 127.0.0.1:" in err


@pytest.mark.slow
def test_the_end_of_rank_0_and_then_of_the_store_ends_nobody(start_ranks, tmp_path):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(WAITING.replace("WAIT", "4 * rank()"), 2, store)
    assert processes[0].wait(30) == 0
    time.sleep(1.0)
    del store
    assert processes[1].wait(30) == 0


@pytest.mark.usefixtures("launched")
def test_only_the_first_failure_counts(store):
    assert FAILURE.claim(store)
    assert not Failure(rank=0, exit_code=1, error="ValueError").claim(store)
    assert json.loads(store.get(FAILED))["rank"] == 1


@pytest.mark.usefixtures("launched")
def test_a_good_end_leaves_word_that_no_more_signs_will_come(store):
    with FailureWatch() as watch:
        watch.mind_silence(lambda: "training", 10.0)
        give_up = time.monotonic() + 10
        while not store.check([MINE]):
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert store.get(MINE) == b""


@pytest.mark.usefixtures("launched")
def test_a_rank_without_a_bound_on_silence_gives_no_sign(store):
    with FailureWatch():
        time.sleep(2 * supervision.POLL_SECONDS)
    assert not store.check([MINE])


BEATING = WAITING.replace(
    "with FailureWatch():", 'with FailureWatch() as watch:\n    watch.mind_silence(lambda: "at work", 5)'
)


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_missed_by_its_neighbour_and_a_busy_one_is_not(start_ranks, tmp_path, store):
    processes = start_ranks(BEATING.replace("WAIT", "600"), 3, store)
    wait_for_files(*(tmp_path / f"ready{rank}" for rank in range(3)))
    time.sleep(2 * BEAT_SECONDS)
    assert [process.poll() for process in processes] == [None] * 3
    start = time.monotonic()
    processes[2].send_signal(signal.SIGSTOP)
    assert [process.wait(20) for process in processes[:2]] == [6, 6]
    # The bound, two beats in which it may fall, and what a failure takes.
    assert 5.0 < time.monotonic() - start < 5.0 + 2 * BEAT_SECONDS + 4.0
    errors = [process.communicate()[1] for process in processes[:2]]
    assert errors[0] == ""
    assert errors[1].startswith("rank 1 of 3 stops: Rank 2 of 3 has given no sign of life for ")
    assert "The last one: at work. The process was stopped" in errors[1]
    assert "Rank 2 failed: Rank 2 of 3 has given no sign of life" in (tmp_path / "training.log").read_text()


CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def be_rank(monkeypatch, rank, ranks):
    """Be a process of several."""
    given = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def raising(error):
    def main(_watch):
        raise error

    return main


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("train.epochs is 0."), 2, "x.py: train.epochs is 0.\n"),
        (NotFiniteError("loss = inf"), 5, "x.py: loss = inf\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_with_one_process_an_error_is_a_message_and_an_exit_code(capsys, error, code, message):
    assert run_guarded("x.py", raising(error)) == code
    assert capsys.readouterr() == ("", message)


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
    be_rank(monkeypatch, "0", ranks)
    assert run_guarded("x.py", lambda _watch: returned) == code


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("Console().print('line')", 141),  # which meets the closed pipe and exits
        ("print('line')", 141),  # which is not delivered before the end
        ("print('line\\n' * 100_000)", 141),  # which meets it in the midst
        ("sys.stdout.reconfigure(write_through=True); print('line')", 141),  # of which no buffer shows
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
    be_rank(monkeypatch, rank, "2")
    assert run_guarded("x.py", lambda _watch: sys.stdout.writelines(["help\n"])) == 0
    assert capsys.readouterr() == (printed, "")


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ConfigError("wrong"), "x.py: wrong\n"),
        (3, ConfigError("wrong"), "x.py: rank 3 of 4: wrong\n"),
        (3, KeyboardInterrupt(), ""),
        (3, ValueError("two\nlines"), "x.py: rank 3 of 4 failed: ValueError: two\nValueError: two\nlines\n"),
        (0, AssertionError(), "x.py: rank 0 of 4 failed: AssertionError\nAssertionError\n"),
    ],
)
def test_messages(monkeypatch, capsys, rank, error, message):
    def leave(exit_code):
        raise Left(exit_code)

    be_rank(monkeypatch, str(rank), "4")
    monkeypatch.setattr(supervision, "store_address", lambda: None)  # nobody is there to be asked
    monkeypatch.setattr(supervision, "leave", leave)
    monkeypatch.setattr(supervision, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(Left):
        run_guarded("x.py", raising(error))
    out, err = capsys.readouterr()
    assert out == ""
    assert without_frames(err) == message


class Left(BaseException):
    """In place of the end of this process, with its exit code."""


def without_frames(message):
    """A message without the frames of its traceback."""
    return re.sub(r"Traceback \(most recent call last\):\n(  .*\n)+", "", message)


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


def assert_reported_once_by(ended, rank, ranks):
    """Of all processes, the one that failed has printed its traceback, below a line that names it."""
    (message,) = [process.err for process in ended if "worker.py:" in process.err]
    assert (
        f"worker.py: rank {rank} of {ranks} failed: RuntimeError: boom\nTraceback (most recent call last):\n" in message
    )
    assert 'fail(RuntimeError("boom"))' in message
    assert message.count("boom") == 3  # in that line, in the traceback's line of source, and as its last


@pytest.mark.slow
@pytest.mark.parametrize("work", [ONE_RAISES, OTHERS_SLEEP], ids=["all_reduce", "sleep"])
def test_a_rank_that_fails_reports_and_the_others_end_quietly(run_ranks, tmp_path, work):
    ended = run_ranks(program(work), 3)
    failed_at = float((tmp_path / "failed_at").read_text())
    assert [process.code for process in ended] == [1, 1, 1]
    assert ended[0].err == ended[2].err == ""
    assert_reported_once_by(ended, 1, 3)
    # The one that failed ends first, so that a launcher names it; the others soon after.
    assert ended[1].at < min(ended[0].at, ended[2].at)
    assert max(process.at for process in ended) - failed_at < 4.0


@pytest.mark.slow
def test_without_a_launchers_store_rank_0s_serves(start_ranks, finish):
    ended = finish(start_ranks(program(ONE_RAISES), 2))
    assert [process.code for process in ended] == [1, 1]
    assert_reported_once_by(ended, 1, 2)
    assert ended[0].err == ""

    rank_0 = program(ONE_RAISES.replace("rank == 1", "rank == 0"))
    ended = finish(start_ranks(rank_0, 2))
    assert [process.code for process in ended] == [1, 1]
    assert_reported_once_by(ended, 0, 2)
    assert ended[1].err == ""


@pytest.mark.slow
def test_without_a_launchers_store_rank_0_may_end_first(start_ranks, finish):
    ended = finish(start_ranks(program("def work(rank, all_reduce): time.sleep(3 * rank)"), 2))
    assert [process.code for process in ended] == [0, 0]
    assert ended[1].at - ended[0].at > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_an_error_that_all_meet_is_reported_once_by_rank_0(run_ranks, slow):
    work = f"""
def work(rank, all_reduce):
    if rank == {slow}:
        time.sleep(2)
    raise ConfigError("the file is bad.")
"""
    ended = run_ranks(program(work), 2)
    assert [(process.code, process.err) for process in ended] == [(2, "worker.py: the file is bad.\n"), (2, "")]


@pytest.mark.slow
def test_an_error_that_one_rank_meets_is_reported_by_that_rank(run_ranks):
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
def test_an_unexpected_error_on_all_ranks_is_reported_once(run_ranks):
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
def test_before_the_watch_rank_0_reports_and_the_others_see_its_launcher_end(start_ranks, finish):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = start_ranks(program(EARLY.replace("AT", "(0, 1)")), 2, store)
    assert processes[0].wait(30) == 2
    assert processes[1].poll() is None
    del store
    start = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - start < 4.0 < supervision.PATIENCE_SECONDS
    assert [(process.code, process.err) for process in ended] == [(2, "worker.py: wrong flag.\n"), (2, "")]


@pytest.mark.slow
def test_before_the_watch_a_rank_alone_reports_and_ends_the_others(run_ranks):
    start = time.time()
    ended = run_ranks(program(EARLY.replace("AT", "(1,)")), 2)
    assert [(process.code, process.err) for process in ended] == [(2, ""), (2, "worker.py: rank 1 of 2: wrong flag.\n")]
    assert ended[0].at - start > supervision.PATIENCE_SECONDS


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
    time.sleep(2 * supervision.OTHERS_SECONDS)
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
    assert_reported_once_by(ended, 1, processes)
    # The launcher that ran the failed rank calls it the cause.
    (message,) = [launcher.err for launcher in ended if "worker.py:" in launcher.err]
    assert "rank      : 1 " in message.partition("Root Cause")[2]


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_through_the_launcher_a_wrong_flag_is_reported_once(launch, machines):
    ended = launch(CHECKOUT / "launch" / "train.py", "--epochs", "x", processes=4, machines=machines)
    assert [launcher.code for launcher in ended] == [1] * machines
    message = [line for launcher in ended for line in launcher.err.splitlines() if line.startswith("train.py: ")]
    assert message == ["train.py: train.epochs is 'x' (the command line): choose a whole number."]


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
import arcdist.distributed.supervision as guard

def main(watch):
    raise ConfigError("wrong flag.")

guard.leave = lambda code: sys.exit(f"{code} {'torch' in sys.modules}")
run_guarded("x.py", main)
"""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.stderr == "x.py: wrong flag.\n2 False\n"
