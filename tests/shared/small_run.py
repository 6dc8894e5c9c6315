"""The run that tests send through the real launcher."""

# 29 queries: batches of 7 leave one query over, fewer than there are processes. With a reach of the refiner and
# learning rates as these, answers change from the first steps on: rewards of either sign, a memory that overflows.
# The refiner learns slowly, because Adam's first steps make whole steps of what is rounding in a gradient near 0.
SMALL_RUN = """\
data: {max_tasks: 9, max_side: 8}
qwen: {model: "embedded:tiny", dtype: float32, lora_r: 2}
agent: {hidden_dim: 16, max_steps: 2}
solver: {capacity: 12}
refiner: {rl_hidden: 32, rl_delta_scale: 200.0, rl_lr: 0.00005}
optim: {agent_lr: 0.003, qwen_lr: 0.001, warmup_steps: 4}
tracking: {wandb: disabled}
"""
STEPS_PER_EPOCH = 5
"""With a batch size of 7."""
