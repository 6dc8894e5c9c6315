"""Everything a run holds, built from its configuration in one place."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.data import BucketedBatches, Collator, Dealer, Origin, build_queries, check_leaks, tasks_digest
from arcdist.data import read_tasks as read_source
from arcdist.distributed.agreement import check_agreement
from arcdist.engine import Engines
from arcdist.engine.platform import Platform, start_platform
from arcdist.errors import DataError
from arcdist.models import attention_share
from arcdist.random import stream
from arcdist.training.models import Models, build_models
from arcdist.training.optim import build_engines
from arcdist.training.query_set import DealtBatch, QuerySet

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run, ready for its first step."""

    config: Config
    accelerator: Accelerator
    training: QuerySet
    validation: QuerySet
    models: Models
    engines: Engines
    steps_per_epoch: int
    data: dict[str, str]
    """Checksums of the tasks for `training` and `validation`."""
    zero: dict[str, Any] | None
    """DeepSpeed's effective configuration; none without DeepSpeed."""

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return torch.device(self.accelerator.device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks to the user and writes files."""
        return self.accelerator.is_main_process

    def refinement_noise(self, batch: DealtBatch, epoch: int) -> tuple[Float[Tensor, "_ A"], ...]:
        """The refiner's draw for each query of each pass, which depends on seed, epoch and query alone."""
        return tuple(self._draws(queries.ids, epoch) for queries in batch.queries)

    def _draws(self, ids: Sequence[str], epoch: int) -> Float[Tensor, "B A"]:
        seed, width = self.config.train.seed, self.config.refiner.rl_prompt_dim + 1
        draws = [stream(seed, "refinement", epoch, query_id).standard_normal(width) for query_id in ids]
        return torch.from_numpy(np.stack(draws).astype(np.float32)).to(self.device)


def build_session(
    config: Config, platform: Platform | None = None, doing: Callable[[str], None] = lambda _: None
) -> Session:
    """Read the data, check it, build models and engines.

    Args:
        config: of the run.
        platform: what it computes on, where that has been started already.
        doing: is told what comes next.

    Raises:
        ArcdistError: of the kind that says whose mistake it is.
    """
    platform = platform or start_platform(config)
    accelerator = platform.accelerator
    check_agreement(_shared_settings(config))
    doing("reading tasks")
    data = config.data
    origin = Origin(data.source, data.split)
    tasks = read_source(*origin, data.max_side, data.max_tasks)
    if data.validation_source is None:
        scored_origin, scored = origin, tasks
    else:
        scored_origin = Origin(data.validation_source, data.validation_split)
        scored = read_source(*scored_origin, data.max_side, data.max_tasks)
    if not any(pair.output is not None for task in scored for pair in task.tests):
        raise DataError(
            f"{scored_origin}: no test pair has an output, so that nothing can be scored: give at least one its "
            f"output (Kaggle's are in the solutions file, which belongs beside the challenges), or name other tasks "
            f"with --data.validation_source."
        )
    leaks = check_leaks(tasks, scored, origin, scored_origin, data.allow_overlap)
    if leaks.shared_ids or leaks.shared_contents:
        _logger.warning(
            "%d scored tasks are trained on by id, %d by content: data.allow_overlap names %s.",
            leaks.shared_ids,
            leaks.shared_contents,
            scored_origin.source,
        )

    digests = {"training": tasks_digest(tasks), "validation": tasks_digest(scored)}
    check_agreement({f"the checksum of the {role} tasks": digest for role, digest in digests.items()})
    # What the first process of a machine prepares, the others find in the cache.
    with accelerator.local_main_process_first():
        training, validation = build_queries(tasks, "train"), build_queries(scored, "test")
    _logger.info(
        "%s: %d tasks, %d training queries; %s: %d validation queries.",
        origin,
        len(tasks),
        len(training),
        scored_origin,
        len(validation),
    )
    doing("loading weights")
    models = build_models(config, len(tasks), torch.device(accelerator.device), platform.sharding)
    train, augment = config.train, data.augment
    batches = BucketedBatches(
        training["length"][:],
        training["task"][:],
        batch_size=train.batch_size,
        window=data.bucket_window,
        seed=train.seed,
    )
    steps_per_epoch = min(len(batches), train.max_batches or len(batches))
    zero = platform.zero_config(config, models.qwen.body.config.hidden_size)
    doing("preparing the engines")
    engines = build_engines(accelerator, models, config, train.epochs * steps_per_epoch, zero)
    models.averaged_agent.module.to(accelerator.device)
    models.averaged_agent.restart()

    task_rows = {task.id: row for row, task in enumerate(tasks)}
    collate = partial(Collator, models.qwen.tokenizer, task_rows=task_rows, max_grid_size=config.agent.max_grid_size)

    def dealt(queries: datasets.Dataset, passes: int) -> Dealer:
        return Dealer(
            queries["length"][:],
            processes=accelerator.num_processes,
            passes=passes,
            quadratic=attention_share(models.qwen.body.config),
        )

    process = accelerator.process_index
    return Session(
        config=config,
        accelerator=accelerator,
        training=QuerySet(
            training,
            batches,
            collate(seed=train.seed, dihedral=augment.dihedral, colors=augment.colors, order=augment.order),
            dealt(training, train.accumulation),
            process,
        ),
        validation=QuerySet(
            validation,
            # Without gradients a batch may be larger, and its neighbours do not matter: as little padding as can be.
            BucketedBatches(
                validation["length"][:],
                validation["task"][:],
                batch_size=max(accelerator.num_processes, 2 * train.batch_size // train.accumulation),
                window=len(validation),
                seed=0,
            ),
            collate(),
            dealt(validation, 1),
            process,
        ),
        models=models,
        engines=engines,
        steps_per_epoch=steps_per_epoch,
        data=digests,
        zero=zero,
    )


def _shared_settings(config: Config) -> dict[str, str]:
    """Every value that has to be the same on all machines; where data lies need not, what is in it is compared."""
    own = ("output.", "data.source", "data.validation_source", "train.cpu_threads")
    return {name: repr(value) for name, value in flatten(config).items() if not name.startswith(own)}
