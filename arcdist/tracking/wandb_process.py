"""The process that holds a W&B run, apart from training: `python -m arcdist.tracking.wandb_process`.

It reads orders from standard input and answers each, a line of JSON a piece. W&B hooks itself into the process that
it runs in (`sys.exit`, `atexit`, signals on a click on its page), prints, and may hang or crash: here that harms
nothing. When the training process is gone, however it went, standard input ends, and so does this.
"""

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb

from arcdist.tracking.metrics import parse_validation
from arcdist.tracking.wandb_keys import PLOT, QUERIES, RUN, SHOWN, WHOLE
from arcdist.tracking.wandb_reader import steps_in
from arcdist.tracking.wandb_tables import query_table, shown_table

_SECONDS_WITHOUT_TRAINING = 10
"""For what is left to be sent once the training process is gone."""
_SECONDS_BETWEEN_FLUSHES = 1.0
_FATAL = "ERROR+4"
_NOT_DRAWN = ("step", "epoch", "flags")


class WandbProcess:
    """The orders that the training process gives, by name; each answers with what is sent back."""

    def __init__(self) -> None:
        self._run: Any = None
        self._about: dict[str, Any] = {}
        self._defined: set[str] = set()

    def open(
        self,
        *,
        mode: Literal["offline", "online"] | None,
        folder: str,
        project: str,
        entity: str | None,
        identity: dict[str, Any],
        config: dict[str, Any],
        about: dict[str, Any],
        init_seconds: float,
        finish_seconds: float,
    ) -> dict[str, Any]:
        """Begin the run or go on with it. A mode of none means online with a key, else offline.

        Returns its address where it is online, and what it has already: steps, and all before one.
        """
        self._about = {**identity, **about}
        # Read before W&B begins a folder of its own.
        held = steps_in(Path(folder) / "wandb", identity["id"])
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self._run = wandb.init(
            dir=folder,
            mode=mode,
            id=identity["id"],
            resume="allow",
            project=project,
            entity=entity,
            name=identity["name"],
            group=identity["group"],
            job_type="train",
            tags=about["tags"],
            config={**config, RUN: self._about},
            settings=_settings(init_seconds, finish_seconds),
        )
        self._define({"epoch": {}})
        for names in ("val/*", "floor/*", "epoch/*"):
            self._run.define_metric(names, step_metric="epoch", step_sync=False)
        self._run.define_metric(about["best_metric"], step_metric="epoch", step_sync=False, summary="max")
        offline = self._run.offline
        return {
            "url": None if offline else self._run.url,
            "steps": sorted(held) if offline else [],
            "before": 0 if offline else self._run.starting_step,
        }

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
        if ends_epoch:
            _require_upload(self._run)
        self._define(numbers)
        row = dict(numbers)
        if validation is not None:
            found = parse_validation(validation)
            columns, results = query_table(found)
            wandb.Table.MAX_ROWS = max(wandb.Table.MAX_ROWS, len(results))
            row[QUERIES] = wandb.Table(columns=columns, data=results)
            if found.shown:
                columns, pictures = shown_table(found, wandb.Image)
                row[SHOWN] = wandb.Table(columns=columns, data=pictures)
        if plot is not None and Path(plot).exists():
            row[PLOT] = wandb.Image(plot)
        self._run.log(row, step=step, commit=True)

    def log_best(self, *, folder: str) -> None:
        """Keep the best checkpoint as an artifact."""
        artifact = wandb.Artifact(f"best-{self._about['id']}", type="model")
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

    def read(self, *, path: str, seconds: int) -> dict[str, Any]:
        """The configuration, the rows and the tables, by their path, of a run on the server."""
        run = wandb.Api(timeout=seconds).run(path)
        rows = list(run.scan_history())
        paths = [row[name]["path"] for row in rows for name in (QUERIES, SHOWN) if isinstance(row.get(name), dict)]
        with tempfile.TemporaryDirectory() as folder:
            tables = {path: json.load(run.file(path).download(root=folder, replace=True)) for path in paths}
        return {"config": dict(run.config), "rows": rows, "tables": tables}

    def _define(self, numbers: Mapping[str, Any]) -> None:
        """Tell W&B of numbers that it sees for the first time: over what they are drawn, and which are whole.

        Name by name: a pattern for the numbers of a step would hold for those of an epoch as well.
        """
        fresh = numbers.keys() - self._defined
        self._defined |= fresh
        for name in sorted(fresh):
            over = None if name in _NOT_DRAWN else "step"
            if not name.startswith(("val/", "floor/", "epoch/")):
                self._run.define_metric(name, step_metric=over, step_sync=False, summary="last")
        whole = {name for name, value in numbers.items() if isinstance(value, int) and not isinstance(value, bool)}
        if not whole <= set(self._about[WHOLE]):
            self._about[WHOLE] = sorted(whole | set(self._about[WHOLE]))
            self._run.config.update({RUN: self._about}, allow_val_change=True)


def _settings(init_seconds: float, finish_seconds: float) -> wandb.Settings:
    return wandb.Settings(
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
        init_timeout=init_seconds,
        finish_timeout=finish_seconds,
        finish_timeout_raises=True,
        # Rows that are not flushed are lost when the whole job is killed; W&B's own 15 s are many steps.
        x_transaction_log_flush_interval=_SECONDS_BETWEEN_FLUSHES,
        # W&B's page can ask for an end of the run: nothing flows back into training.
        stop_fn=lambda: None,
    )


def _require_upload(run: Any) -> None:
    """W&B tells of an upload that it gave up, such as for a key that was revoked, in its own log only."""
    log = Path(run.dir).parent / "logs" / "debug-internal.log"
    if not log.exists():
        return
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            if f'"level":"{_FATAL}"' in line:
                raise RuntimeError(f"it has stopped sending; {json.loads(line)['msg']}")


def serve() -> None:
    """Carry out orders until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The end of the training process, which handles them, is what ends this one.
        signal.signal(number, signal.SIG_IGN)
    # What W&B prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    process = WandbProcess()
    for line in sys.stdin:
        order = json.loads(line)
        name = order.pop("order")
        try:
            answer = {"answer": getattr(process, name)(**order)}
        except Exception as error:  # Whatever it is: the training process says what is lost.
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    last = threading.Timer(_SECONDS_WITHOUT_TRAINING, os._exit, (1,))
    last.daemon = True
    last.start()
    with suppress(Exception):  # There is nobody to tell.
        process.finish(exit_code=1)
    wandb.teardown()
    # What W&B would send about itself at the end takes up to 20 s where the server hangs.
    os._exit(0)


if __name__ == "__main__":
    serve()
