"""The process that W&B works in, apart from training: both of its ends.

W&B hooks itself into the process that it runs in (`sys.exit`, `atexit`), prints, and may hang or crash: here that harms
nothing. It reads orders from standard input and answers each, a line of JSON a piece. When the training process is
gone in any way, standard input ends, and so does this process.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any, TypeAlias

import psutil  # type: ignore[import-untyped]

from arcdist.errors import reason
from arcdist.tracking.metrics import parse_validation
from arcdist.tracking.mirror import EPOCH, EPOCH_ONLY

RUN, BEST_METRIC = "run", "best_metric"
"""The key of W&B's configuration that holds the identity, and in there what the best epoch is chosen by."""
QUERIES, SHOWN, PLOT = "validation/queries", "validation/shown", "metrics_plot"
"""Tables and the picture in a row of W&B's history."""
RESULT = ("exact", "cell", "confidence")
"""Columns of a query's result in the tables."""
GRIDS = "grids"
"""The column of the grids as JSON."""

VARIABLES = (
    *("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS", "WANDB_NOTES"),
    *("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DIR"),
)
"""What a user says of a run by the environment, besides where it goes. Training reads it, and W&B is given it."""
_ANSWERED = {*VARIABLES, "WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_ENTITY"}


class WandbError(Exception):
    """What W&B or its process reported."""


