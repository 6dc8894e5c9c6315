"""What command-line programs share."""

import errno
import gc
import io
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from arcdist.cli import quick_imports, standard_error

RUN = """\
import sys
from pathlib import Path
from arcdist.distributed.supervision import run_guarded
from arcdist.errors import ConfigError
from arcdist.tracking.console import open_log, shared_console
from arcdist.tracking.console import ProgressBar

def main(watch):
    with open_log(Path(sys.argv[1])) as log, ProgressBar(3, interval=0.0) as bar:
        for step in range(3):
            log.info("step %d", step)
            bar.advance()
            shared_console().print("a table")
    if sys.argv[2:]:
        raise ConfigError("too late.")

sys.exit(run_guarded("x.py", main))
"""


def run(folder, error, *flags):
    program = [sys.executable, "-c", RUN, str(folder), *flags]
    return subprocess.run(program, stdout=subprocess.PIPE, stderr=error, timeout=30, check=False)


def logged(folder):
    return [line.split(maxsplit=2)[2] for line in (folder / "training.log").read_text().splitlines()]


STEPS = ["INFO step 0", "INFO step 1", "INFO step 2"]


@pytest.fixture(params=["Broken pipe", "No space left on device"])
def lost(request):
    """Something that takes nothing, and what it says."""
    if request.param == "Broken pipe":
        reader, writer = os.pipe()
        os.close(reader)
    elif Path("/dev/full").exists():
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        pytest.skip("no /dev/full here")
    yield writer, request.param
    os.close(writer)


def test_a_run_continues_to_its_end_when_nobody_reads_it(tmp_path, lost):
    file, why = lost
    ended = run(tmp_path, file)
    assert (ended.returncode, ended.stdout) == (0, b"")
    loss = f"WARNING Standard error takes nothing ({why}): what it misses of the log is in this file."
    assert sorted(logged(tmp_path)) == sorted([loss, *STEPS])


def test_an_error_that_nobody_reads_has_its_exit_code(tmp_path, lost):
    assert run(tmp_path, lost[0], "--fail").returncode == 2


def test_what_is_read_is_whole(tmp_path):
    ended = run(tmp_path, subprocess.PIPE, "--fail")
    lines = ended.stderr.decode().splitlines()
    assert [line for line in lines if line == "a table"] == 3 * ["a table"]
    assert [line.split()[1:] for line in lines if " step " in line] == [["step", str(step)] for step in range(3)]
    assert lines[-1] == "x.py: too late."


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--fail",), 2)])
def test_streams_that_are_closed_from_the_start_change_no_exit_code(tmp_path, closed, flags, code):
    program = shlex.join([sys.executable, "-c", RUN, str(tmp_path), *flags])
    ended = subprocess.run(f"{program} {closed}", shell=True, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code
    assert [line for line in logged(tmp_path) if line in STEPS] == STEPS
    if "2>" not in closed:
        assert ended.stderr.endswith("x.py: too late.\n" if flags else "a table\n")


def test_a_run_on_a_terminal_continues_without_it(tmp_path):
    there, terminal = pty.openpty()
    program = RUN.replace("range(3)", "range(8)").replace("bar.advance()", "bar.advance(); time.sleep(0.3)")
    started = subprocess.Popen(
        [sys.executable, "-c", f"import time\n{program}", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    seen = b""
    while b"a table" not in seen:
        seen += os.read(there, 65536)
    os.close(there)
    assert started.wait(timeout=30) == 0
    assert b"\x1b[" in seen  # It drew.
    lines = logged(tmp_path)
    assert [line for line in lines if line.startswith("INFO")] == [f"INFO step {step}" for step in range(8)]
    assert any("Standard error takes nothing (Input/output error)" in line for line in lines)


def test_a_disk_that_has_room_again_is_written_on(monkeypatch):
    class Disk(io.StringIO):
        full = False

        def write(self, text):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stderr", disk)
    standard_error.write("one ")
    disk.full = True
    assert standard_error.write("two ") == 4
    disk.full = False
    standard_error.write("three")
    assert disk.getvalue() == "one three"


PROGRAM = """\
import gc, sys
from arcdist.cli import quick_imports

def raised():
    with quick_imports():
        raise ImportError("none such")

try:
    raised()
except ImportError:
    print(gc.isenabled(), gc.get_freeze_count())
with quick_imports():
    print(gc.isenabled())
    import torch
    import arcdist.training.run
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_what_is_imported_is_looked_through_never_and_what_comes_after_as_ever():
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.splitlines() == ["True 0", "False", "True True"]


def test_in_a_process_that_has_torch_nothing_is_changed():
    assert "torch" in sys.modules
    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
