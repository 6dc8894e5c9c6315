"""Everything a run holds, built from its configuration in one place."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from arcdist.config import Config, OptimConfig
from arcdist.config.keys import flatten
from arcdist.data import BucketedBatches, Collator, Partitioner, build_queries, read_task_sets, tasks_digest
from arcdist.data.batch import DistributedBatch
from arcdist.data.sampler import QuerySet
from arcdist.distributed.collectives import check_agreement
from arcdist.engine import Engine, Engines, OptimizerSettings, ParameterGroup, PlainEngine, Precision, RateShare
from arcdist.engine.platform import Platform, start_platform
from arcdist.formatting import counted
from arcdist.models import attention_share
from arcdist.rng import stream
from arcdist.training.models import Models, build_models

_logger = logging.getLogger(__name__)


def learning_rate_share(optim: OptimConfig, total_steps: int | None) -> RateShare:
    """How the learning rates go: a linear warm-up of at most a tenth of the run, then down to `optim.final_lr_share`.

    `cosine` falls along half a cosine: from the end of the warm-up or, by time, from the start, since how long a
    warm-up of so many steps takes is not known. `wsd` stays at the peak until the last `optim.decay_share` of the run,
    and falls linearly there.

    Args:
        optim: of the run.
        total_steps: of a run that ends by steps, whatever time it has used; None for one that ends by time.
    """
    final, most = optim.final_lr_share, optim.warmup_steps
    warmup = max(1, most if total_steps is None else min(most, total_steps // 10))

    def share(steps: int, budget_used: float) -> float:
        rising = (steps + 1) / warmup
        if total_steps is None:
            rising, progress, falling_since = max(rising, 10.0 * budget_used), budget_used, budget_used
        else:
            progress, falling_since = steps / total_steps, (steps - warmup) / max(1, total_steps - warmup)
        if optim.schedule == "wsd":
            left = min(1.0, max(0.0, 1.0 - progress) / optim.decay_share)
            return min(rising, 1.0 - (1.0 - final) * (1.0 - left))
        if falling_since < 0.0:
            return rising
        return min(rising, final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, falling_since))))

    return share


def alternate(schedule: RateShare, total_steps: int | None, alone_share: float) -> tuple[RateShare, RateShare]:
    """How the learning rates of all but the refiner go, and how the refiner's goes, which needs no schedule.

    In the last `alone_share` of the run only the refiner learns, before it only the others; 0: all learn all the time.

    Args:
        schedule: of the others, of a run that ends where the refiner begins.
        total_steps: of a run that ends by steps; None for one that ends by time.
        alone_share: 0 up to 1.
    """
    if not alone_share:
        return schedule, lambda _steps, _budget_used: 1.0

    def alone(steps: int, budget_used: float) -> bool:
        return (budget_used if total_steps is None else steps / total_steps) >= 1.0 - alone_share

    def others(steps: int, budget_used: float) -> float:
        return 0.0 if alone(steps, budget_used) else schedule(steps, budget_used / (1.0 - alone_share))

    return others, lambda steps, budget_used: float(alone(steps, budget_used))


def build_engines(
    accelerator: Accelerator,
    models: Models,
    config: Config,
    total_steps: int | None,
    zero: Mapping[str, Any] | None = None,
) -> Engines:
    """Give every trainable parameter its engine and its learning rate.

    Args:
        accelerator: places the models.
        models: of the run.
        config: of the run.
        total_steps: length of the schedule; None if the run ends by time.
        zero: DeepSpeed's whole configuration, for an accelerator that was started under DeepSpeed.
    """
    optim, alone_share = config.optim, config.refiner.alone_share
    scheduled_steps = None if total_steps is None else math.ceil(total_steps * (1.0 - alone_share))
    others, refiners = alternate(learning_rate_share(optim, scheduled_steps), total_steps, alone_share)
    settings = OptimizerSettings(
        schedule=others,
        max_grad_norm=optim.max_grad_norm,
        weight_decay=optim.weight_decay,
        betas=(0.9, optim.beta2),
    )
    precision = Precision(config.train.precision, torch.device(accelerator.device))
    qwen_groups = [
        ParameterGroup(name=name, parameters=parameters, lr=optim.qwen_lr)
        for name, parameters in models.qwen.trainable_parameters().items()
    ]
    grid_module = nn.ModuleDict({"agent": models.agent, "solver": models.solver, "efe": models.efe})
    refiner = ParameterGroup(name="refiner", parameters=list(models.refiner.parameters()), lr=config.refiner.rl_lr)
    # A policy near zero is no likelier than another.
    refiner_settings = OptimizerSettings(
        schedule=refiners,
        max_grad_norm=config.refiner.rl_grad_clip,
        weight_decay=0.0,
        betas=(0.9, 0.999),
    )
    qwen: Engine
    if zero is None:
        qwen = PlainEngine(accelerator, models.qwen, qwen_groups, settings, precision)
    else:
        from arcdist.engine.deepspeed import DeepSpeedEngine

        qwen = DeepSpeedEngine(accelerator, models.qwen, qwen_groups, settings, precision, zero)
    return Engines(
        qwen=qwen,
        grid=PlainEngine(accelerator, grid_module, _grid_groups(models, optim), settings, precision),
        refiner=PlainEngine(accelerator, models.refiner, [refiner], refiner_settings, precision),
        precision=precision,
    )


def _grid_groups(models: Models, optim: OptimConfig) -> list[ParameterGroup]:
    lr = optim.agent_lr
    table = [] if models.agent.task_vectors is None else list(models.agent.task_vectors.parameters())
    matrices = models.agent.matrices() if optim.matrix_optimizer == "muon" else []
    apart = {id(parameter) for parameter in (*table, *matrices)}
    agent = [parameter for parameter in models.agent.parameters() if id(parameter) not in apart]
    groups = [
        ParameterGroup(name="agent", parameters=agent, lr=lr),
        ParameterGroup(name="solver", parameters=list(models.solver.parameters()), lr=lr * optim.solver_lr_scale),
        ParameterGroup(name="efe", parameters=list(models.efe.parameters()), lr=lr * optim.efe_lr_scale),
    ]
    if table:
        scaled = lr * optim.task_vector_lr_scale
        groups.append(ParameterGroup(name="task_vectors", parameters=table, lr=scaled))
    if matrices:
        groups.append(ParameterGroup(name="agent_matrices", parameters=matrices, lr=optim.muon_lr, optimizer="muon"))
    return groups


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
    task_counts: dict[str, dict[str, int]]
    """How many tasks `training` and `validation` use, and how many each limit leaves out."""
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

    def refinement_noise(self, batch: DistributedBatch, epoch: int) -> tuple[Float[Tensor, "_ K A"], ...]:
        """The refiner's K draws for each query of each pass, which depend on seed, epoch and query alone."""
        return tuple(self._draws(queries.ids, epoch) for queries in batch.queries)

    def _draws(self, ids: Sequence[str], epoch: int) -> Float[Tensor, "N K A"]:
        seed, size = self.config.train.seed, (self.config.refiner.draws, self.config.qwen.prompt_dim + 1)
        draws = [stream(seed, "refinement", epoch, query_id).standard_normal(size) for query_id in ids]
        return torch.from_numpy(np.stack(draws).astype(np.float32)).to(self.device)


