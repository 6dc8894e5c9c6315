"""The five models of a run, built from its configuration, and how a step reads prompts with them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arcdist.config import Config
from arcdist.config.schema import section_arguments
from arcdist.data import QueryBatch
from arcdist.data.batch import DistributedBatch
from arcdist.distributed.collectives import gather_rows
from arcdist.engine import Engine
from arcdist.losses import EFELoss
from arcdist.models import (
    UNSHARDED,
    ARCPromptGuidedAgent,
    PermanentSolver,
    PromptCache,
    PromptOutput,
    QwenHybridPrompt,
    Sharding,
)
from arcdist.regions import region
from arcdist.rl import PolicyRefinedAgent

# N queries, M of them read, P prompt.

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class EMA(Generic[ModuleT]):
    """Holds a second copy of a module; each `update` moves it towards the trained one.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the average is of use from the first steps on.
    A decay of 0 makes `module` the trained module itself.
    """

    def __init__(self, module: ModuleT, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.trained = module
        self.module = module
        if decay > 0:
            self.module = copy.deepcopy(module).requires_grad_(False)
            self.module.eval()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the trained module's present weights."""
        self.updates = 0
        torch._foreach_copy_(list(self.module.parameters()), list(self.trained.parameters()))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the trained module's present weights."""
        if self.module is self.trained:
            return
        self.updates += 1
        share = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(self.trained.parameters()), share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """What is trained together, and the average of the agent that validation uses."""

    qwen: QwenHybridPrompt
    agent: ARCPromptGuidedAgent
    solver: PermanentSolver
    efe: EFELoss
    refiner: PolicyRefinedAgent
    averaged_agent: EMA[ARCPromptGuidedAgent]
    prompts: PromptCache
    """Prompts that serve several batches, where `qwen.every` > 1."""


