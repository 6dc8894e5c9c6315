"""Everything a run holds, built from its configuration in one place."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from arcdist.config import Config
from arcdist.data import BucketedBatches, Collator, Origin, QueryBatch, build_queries, check_leaks, make_loader
from arcdist.data import read_tasks as read_source
from arcdist.engine import Engines
from arcdist.errors import DataError
from arcdist.random import stream
from arcdist.training.device import build_accelerator
from arcdist.training.models import Models, build_models
from arcdist.training.optim import build_engines

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuerySet:
    """Queries with the batches they come in and how they are seen."""

    queries: datasets.Dataset
    batches: BucketedBatches
    collator: Collator

    def loader(self, epoch: int, device: torch.device, max_batches: int | None = None) -> Iterator[QueryBatch]:
        """The batches of an epoch, at most so many, on the device."""
        rows = self.batches.batches(epoch)[:max_batches]
        return (batch.to(device) for batch in make_loader(self.queries, self.collator, rows, epoch))


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run, ready for its first step."""

    config: Config
    accelerator: Accelerator
    training: QuerySet
    validation: QuerySet
    models: Models
    engines: Engines
    refiner_optimizer: torch.optim.Optimizer
    steps_per_epoch: int

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return torch.device(self.accelerator.device)

    def refinement_noise(self, batch: QueryBatch, epoch: int) -> Float[Tensor, "B A"]:
        """The refiner's draw for each query, which depends on seed, epoch and query alone."""
        seed, width = self.config.train.seed, self.config.refiner.rl_prompt_dim + 1
        draws = [stream(seed, "refinement", epoch, query_id).standard_normal(width) for query_id in batch.ids]
        return torch.from_numpy(np.stack(draws).astype(np.float32)).to(self.device)


def build_session(config: Config) -> Session:
    """Read the data, check it, build models and engines.

    Raises:
        ArcdistError: of the kind that says whose mistake it is.
    """
    accelerator = build_accelerator(config.train)
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

    training, validation = build_queries(tasks, "train"), build_queries(scored, "test")
    _logger.info(
        "%s: %d tasks, %d training queries; %s: %d validation queries.",
        origin,
        len(tasks),
        len(training),
        scored_origin,
        len(validation),
    )
    models = build_models(config, len(tasks), torch.device(accelerator.device))
    task_rows = {task.id: row for row, task in enumerate(tasks)}
    augment = config.data.augment
    batches = BucketedBatches(
        training["length"][:],
        training["task"][:],
        batch_size=config.train.batch_size,
        window=data.bucket_window,
        seed=config.train.seed,
    )
    steps_per_epoch = min(len(batches), config.train.max_batches or len(batches))
    engines = build_engines(accelerator, models, config.optim, config.train.epochs * steps_per_epoch)
    models.refiner.to(accelerator.device)
    models.averaged_agent.module.to(accelerator.device)
    return Session(
        config=config,
        accelerator=accelerator,
        training=QuerySet(
            queries=training,
            batches=batches,
            collator=Collator(
                models.qwen.tokenizer,
                task_rows=task_rows,
                seed=config.train.seed,
                dihedral=augment.dihedral,
                colors=augment.colors,
                order=augment.order,
                max_grid_size=config.agent.max_grid_size,
            ),
        ),
        validation=QuerySet(
            queries=validation,
            # Without gradients a batch may be larger, and its neighbours do not matter: as little padding as can be.
            batches=BucketedBatches(
                validation["length"][:],
                validation["task"][:],
                batch_size=2 * config.train.batch_size,
                window=len(validation),
                seed=0,
            ),
            collator=Collator(models.qwen.tokenizer, task_rows=task_rows, max_grid_size=config.agent.max_grid_size),
        ),
        models=models,
        engines=engines,
        refiner_optimizer=models.refiner.make_optimizer(),
        steps_per_epoch=steps_per_epoch,
    )
