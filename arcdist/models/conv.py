"""The convolutional core: an encoder, prompt fusion and one planning head a step."""

# B queries, H W canvas, D hidden, E condition, C colours, C1 = C + 1 (the last is "outside").
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.models.context import Context


def _conv(cells: Float[Tensor, "B H W D"], layer: nn.Module) -> Float[Tensor, "B H W D2"]:
    return layer(cells.movedim(-1, 1)).movedim(1, -1)


class ConvCore(nn.Module):
    """Encodes a grid once; planning step t is read by head t from the fused encoding."""

    def __init__(self, *, num_colors: int, hidden_dim: int, condition_dim: int, max_steps: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_colors + 1, hidden_dim // 2, kernel_size=3, padding=1)
        self.second = nn.Conv2d(hidden_dim // 2, hidden_dim, kernel_size=3, padding=1)
        self.fuse_prompt = nn.Linear(condition_dim, hidden_dim)
        self.belief = nn.Linear(num_colors, hidden_dim, bias=False)
        self.heads = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1) for _ in range(max_steps))

    def start(
        self,
        grid: Float[Tensor, "B H W C1"],
        size: Int[Tensor, "B 2"],
        condition: Float[Tensor, "B E"],
        context: Context | None,
        area: Bool[Tensor, "B H W"],
    ) -> "ConvTrajectory":
        """Encode the grid that a trajectory starts from. This core reads neither sizes nor context pairs."""
        del size, context
        inside = area[..., None].to(grid.dtype)
        encoded = F.silu(_conv(grid * inside, self.first)) * inside
        encoded = F.silu(_conv(encoded, self.second) + self.fuse_prompt(condition)[:, None, None]) * inside
        return ConvTrajectory(core=self, encoded=encoded, inside=inside)


@dataclass(kw_only=True, slots=True)
class ConvTrajectory:
    """The running state of one trajectory through a `ConvCore`."""

    core: ConvCore
    encoded: Float[Tensor, "B H W D"]
    inside: Float[Tensor, "B H W 1"]
    steps_done: int = 0

    def step(self, belief: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W D"]:
        """Read the next planning step."""
        head = self.core.heads[self.steps_done]
        self.steps_done += 1
        return F.silu(_conv((self.encoded + self.core.belief(belief)) * self.inside, head)) * self.inside