def build_models(config: Config, num_tasks: int, device: torch.device, sharding: Sharding = UNSHARDED) -> Models:
    """Build all models; their first weights depend on `train.seed` alone.

    Each takes the keys of its section of the configuration by their own names.

    Args:
        config: of the run.
        num_tasks: training tasks, for the table of task vectors.
        device: where kept prompts belong.
        sharding: how Qwen's frozen base is shared out over processes.

    Raises:
        PlatformError: Qwen's weights cannot be had.
        ConfigError: a LoRA target that the model lacks.
    """
    torch.manual_seed(config.train.seed)
    width, side = config.qwen.prompt_dim, config.agent.max_grid_size
    qwen = QwenHybridPrompt(**section_arguments(config.qwen), seed=config.train.seed, sharding=sharding)
    agent = ARCPromptGuidedAgent(**section_arguments(config.agent), prompt_dim=width, num_tasks=num_tasks)
    return Models(
        qwen=qwen,
        agent=agent,
        solver=PermanentSolver(**section_arguments(config.solver), feature_dim=width, max_grid_size=side),
        efe=EFELoss(
            **section_arguments(config.efe, without=["reversibility_weight"]), max_grid_size=side, prompt_dim=width
        ),
        refiner=PolicyRefinedAgent(**section_arguments(config.refiner), rl_prompt_dim=width, rl_ctrl_dim=width),
        averaged_agent=EMA(agent, agent.ema_decay),
        prompts=PromptCache(config.qwen.every, width, device),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptReading:
    """The prompts of a share, and what it takes to send a gradient back through the queries that were read."""

    prompt: Float[Tensor, "N P"]
    """A leaf that collects its gradient: the one tensor that crosses between the engines."""
    control: Float[Tensor, "N P"]
    """Without a graph."""
    queries: QueryBatch
    rows: Int[Tensor, " M"]
    """The queries that were read; the prompts of the others were kept from an earlier batch."""
    lm_loss: Float[Tensor, " M"] | None
    """Next-token loss of each of their outputs, without a graph; None if Qwen does not learn to write."""
    counts: bool
    """False if what was read has no part in the step: it is read because the other processes are reading."""
    graph: tuple[Tensor, ...] | None
    """Prompts, control vectors and perhaps losses of what was read, with their graph where that was kept."""
    dropout_seed: int

    def backward(
        self,
        qwen: Engine,
        gradient: Float[Tensor, "N P"],
        lm_gradient: Float[Tensor, " N"] | None = None,
        *,
        is_last: bool,
    ) -> None:
        """Send gradients back through what was read, in one backward pass; without its graph, it is read once more.

        Args:
            qwen: engine of Qwen.
            gradient: of the prompts.
            lm_gradient: of the next-token losses, if there are any.
            is_last: whether it is the step's last pass.
        """
        if not len(self.rows):
            return
        writes = self.lm_loss is not None
        read = self.graph or _read(qwen, self.queries, self.rows, self.dropout_seed, writes=writes)
        (tensor, _, *losses), gradient = read, gradient[self.rows]
        if losses and lm_gradient is not None:
            tensor = torch.cat([tensor.flatten(), *losses])
            gradient = torch.cat([gradient.flatten(), lm_gradient[self.rows]])
        with region("Qwen backward"):
            qwen.backward(tensor, gradient if self.counts else torch.zeros_like(gradient), is_last=is_last)


def read_prompts(
    models: Models,
    qwen: Engine,
    queries: QueryBatch,
    step: int,
    *,
    seed: int,
    keep_graph: bool,
    others_read: bool = True,
) -> PromptReading:
    """Have Qwen read queries; with `qwen.every` > 1 those only whose last prompt is no longer good.

    Prompts are kept by query, not by task: another query of the task has this one's target in its context. Where
    several passes make a step, a graph would have to wait for the rewards of all of them: reading twice takes the
    memory of one (gradient caching, Gao et al. 2021, arXiv:2101.06983). Where another process or pass of the step reads
    (`others_read`), an engine in lockstep reads one query even if it needs none.
    """
    every_row = torch.arange(len(queries), device=queries.inputs.tokens.device)
    cached = models.prompts.lookup(queries.ids, step) if models.qwen.every > 1 else None
    rows = every_row if cached is None else cached.missing
    counts = len(rows) > 0
    if qwen.in_lockstep and others_read and not counts:
        rows = every_row[:1]
    dropout_seed = _dropout_seed(seed, step, queries.ids)
    writes = models.qwen.lm_head is not None
    read, output = None, None if cached is None else cached.output
    lm_loss = torch.zeros(0, device=rows.device) if writes else None
    if len(rows):
        with torch.set_grad_enabled(keep_graph):
            read = _read(qwen, queries, rows, dropout_seed, writes=writes)
        computed = PromptOutput(*read[:2])
        if cached is None:
            output = computed
        elif counts:
            output = cached.fill(computed)
        lm_loss = read[2].detach() if writes else None
    assert output is not None  # Either everything was read or something was cached.
    return PromptReading(
        prompt=output.prompt.detach().requires_grad_(),
        control=output.control.detach(),
        queries=queries,
        rows=rows,
        lm_loss=lm_loss,
        counts=counts,
        graph=read if keep_graph else None,
        dropout_seed=dropout_seed,
    )


def keep_prompts(models: Models, batch: DistributedBatch, readings: Sequence[PromptReading], step: int) -> None:
    """Keep the prompts of a whole batch on every process, since any of them may get its queries next time."""
    if models.qwen.every == 1:
        return
    own = [
        torch.stack([reading.prompt, reading.control], dim=1)
        for reading, share in zip(readings, batch.shares, strict=True)
        if not share.is_padding
    ]
    real = [[share for share in shares if not share.is_padding] for shares in batch.partition.shares]
    partitioned = [[place for share in shares for place in share.positions] for shares in real]
    rows = torch.cat(own) if own else readings[0].prompt.new_empty(0, 2, readings[0].prompt.shape[1])
    prompts = gather_rows(rows, [len(places) for places in partitioned])
    ids = [batch.ids[place] for places in partitioned for place in places]
    models.prompts.store(ids, PromptOutput(*prompts.unbind(1)), step)


def _read(
    qwen: Engine, queries: QueryBatch, rows: Int[Tensor, " M"], dropout_seed: int, *, writes: bool
) -> tuple[Tensor, ...]:
    """Read queries, followed by their outputs if Qwen learns to write: no prompt depends on what comes after it."""
    inputs, targets = queries.inputs, queries.targets
    outputs = (targets.written[rows], targets.written_size[rows]) if writes else ()
    with region("Qwen forward"), _dropout_drawn_from(dropout_seed, inputs.tokens.device):
        return qwen(inputs.tokens[rows], inputs.token_mask[rows], inputs.features[rows], *outputs)


def _dropout_seed(seed: int, step: int, ids: Sequence[str]) -> int:
    name = "\0".join((str(seed), "dropout", str(step), *ids))
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def _dropout_drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """Both readings of a query drop the same units, and nothing drawn before or elsewhere matters."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
