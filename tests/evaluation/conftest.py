from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from arcdist.data import Collator, Pair, Query, QueryBatch, embedded_tokenizer
from arcdist.evaluation import Predictor
from arcdist.models import ARCPromptGuidedAgent, PermanentSolver, QwenHybridPrompt
from arcdist.rl import PolicyRefinedAgent

Rows = list[list[int]]


@pytest.fixture(scope="session")
def make_query() -> Callable[..., Query]:
    """A query from its grids as lists of rows; `pairs` are its context."""

    def grid(rows: Rows) -> np.ndarray:
        return np.array(rows, dtype=np.uint8)

    def make(name: str, asked: Rows, target: Rows | None, pairs: list[tuple[Rows, Rows]]) -> Query:
        context = tuple(Pair(grid(before), grid(after)) for before, after in pairs)
        return Query(f"{name}:test:0", name, context, grid(asked), None if target is None else grid(target))

    return make


@pytest.fixture(scope="session")
def collate() -> Callable[..., QueryBatch]:
    """Queries to a batch, as validation does it."""
    collator = Collator(embedded_tokenizer(), task_rows={"a": 0, "b": 1})
    return lambda *queries: collator(queries)


@pytest.fixture
def predictor() -> Predictor:
    """Small models with random weights, whose refiner edits the prompt and whose adapters have dropout."""
    torch.manual_seed(0)
    prompt = 16
    qwen = QwenHybridPrompt("embedded:tiny", prompt_dim=prompt, dtype="float32", lora_dropout=0.5)
    models = Predictor(
        read=qwen,
        qwen=qwen,
        agent=ARCPromptGuidedAgent(hidden_dim=16, prompt_dim=prompt, max_steps=2, num_tasks=2),
        solver=PermanentSolver(capacity=16, feature_dim=prompt, top_k=2),
        refiner=PolicyRefinedAgent(rl_prompt_dim=prompt, rl_ctrl_dim=prompt, rl_hidden=32, rl_delta_scale=30.0),
    )

    def shake(parameters: list[Tensor]) -> None:
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))

    with torch.no_grad():
        shake(models.qwen.trainable_parameters()["lora"])
        shake(list(models.agent.parameters()))
        shake(list(models.refiner.parameters()))
        models.agent.task_vectors.weight[0] = 0.0
    return models