class WandbProcess:
    """The end that training holds."""

    def __init__(self, folder: Path, id: str) -> None:
        """Start it for the run of this id; what it prints and keeps for uploads lies in `folder`.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(exist_ok=True)
        root = str(Path(__file__).resolve().parents[2])
        # In a sweep, W&B takes the place and the id of the run from its variables, and not from what it is given.
        left_out = _ANSWERED - ({"WANDB_PROJECT", "WANDB_ENTITY"} if os.environ.get("WANDB_SWEEP_ID") else set())
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                # W&B fails with some that are empty.
                if not name.startswith("WANDB_") or (value and name not in {*left_out, "WANDB_SERVICE"})
            },
            "WANDB_RUN_ID": id,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(folder.resolve() / "data"),  # copies of files that are being uploaded
            "WANDB_DIR": str(folder.resolve()),  # W&B's own logs, by default below the current folder
        }
        self._console = folder / "console.log"
        self._interrupted = False
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                env=environment,
                start_new_session=True,  # Ctrl-C is for training, which then ends this process in order
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def ask(self, order: str, **values: Any) -> Any:
        """Have an order of `RunWriter` carried out.

        Raises:
            WandbError: it failed, or the process did.
        """
        try:
            self._orders.write(json.dumps({"order": order, **values}).encode() + b"\n")
            self._orders.flush()
            # The answer is one line, and arrives whole.
            if not select.select([self._answers], [], [], 120.0)[0]:
                self._kill()  # A late answer would be taken for the next order's.
                raise WandbError("no answer for 120 s")
            line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise WandbError(self._death(reason(error))) from error
        if not line:
            raise WandbError(self._death("no answer"))
        answer = json.loads(line)
        if "error" in answer:
            raise WandbError(answer["error"])
        return answer["answer"]

    def interrupt(self) -> None:
        """End it and its children at once, so that `ask` fails; from any thread."""
        self._interrupted = True
        self._kill()

    def end(self) -> None:
        """End it, in order if that takes seconds only."""
        for pipe in (self._orders, self._answers):
            with suppress(OSError):
                pipe.close()
        try:
            self._process.wait(5.0)
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

    def _death(self, how: str) -> str:
        if self._interrupted:
            return "no answer in time for the end of the run"
        return f"its process died: {how}; see {self._console}"


class RunWriter:
    """The orders that the training process gives, by name; each answers with what is sent back."""

    _run: Any = None

    def open(
        self,
        *,
        mode: str | None,
        folder: str,
        project: str,
        entity: str | None,
        about: dict[str, Any],
        variables: dict[str, str],
        config: dict[str, Any],
        init_seconds: float,
        finish_seconds: float,
    ) -> dict[str, Any]:
        """Begin the run or continue it. A mode of None means online with a key, else offline.

        `variables` are those of `VARIABLES` that count for the run.

        Returns its address if it is online, and what it has already: `steps`, and all `before` one.
        """
        import wandb

        # Read before W&B begins a new folder.
        steps = steps_in(Path(folder) / "wandb", about["id"])
        self._run = wandb.init(
            dir=folder,
            mode=mode or ("online" if wandb.login(prompt=False, verify=False) else "offline"),  # type: ignore[arg-type]
            id=about["id"],
            resume=variables.get("WANDB_RESUME", "allow"),  # type: ignore[arg-type]
            project=project,
            entity=entity,
            name=variables.get("WANDB_NAME", about["name"]),
            group=variables.get("WANDB_RUN_GROUP", about["group"]),
            job_type=variables.get("WANDB_JOB_TYPE", "train"),
            notes=variables.get("WANDB_NOTES"),
            tags=list(dict.fromkeys([*about["tags"], *tags_in(variables)])),
            config={**config, RUN: about},
            settings=wandb.Settings(
                silent=True,
                console="off",
                # Nothing of this is the run's: code, Git's state, packages, what the machine is and does.
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_save_requirements=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                host="",
                symlink=False,
                use_dot_wandb=False,  # the log names the folder
                init_timeout=init_seconds,
                finish_timeout=finish_seconds,
                finish_timeout_raises=True,
                # Rows that are not flushed are lost when the whole job is killed; by default it is 15 s, many steps.
                x_transaction_log_flush_interval=1.0,
                # W&B's page can ask for the end of a run: training takes no orders from it.
                stop_fn=lambda: None,
            ),
        )
        self._run.define_metric("epoch")
        for beginning in (EPOCH, *EPOCH_ONLY):
            self._run.define_metric(f"{beginning}*", step_metric="epoch", step_sync=False)
        self._run.define_metric(about[BEST_METRIC], step_metric="epoch", step_sync=False, summary="max")
        if self._run.offline:
            return {"url": None, "steps": sorted(steps), "before": 0}
        return {"url": self._run.url, "steps": [], "before": self._run.starting_step}

    def log(
        self,
        *,
        step: int,
        numbers: dict[str, Any],
        ends_epoch: bool,
        validation: dict[str, Any] | None,
        plot: str | None,
    ) -> None:
        """Write the row of a training step.

        Raises:
            RuntimeError: an epoch has ended, and W&B sends nothing any more.
        """
        import wandb

        if ends_epoch:
            _require_upload(self._run)
        row = dict(numbers)
        if validation is not None:
            columns, results = query_table(validation)
            wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(results))
            row[QUERIES] = wandb.Table(columns=columns, data=results)
            columns, shown = shown_table(validation, wandb.Image)
            if shown:
                row[SHOWN] = wandb.Table(columns=columns, data=shown)
        if plot is not None and Path(plot).exists():
            row[PLOT] = wandb.Image(plot)
        self._run.log(row, step=step, commit=True)

    def log_best(self, *, folder: str) -> None:
        """Keep the best checkpoint as an artifact."""
        import wandb

        artifact = wandb.Artifact(f"best-{self._run.id}", type="model")
        artifact.add_dir(folder)
        self._run.log_artifact(artifact)

    def finish(self, *, exit_code: int) -> None:
        """End the run, once all is written and sent; a second time nothing happens.

        Raises:
            RuntimeError: not all was sent.
            TimeoutError: not all was sent in time.
        """
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=exit_code)
            _require_upload(run)


def tags_in(variables: Mapping[str, str]) -> list[str]:
    """The tags of `WANDB_TAGS`, which commas separate."""
    return [tag.strip() for tag in variables.get("WANDB_TAGS", "").split(",") if tag.strip()]


Table: TypeAlias = tuple[list[str | int], list[list[Any]]]
"""Names of the columns, and the rows."""


def query_table(validation: Mapping[str, Any]) -> Table:
    """How well each query of a validation, in JSON, was answered."""
    rows = [[name, *(result[key] for key in RESULT)] for name, result in validation["results"].items()]
    return ["id", *RESULT], rows


def shown_table(validation: Mapping[str, Any], wrap: Callable[[Any], Any]) -> Table:
    """The shown queries of a validation, in JSON: result, and picture and JSON of the grids; `wrap` makes a cell."""
    from arcdist.tracking.grids import query_picture

    rows = []
    for query in parse_validation(validation).shown:
        result = validation["results"].get(query.id, {})
        grids = {name: grid for name, grid in asdict(query).items() if name != "id"}
        values = (result.get(key) for key in RESULT)
        rows.append([query.id, wrap(query_picture(query)), *values, json.dumps(grids, separators=(",", ":"))])
    return ["id", "picture", *RESULT, GRIDS], rows


def steps_in(folder: Path, id: str) -> set[int]:
    """The steps of a run whose rows are in the files that W&B wrote below `folder`, even if a file is cut off."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    steps = set()
    for path in folder.glob(f"*run-*-{escape(id)}*/run-*.wandb"):
        for content in _records(path.read_bytes()):
            record = Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                steps.add(record.history.step.num)
    return steps


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of a `.wandb` file: LevelDB's log format after a header of seven bytes."""
    block, header = 32768, struct.Struct("<IHB")  # checksum, length, kind
    full, first, last = 1, 2, 4
    position, record = 7, b""
    while position + header.size <= len(content):
        if block - position % block < header.size:  # padding, too short for a header
            position += block - position % block
            continue
        checksum, length, kind = header.unpack_from(content, position)
        position += header.size
        part = content[position : position + length]
        if len(part) < length or checksum != zlib.crc32(part, zlib.crc32(bytes([kind]))):
            return
        position += length
        record = part if kind in (full, first) else record + part
        if kind in (full, last):
            yield record


def _require_upload(run: Any) -> None:
    """W&B reports that it gave up uploading, such as for a revoked key, only in a log."""
    log = Path(run.dir).parent / "logs" / "debug-internal.log"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        if '"level":"ERROR+4"' in line:  # fatal
            raise RuntimeError(f"it has stopped sending; {json.loads(line)['msg']}")


def serve() -> None:
    """Carry out orders until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training process handles them, and ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what W&B prints is no answer
    writer = RunWriter()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = {"answer": getattr(writer, order.pop("order"))(**order)}
        except Exception as error:  # the training process reports it
            # W&B says in its later lines what is wrong with a setting.
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Training has ended, in order or not: the rest is sent if that takes seconds only.
    last = threading.Timer(10.0, os._exit, (1,))
    last.daemon = True
    last.start()
    with suppress(Exception):  # nothing is there to report to
        writer.finish(exit_code=1)
    import wandb

    wandb.teardown()
    # What W&B would send about itself at the end takes up to 20 s if the server hangs.
    os._exit(0)
