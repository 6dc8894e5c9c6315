import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """\
import sys
from pathlib import Path
from arcdist.distributed.guard import run_guarded
from arcdist.errors import ConfigError
from arcdist.tracking.log import console, open_log
from arcdist.tracking.progress import ProgressBar

def main(watch):
    with open_log(Path(sys.argv[1])) as log, ProgressBar(3, interval=0.0) as bar:
        for step in range(3):
            log.info("step %d", step)
            bar.advance()
            console().print("a table")
    if sys.argv[2:]:
        raise ConfigError("too late.")

sys.exit(run_guarded("x.py", main))
"""


def run(folder, error, *flags):
    program = [sys.executable, "-c", RUN, str(folder), *flags]
    return subprocess.run(program, stdout=subprocess.PIPE, stderr=error, timeout=30, check=False)


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


def test_a_run_goes_on_to_its_end_when_nobody_reads_it(tmp_path, lost):
    file, why = lost
    ended = run(tmp_path, file)
    assert (ended.returncode, ended.stdout) == (0, b"")
    told = [line.split(maxsplit=2)[2] for line in (tmp_path / "training.log").read_text().splitlines()]
    loss = f"WARNING Standard error takes no more ({why}): what follows stands in this file alone."
    assert sorted(told) == sorted([loss, "INFO step 0", "INFO step 1", "INFO step 2"])


def test_an_error_that_nobody_reads_has_its_exit_code(tmp_path, lost):
    assert run(tmp_path, lost[0], "--fail").returncode == 2


def test_what_is_read_is_whole(tmp_path):
    ended = run(tmp_path, subprocess.PIPE, "--fail")
    lines = ended.stderr.decode().splitlines()
    assert [line for line in lines if line == "a table"] == 3 * ["a table"]
    assert [line.split()[1:] for line in lines if " step " in line] == [["step", str(step)] for step in range(3)]
    assert lines[-1] == "x.py: too late."
