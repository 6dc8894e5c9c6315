"""A process that waits for runs, and forks one for each after importing what all of them import.

A forked process begins as a new one does after its imports: without a session, a process group or a thread. Importing
is most of what a run of seconds costs. `shared.ranks` starts this program, by itself or under a launcher.
"""

import os
import runpy
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from arcdist.cli import quick_imports


def become(run: dict) -> None:
    """Be the process of a run, from here to its end."""
    for descriptor, stream in ((1, "out"), (2, "err")):
        file = os.open(run[stream], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    os.chdir(run["folder"])
    os.environ.update(run["environment"])
    program, *_ = sys.argv = run["command"]
    sys.path[0] = str(Path(program).parent)
    runpy.run_path(program, run_name="__main__")


def wait_for_runs(connection: Connection) -> dict | None:
    """The run that this process, forked, has to be; none if there are no more and this is still the one that waits."""
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return None
        child = os.fork()
        if child == 0:
            connection.close()
            return run
        connection.send(child)
        connection.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


with quick_imports():
    import arcdist.solving.evaluate
    import arcdist.training.run

    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import arcdist.engine.deepspeed  # noqa: F401

caller = socket.socket(socket.AF_UNIX)
caller.connect(os.environ["CALLER"])
connection = Connection(caller.detach())
connection.send(int(os.environ.get("RANK", "0")))
run = wait_for_runs(connection)
if run is not None:
    become(run)
