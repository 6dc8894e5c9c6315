"""Runs that are kept for W&B as well: one run a job, each step once, and no outage that stalls training."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from shared.measured import without_measured
from shared.wandb_files import read_wandb_files, wandb_files

from arcdist.analysis.record import read_run_folder

pytestmark = pytest.mark.slow

KEPT = ("--tracking.wandb", "offline", "--output.validate_every", "1")
STEPS = list(range(1, 16))


def assert_each_step_is_there_once(run: Path) -> None:
    """W&B's files hold what the run folder holds."""
    folder, kept = read_run_folder(run), read_wandb_files(run)
    assert kept.identity == folder.identity
    assert dict(kept.config) == dict(folder.config)
    assert [step["step"] for step in kept.steps] == STEPS
    assert without_measured([dict(step) for step in kept.steps]) == without_measured(
        [dict(step) for step in folder.steps]
    )
    assert without_measured([dict(epoch) for epoch in kept.epochs]) == without_measured(
        [dict(epoch) for epoch in folder.epochs]
    )
    assert {validation.epoch: dict(validation.results) for validation in kept.validations} == {
        validation.epoch: dict(validation.results) for validation in folder.validations
    }


def test_a_run_that_is_stopped_and_resumed_is_one_run_with_each_step_once(start):
    stopped = start(*KEPT, launcher=False)
    stopped.wait_for_step(7)
    stopped.launcher.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143
    resumed = start(*KEPT, "--resume", launcher=False)
    assert resumed.wait() == 0, resumed.output
    assert 7 <= resumed.resumed_from < 15
    assert len(wandb_files(start.run)) == 2
    assert_each_step_is_there_once(start.run)


def test_a_run_that_is_killed_and_resumed_is_one_run_with_each_step_once(start):
    # In the third epoch, whose steps after the last checkpoint are trained twice.
    killed = start(*KEPT, fault={"do": "kill", "match": "write steps.jsonl", "at": 14}, launcher=False)
    assert killed.wait() == -signal.SIGKILL
    # What an epoch leaves is whole, whenever the next one is cut off.
    metrics = json.loads((start.run / "metrics.json").read_text())
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [0, 1]
    with Image.open(start.run / "metrics_plot.png") as plot:
        plot.load()
        assert plot.size == (1200, 800)
    resumed = start(*KEPT, "--resume", launcher=False)
    assert resumed.wait() == 0, resumed.output
    assert_each_step_is_there_once(start.run)


def test_of_two_processes_one_keeps_one_run(start):
    attempt = start(*KEPT, processes=2)
    assert attempt.wait() == 0, attempt.output
    assert len(list(start.place.rglob("*.wandb"))) == 1
    assert_each_step_is_there_once(start.run)
    assert attempt.output.count("wandb sync") == 1


@pytest.fixture(params=["errors", "silence", pytest.param("hanging up", marks=pytest.mark.exhaustive)])
def broken_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that never gives an answer that is worth something."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if request.param == "errors":
                self.send_error(500)
            elif request.param == "silence":
                released.wait(60)
            else:
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    released.set()
    server.shutdown()
    server.server_close()


def test_a_server_that_is_out_of_order_costs_neither_the_run_nor_a_number(start, broken_server):
    flags = ("--tracking.wandb", "online", "--output.validate_every", "1")
    attempt = start(*flags, launcher=False, environment={"WANDB_BASE_URL": broken_server})
    attempt.wait_for_step(15)
    trained = time.monotonic()
    assert attempt.wait() == 0, attempt.output
    assert time.monotonic() - trained < 45  # validation and the last checkpoint included
    assert "Traceback" not in attempt.output
    assert "wandb sync" in attempt.output
    assert_each_step_is_there_once(start.run)
    # A step has not waited for the server: of all the time, next to nothing went into keeping numbers.
    last = read_run_folder(start.run).steps[-1]
    assert last["time/tracking_s"] < 0.5 * last["time/elapsed_s"]