def build_session(
    config: Config, platform: Platform | None = None, doing: Callable[[str], None] = lambda _: None
) -> Session:
    """Read the data, check it, build models and engines.

    Args:
        config: of the run.
        platform: what it computes on, where that has been started already.
        doing: called with a few words on what comes next, before each part.

    Raises:
        ArcdistError: of the kind that says whose mistake it is.
    """
    platform = platform or start_platform(config)
    accelerator = platform.accelerator
    check_agreement(_shared_settings(config))
    doing("reading tasks")
    sets = read_task_sets(config.data)
    sets.check_scored()
    leaks = sets.check_leaks(config.data.allow_overlap)
    if leaks.shared_ids or leaks.shared_contents:
        _logger.warning(
            "%d scored tasks are trained on by id, %d by content: data.allow_overlap names %s.",
            leaks.shared_ids,
            leaks.shared_contents,
            sets.validation.origin.source,
        )
    tasks, scored = sets.training.used, sets.validation.used

    digests = {"training": tasks_digest(tasks), "validation": tasks_digest(scored)}
    check_agreement({f"the checksum of the {role} tasks": digest for role, digest in digests.items()})
    # What the first process of a machine prepares, the others find in the cache.
    with accelerator.local_main_process_first():
        training, validation = build_queries(tasks, "train"), build_queries(scored, "test")
    scored_of = f"{sets.validation.summary(config.data)}," if len(sets.distinct) > 1 else f"{sets.validation.origin}:"
    _logger.info(
        "%s, %s; %s %s.",
        sets.training.summary(config.data),
        counted(len(training), "training query"),
        scored_of,
        counted(len(validation), "validation query"),
    )
    doing("loading weights")
    models = build_models(config, len(tasks), torch.device(accelerator.device), platform.sharding)
    train, augment = config.train, config.data.augment
    most_pairs, most_tokens = config.data.max_context_pairs, models.qwen.tokenizer.max_tokens
    writes = models.qwen.lm_head is not None
    training = training.limited(most_pairs, most_tokens, seed=train.seed, outputs_are_read=writes)
    validation = validation.limited(most_pairs, most_tokens)
    for role, queries in (("training", training), ("validation", validation)):
        if drawn := int(queries.drawn.sum()):
            _logger.info(
                "For %s only some of the task's pairs are shown: at most %d (data.max_context_pairs)%s.",
                counted(drawn, f"{role} query"),
                most_pairs,
                "" if most_tokens is None else f", in a prompt of at most {most_tokens:,} tokens",
            )
    views = config.agent.views_per_reading
    batches = BucketedBatches(
        # Of several views of a query, the agent takes most of the time: canvases of like sides waste least.
        partial(training.sizes, by_side=views > 1),
        training.tasks,
        batch_size=train.batch_size,
        window=config.data.bucket_window,
        seed=train.seed,
    )
    steps_per_epoch = min(len(batches), train.max_batches or len(batches))
    zero = platform.zero_config(config, models.qwen.body.config.hidden_size)
    doing("preparing the engines")
    total_steps = train.epochs * steps_per_epoch if train.budget_minutes is None else None
    engines = build_engines(accelerator, models, config, total_steps, zero)
    models.averaged_agent.module.to(accelerator.device)
    models.averaged_agent.restart()

    task_rows = {task.id: row for row, task in enumerate(tasks)}
    collate = partial(Collator, models.qwen.tokenizer, task_rows=task_rows, max_grid_size=config.agent.max_grid_size)

    partitioner = partial(
        Partitioner, processes=accelerator.num_processes, quadratic=attention_share(models.qwen.body.config)
    )
    process = accelerator.process_index
    return Session(
        config=config,
        accelerator=accelerator,
        training=QuerySet(
            training,
            batches,
            collate(
                seed=train.seed,
                dihedral=augment.dihedral,
                colors=augment.colors,
                order=augment.order,
                views=views,
                reads_views=views == 1,
                unknown_share=config.agent.task_vector_dropout,
                dropout=config.agent.dropout > 0,
            ),
            partial(partitioner, passes=train.accumulation),
            process,
        ),
        validation=QuerySet(
            validation,
            # Without gradients a batch may be larger, and its neighbours do not matter: as little padding as can be.
            BucketedBatches(
                validation.lengths,
                validation.tasks,
                batch_size=max(accelerator.num_processes, 2 * train.batch_size // train.accumulation),
                window=len(validation),
                seed=0,
            ),
            collate(),
            partial(partitioner, passes=1),
            process,
        ),
        models=models,
        engines=engines,
        steps_per_epoch=steps_per_epoch,
        data=digests,
        task_counts={
            role: of.counts(config.data) for role, of in (("training", sets.training), ("validation", sets.validation))
        },
        zero=zero,
    )


def _shared_settings(config: Config) -> dict[str, str]:
    """Every value that must be the same on all machines; paths need not be, what the data files hold is compared."""
    own = ("output.dir", "data.source", "data.validation_source", "train.cpu_threads")
    return {name: repr(value) for name, value in flatten(config).items() if name not in own}
