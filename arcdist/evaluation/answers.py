"""From what the agent plans to the answer that is scored, and how each query of a validation was answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from arcdist.data import MAX_SIDE, OUTSIDE, QueryBatch, QueryInputs, QueryTargets, fit_canvas
from arcdist.distributed.collectives import all_reduce_sum
from arcdist.models import AgentOutput, Plan, cells_within, predicted_size
from arcdist.rl import Answer

# B queries, H W the query's canvas, h w another canvas, C colours, T planning steps, G largest side of a grid.


@dataclass(frozen=True, kw_only=True, slots=True)
class Grades:
    """How right an answer is."""

    exact: Bool[Tensor, " B"]
    """Size and every cell are right."""
    size: Bool[Tensor, " B"]
    """Height and width are right."""
    cell: Float[Tensor, " B"]
    """Share of the target's cells that are right."""


def canvas_target(targets: QueryTargets, output: Plan) -> tuple[Int[Tensor, "B H W"], Bool[Tensor, "B H W"]]:
    """The targets on the agent's canvas, and which of its cells are both computed and known.

    Cells of a target beyond the working area (0.8 % of ARC-AGI-2's queries have some) are left out of the loss; the
    scores count them as wrong.
    """
    target = fit_canvas(targets.target, *output.area.shape[1:])
    return target, (target != OUTSIDE) & output.area


def likeliest(
    logits: Float[Tensor, "B H W C"], size_logits: Float[Tensor, "B 2 G"], working_area: Int[Tensor, "B 2"]
) -> tuple[Int[Tensor, "B H W"], Int[Tensor, "B 2"]]:
    """The likeliest colours of a canvas and the likeliest size within the working area, which make an answer."""
    return logits.detach().argmax(-1), predicted_size(size_logits.detach(), working_area)


def answer(
    output: Plan, inputs: QueryInputs, targets: QueryTargets, logits: Float[Tensor, "B H W C"] | None = None
) -> Answer:
    """The likeliest colours on the targets' canvas, the likeliest size, and the query's input if it is reconstructed.

    `logits` replace the agent's last step; the solver's weight is in them. Of the targets only the canvas's size is
    used: a query whose target is unknown is answered as well.
    """
    logits = output.final_logits if logits is None else logits
    colors, size = likeliest(logits, output.size_logits, inputs.working_area)
    return Answer(
        grid=fit_canvas(colors.where(output.area, OUTSIDE), *targets.target.shape[1:]),
        size=size,
        reconstruction=output.reconstruction_logits.detach().argmax(-1) if isinstance(output, AgentOutput) else None,
    )


def grade(given: Answer, targets: QueryTargets) -> Grades:
    """Compare answers with their targets.

    A query whose target is unknown gets `False` and 0, as if it were wrong: leave it out of means.
    """
    target = targets.target
    right, inside = given.grid == target, target != OUTSIDE
    size = (given.size == targets.target_size).all(1)
    return Grades(
        exact=size & (right | ~inside).flatten(1).all(1),
        size=size,
        cell=(right & inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """How one query was answered."""

    id: str
    exact: bool
    cell: float
    confidence: float
    """Geometric mean of the probabilities of the answer's cells."""
    pictures: tuple[list[list[int]], ...]
    """Input, target, the answer after each planning step, the answer that is scored; empty unless shown."""


class Predictions:
    """Scores of all queries, and the grids of some.

    Args:
        ids: of all queries that may be answered.
        shown: how many have their grids kept: those whose ids have the smallest checksums, the same in every run.
        steps: planning steps of the agent.
        device: of the models.
    """

    def __init__(self, ids: Sequence[str], shown: int, steps: int, device: torch.device) -> None:
        self._rows = {name: row for row, name in enumerate(ids)}
        by_checksum = sorted(ids, key=lambda name: sha256(name.encode()).digest())
        self._shown = {name: row for row, name in enumerate(by_checksum[:shown])}
        self._scores = torch.zeros(len(self._rows), 4, device=device)
        self._pictures = torch.zeros(len(self._shown), steps + 3, MAX_SIDE, MAX_SIDE, device=device)

    def add(
        self,
        batch: QueryBatch,
        known: Bool[Tensor, " B"],
        grades: Grades,
        output: Plan,
        size: Int[Tensor, "B 2"],
        logits: Float[Tensor, "B H W C"],
    ) -> None:
        """Add the answers of a batch, each query of which is in no other batch.

        `known` says whose target is known, so that it counts; `output` is what the agent planned; `size` and `logits`
        are those of the answers that have the grades.
        """
        height, width = output.area.shape[1:]
        inside = cells_within(size, height, width)  # [B, H, W]
        surest = logits.log_softmax(-1).amax(-1)  # [B, H, W]
        confidence = ((surest * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)).exp()
        rows = torch.tensor([self._rows[name] for name in batch.ids], device=self._scores.device)
        columns = (grades.exact.float(), grades.cell, confidence, torch.ones_like(confidence))
        self._scores.index_add_(0, rows, torch.stack(columns, 1) * known[:, None])

        chosen = [index for index, name in enumerate(batch.ids) if name in self._shown]
        if not chosen:
            return
        answers = torch.cat((output.forward_logits[:, chosen].argmax(-1), logits[None, chosen].argmax(-1)))
        answers = answers.where(inside[chosen], OUTSIDE)  # [T + 1, shown, H, W]
        grids = (batch.inputs.query[chosen], batch.targets.target[chosen], *answers)
        # Colours + 1, and 0 outside, so that the pictures of several processes can be added up.
        pictures = torch.stack([fit_canvas(grid, MAX_SIDE, MAX_SIDE) for grid in grids], 1) - OUTSIDE
        at = torch.tensor([self._shown[batch.ids[index]] for index in chosen], device=self._pictures.device)
        self._pictures.index_add_(0, at, pictures.float() * known[chosen, None, None, None])

    def read(self) -> list[Prediction]:
        """The predictions of all processes, sorted by id; queries whose answer is not known are left out.

        All processes call it together.
        """
        whole = all_reduce_sum({"scores": self._scores, "pictures": self._pictures})
        pictures = whole["pictures"].to(torch.int8).cpu()
        shown = {name: tuple(map(_cropped, pictures[row])) for name, row in self._shown.items()}
        return [
            Prediction(id=name, exact=exact > 0, cell=cell, confidence=confidence, pictures=shown.get(name, ()))
            for name, (exact, cell, confidence, answered) in sorted(
                zip(self._rows, whole["scores"].tolist(), strict=True)
            )
            if answered
        ]


def _cropped(picture: Int[Tensor, "G G"]) -> list[list[int]]:
    """The grid in the upper left corner of a picture."""
    height, width = int((picture[:, 0] > 0).sum()), int((picture[0] > 0).sum())
    grid: list[list[int]] = (picture[:height, :width] - 1).tolist()
    return grid
