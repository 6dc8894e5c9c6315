"""From what the agent plans to the answer that is scored."""

# B queries, H W the query's canvas, h w another canvas, C colours.
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from arcdist.data import OUTSIDE, QueryInputs, QueryTargets
from arcdist.models import AgentOutput, predicted_size
from arcdist.rl import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Grades:
    """How right an answer is."""

    exact: Bool[Tensor, " B"]
    """Size and every cell are right."""
    size: Bool[Tensor, " B"]
    """Height and width are right."""
    cell: Float[Tensor, " B"]
    """Share of the target's cells that are right."""


def fit_canvas(grid: Int[Tensor, "B H W"], height: int, width: int) -> Int[Tensor, "B h w"]:
    """The same grids on a canvas of another size: cut off, or filled up with `OUTSIDE`."""
    grid = grid[:, :height, :width]
    return F.pad(grid, (0, width - grid.shape[2], 0, height - grid.shape[1]), value=OUTSIDE)


def canvas_target(targets: QueryTargets, output: AgentOutput) -> tuple[Int[Tensor, "B H W"], Bool[Tensor, "B H W"]]:
    """The targets on the agent's canvas, and which of its cells are both computed and known.

    Cells of a target beyond the working area (0.8 % of ARC-AGI-2's queries have some) are left out of the loss; the
    scores count them as wrong.
    """
    target = fit_canvas(targets.target, *output.area.shape[1:])
    return target, (target != OUTSIDE) & output.area


def answer(
    output: AgentOutput, inputs: QueryInputs, targets: QueryTargets, logits: Float[Tensor, "B H W C"] | None = None
) -> Answer:
    """The likeliest colours on the targets' canvas, the likeliest size, and the way back.

    `logits` stand in for the agent's own last step, where the solver has weighed in.
    """
    colors = (output.final_logits if logits is None else logits).detach().argmax(-1)
    return Answer(
        grid=fit_canvas(colors.where(output.area, OUTSIDE), *targets.target.shape[1:]),
        size=predicted_size(output.size_logits.detach(), inputs.working_area),
        reconstruction=output.reconstruction_logits.detach().argmax(-1),
    )


def grade(said: Answer, targets: QueryTargets) -> Grades:
    """Compare answers with their targets."""
    target = targets.target
    right, inside = said.grid == target, target != OUTSIDE
    size = (said.size == targets.target_size).all(1)
    return Grades(
        exact=size & (right | ~inside).flatten(1).all(1),
        size=size,
        cell=(right & inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1),
    )
