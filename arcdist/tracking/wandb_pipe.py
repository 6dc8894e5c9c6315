"""The connection to a process that does what W&B is needed for; see `wandb_process` for why it is another one."""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

_CONSOLE = "console.log"
_SECONDS_TO_ANSWER = 120.0
_SECONDS_TO_END = 5.0


class WandbError(Exception):
    """What W&B, or its process, says went wrong."""


class WandbPipe:
    """Such a process, which ends with this one at the latest."""

    def __init__(self, folder: Path) -> None:
        """Start it; what it prints and keeps for uploads lies in `folder`.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(exist_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            # Copies of what is to be uploaded.
            "WANDB_DATA_DIR": str(folder.resolve() / "data"),
            # Its own logs, which it would write below the folder that the user is in.
            "WANDB_DIR": str(folder.resolve()),
        }
        self._console = folder / _CONSOLE
        self._interrupted = False
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "arcdist.tracking.wandb_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                env=environment,
                # Ctrl-C is for training, which then ends this process in order.
                start_new_session=True,
            )

    def ask(self, order: str, *, patience: float = _SECONDS_TO_ANSWER, **values: Any) -> Any:
        """Have an order of `WandbProcess` carried out, within `patience` seconds.

        Raises:
            WandbError: it failed, or the process did.
        """
        orders, answers = self._pipes()
        try:
            orders.write(json.dumps({"order": order, **values}).encode() + b"\n")
            orders.flush()
            # The answer is one line, and comes whole.
            if not select.select([answers], [], [], patience)[0]:
                raise WandbError(f"no answer for {patience:.0f} s")
            line = answers.readline()
        except (OSError, ValueError) as error:
            raise WandbError(self._end_told(str(error))) from error
        if not line:
            raise WandbError(self._end_told("no answer"))
        answer = json.loads(line)
        if "error" in answer:
            raise WandbError(answer["error"])
        return answer["answer"]

    def interrupt(self) -> None:
        """End it, and what it started, at once; what waits for an answer fails. From any thread."""
        self._interrupted = True
        self._kill()

    def end(self) -> None:
        """End it, in order where it takes no longer than seconds."""
        for pipe in self._pipes():
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self) -> None:
        if self._process.poll() is not None:
            return
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        self._process.kill()

    def _end_told(self, how: str) -> str:
        if self._interrupted:
            return "no answer in time for the end of the run"
        return f"its process died: {how}; see {self._console}"

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout
