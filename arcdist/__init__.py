"""ARC-AGI solvers: a LoRA-tuned Qwen and a recursive grid agent, trained together."""

__version__ = "0.1.0"
