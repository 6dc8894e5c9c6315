"""What an agent is made of: the encoder of the context pairs, and the two cores that plan from a grid."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arcdist.data.batch import OUTSIDE, QueryInputs

# B queries, K context pairs, H W canvas, C colours, C1 = C + 1 (the last is "outside"), D width of a cell's state and
# of the conditioning, N context tokens.


@runtime_checkable
class PlanningStep(Protocol):
    """The next step of a trajectory."""

    def __call__(
        self, belief: Float[Tensor, "B H W C"], kept: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B H W D"]:
        """From what the answer is believed to be at present to the state of each cell.

        `kept` are the queries, of those that took the step before, that go on; none means all.
        """


def one_hot_colors(grid: Int[Tensor, "*shape"], num_colors: int) -> Float[Tensor, "*shape C1"]:
    """One-hot colours with a last channel for `OUTSIDE` cells: C1 = num_colors + 1."""
    return F.one_hot(grid.where(grid != OUTSIDE, num_colors), num_colors + 1).float()


def cells_within(size: Int[Tensor, "B 2"], height: int, width: int) -> Bool[Tensor, "B {height} {width}"]:
    """The cells of a canvas of `height` x `width` that lie inside each size."""
    rows = torch.arange(height, device=size.device)[:, None] < size[:, 0, None, None]
    columns = torch.arange(width, device=size.device) < size[:, 1, None, None]
    return rows & columns


def dropout_factors(seed: Int[Tensor, " B"], channels: int, share: float) -> Float[Tensor, "B channels"]:
    """0 with the probability `share`, else 1 / (1 - share), for each channel by the seed of its row alone.

    1 for all channels of a row whose seed is 0. The bits of seed and channel are mixed as by SplitMix64 (Steele et al.
    2014), but for its last shift and with arithmetic ones, in place of a generator: rows may be partitioned in any way,
    and are drawn at once.
    """
    bits = seed[:, None] + torch.arange(1, channels + 1, device=seed.device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ (bits >> shift)) * factor
    uniform = (bits >> 40 & 0xFFFFFF).float() * 2.0**-24
    return torch.where(seed[:, None] == 0, 1.0, (uniform >= share) / (1.0 - share))


def _convolve(cells: Float[Tensor, "B H W D"], layer: nn.Module) -> Float[Tensor, "B H W D2"]:
    return layer(cells.movedim(-1, 1)).movedim(1, -1)


def product_flops(rows: int, *parts: nn.Module) -> float:
    """Operations of the linear maps and convolutions of these modules for so many vectors, or cells; one is `rows`.

    A multiplication with its addition counts as 2. A convolution is counted at the border as everywhere.
    """
    weights = sum(parameter.numel() for part in parts for parameter in part.parameters() if parameter.ndim > 1)
    return 2.0 * rows * weights


def attention_flops(queries: int, keys: int, width: int) -> float:
    """Operations of attention: products of queries and keys, then of weights and values; `width` over all heads."""
    return 4.0 * queries * keys * width


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What the agent knows of B tasks from their demonstration pairs alone."""

    keys: Float[Tensor, "B heads N Dh"]
    values: Float[Tensor, "B heads N Dh"]
    token_mask: Bool[Tensor, "B 1 1 N"]
    """True for tokens that hold a part of a pair."""
    summary: Float[Tensor, "B D"]
    """Mean over all cells of all pairs."""

    def take(self, rows: Int[Tensor, " R"]) -> "Context":
        """What is known of some of the tasks."""
        kept = (each[rows] for each in (self.keys, self.values, self.token_mask, self.summary))
        return Context(**dict(zip(("keys", "values", "token_mask", "summary"), kept, strict=True)))


class ContextEncoder(nn.Module):
    """Pairs -> one token a row and a column of each pair, for the query's cells to attend to.

    Input and output are laid over each other on the canvas, mixed by a 3x3 convolution and pooled along each axis:
    H + W tokens a pair in place of H * W keep attention linear in the side.
    """

    def __init__(self, *, num_colors: int, max_grid_size: int, hidden_dim: int, heads: int) -> None:
        super().__init__()
        self.num_colors = num_colors
        self.heads = heads
        width = max(16, hidden_dim // 2)
        self.cells = nn.Linear(2 * (num_colors + 1), width)
        self.rows = nn.Parameter(torch.randn(max_grid_size, width) * 0.1)
        self.columns = nn.Parameter(torch.randn(max_grid_size, width) * 0.1)
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.to_key_value = nn.Linear(width, 2 * hidden_dim)
        self.to_summary = nn.Linear(width, hidden_dim)

    def forward(self, inputs: QueryInputs) -> Context:
        """Encode the context pairs of each query."""
        batch, pairs, height, width = inputs.context_inputs.shape
        both = (inputs.context_inputs, inputs.context_outputs)
        grids = torch.cat([one_hot_colors(each, self.num_colors) for each in both], dim=-1)
        inside = (inputs.context_inputs != OUTSIDE) | (inputs.context_outputs != OUTSIDE)  # [B, K, H, W]
        weight = inside.flatten(0, 1)[..., None].float()

        cells = self.cells(grids.flatten(0, 1)) + self.rows[:height, None] + self.columns[:width]
        cells = cells * weight
        cells = F.silu(cells + _convolve(cells, self.mix)) * weight  # [B*K, H, W, width]

        by_row = cells.sum(2) / weight.sum(2).clamp(min=1.0) + self.rows[:height]
        by_column = cells.sum(1) / weight.sum(1).clamp(min=1.0) + self.columns[:width]
        tokens = torch.cat([by_row, by_column], dim=1).reshape(batch, pairs * (height + width), -1)
        token_mask = torch.cat([inside.any(3), inside.any(2)], dim=2).reshape(batch, 1, 1, -1)

        keys, values = self.to_key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        total = cells.reshape(batch, -1, cells.shape[-1]).sum(1)
        summary = self.to_summary(total / weight.reshape(batch, -1, 1).sum(1).clamp(min=1.0))
        return Context(keys=keys, values=values, token_mask=token_mask, summary=summary)

    def flops(self, height: int, width: int, pairs: int) -> float:
        """Operations of reading so many pairs, once, on a canvas."""
        of_cells = product_flops(pairs * height * width, self.cells, self.mix)
        return of_cells + product_flops(pairs * (height + width), self.to_key_value) + product_flops(1, self.to_summary)


class MatrixConv2d(nn.Conv2d):
    """A convolution whose weight is a matrix [out, in * height * width], as optimizers of matrices need it."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)  # type: ignore[arg-type]  # which draws the weight as for any convolution
        self.weight = nn.Parameter(self.weight.detach().flatten(1))

    def forward(self, cells: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D2 H W"]:
        """Convolve."""
        return self._conv_forward(cells, self.weight.unflatten(1, (-1, *self.kernel_size)), self.bias)


class CellAttention(nn.Module):
    """Each cell of the working area attends to all of them; rotary positions tell how far away they are, and where.

    One half of a head's pairs of components is turned by the row, the other by the column (Su et al. 2021,
    arXiv:2104.09864, on each axis). Queries and keys have a norm of their own, so that no update makes them too large.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        # As wide as leaves four heads: the dot products of wide ones run faster.
        fitting = (width for width in (64, 32) if hidden_dim % width == 0 and hidden_dim // width >= 4)
        self.head_dim = next(fitting, 16)
        self.to_query_key_value = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, cells: Float[Tensor, "B H W D"], area: Bool[Tensor, "B 1 1 N"]) -> Float[Tensor, "B H W D"]:
        """What each cell reads; `area` holds for the cells, N = H W of them, that are read."""
        height, width = cells.shape[1:3]
        parts = self.to_query_key_value(cells).unflatten(-1, (3, -1, self.head_dim)).permute(3, 0, 4, 1, 2, 5)
        query, key = F.rms_norm(parts[:2], (self.head_dim,))  # [B, heads, H, W, Dh] each
        query, key = rotated(query, key, *rotations(height, width, self.head_dim, cells.device))
        query, key, value = (each.flatten(2, 3) for each in (query, key, parts[2]))  # [B, heads, N, Dh]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=area)
        return self.out(read.transpose(1, 2).flatten(2).unflatten(1, (height, width)))


_LONGEST_TURN = 100.0
"""How many times slower the slowest pair of a rotary position turns than the fastest: no grid has more cells a side."""


def rotations(
    height: int, width: int, head_dim: int, device: torch.device
) -> tuple[Float[Tensor, "H W half"], Float[Tensor, "H W half"]]:
    """Cosines and sines of the angles by which the pairs of a head's components are turned in each cell."""
    pairs = head_dim // 4  # Of each axis.
    speeds = _LONGEST_TURN ** (-torch.arange(pairs, device=device) / pairs)
    by_row = torch.arange(height, device=device)[:, None, None] * speeds
    by_column = torch.arange(width, device=device)[None, :, None] * speeds
    angles = torch.cat([by_row.expand(-1, width, -1), by_column.expand(height, -1, -1)], dim=-1)
    return angles.cos(), angles.sin()


def rotated(
    query: Float[Tensor, "*B H W Dh"],
    key: Float[Tensor, "*B H W Dh"],
    cosine: Float[Tensor, "H W half"],
    sine: Float[Tensor, "H W half"],
) -> tuple[Float[Tensor, "*B H W Dh"], Float[Tensor, "*B H W Dh"]]:
    """Queries and keys, each pair of components turned: their dot product depends on the difference of the places."""
    turned = []
    for each in (query, key):
        first, second = each.chunk(2, dim=-1)
        turned.append(torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1))
    return turned[0], turned[1]


class RecursiveBlock(nn.Module):
    """h <- h + W silu(FiLM(local + row + column + global mixing + attention of FiLM(h + injection)))."""

    def __init__(self, hidden_dim: int, *, attention: bool) -> None:
        super().__init__()
        self.attention = CellAttention(hidden_dim) if attention else None
        self.before = nn.LayerNorm(hidden_dim)
        self.local = MatrixConv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1)
        # Without a bias, cells beyond the working area, which are 0, stay 0 and are no larger than the clamp below.
        self.to_axes = nn.Linear(hidden_dim, 3 * (hidden_dim // 2), bias=False)
        self.from_axes = nn.ModuleList(nn.Linear(hidden_dim // 2, hidden_dim, bias=False) for _ in range(3))
        self.after = nn.LayerNorm(hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.modulation = nn.Linear(hidden_dim, 4 * hidden_dim)
        nn.init.normal_(self.modulation.weight, std=0.3 / math.sqrt(hidden_dim))
        nn.init.zeros_(self.modulation.bias)

    def modulate(
        self, conditioning: Float[Tensor, "B D"], dropout: Float[Tensor, "B D"] | None = None
    ) -> tuple[Tensor, ...]:
        """Scale and shift before and after mixing, and perhaps the factors of dropout, each [B, 1, 1, D].

        They are the same for all steps of a trajectory, as dropout in a recurrence has to be (Gal & Ghahramani 2016,
        arXiv:1512.05287).
        """
        scale, shift, scale_mixed, shift_mixed = self.modulation(conditioning)[:, None, None].chunk(4, dim=-1)
        factors = () if dropout is None else (dropout[:, None, None],)
        return 1.0 + scale, shift, 1.0 + scale_mixed, shift_mixed, *factors

    def forward(
        self,
        state: Float[Tensor, "B H W D"],
        injection: Float[Tensor, "B H W D"],
        modulation: tuple[Tensor, ...],
        area: Float[Tensor, "B H W 1"],
    ) -> Float[Tensor, "B H W D"]:
        """One planning step. `area` is 1 in the working area and 0 beyond it."""
        scale, shift, scale_mixed, shift_mixed, *dropout = modulation
        inner = torch.addcmul(shift, self.before(state + injection), scale) * area
        mixed = _convolve(inner, self.local)
        row, column, everywhere = self.to_axes(inner).chunk(3, dim=-1)
        largest = (row.amax(2, keepdim=True), column.amax(1, keepdim=True), everywhere.amax((1, 2), keepdim=True))
        for project, pooled in zip(self.from_axes, largest, strict=True):
            mixed = mixed + project(pooled.clamp_min(0.0))
        if self.attention is not None:
            mixed = mixed + self.attention(inner, area.flatten(1)[:, None, None] > 0)
        hidden = F.silu(torch.addcmul(shift_mixed, self.after(mixed), scale_mixed))
        if dropout:
            hidden = hidden * dropout[0]
        return state + self.out(hidden)


class RecursiveCore(nn.Module):
    """One weight-shared block, applied once a planning step; each step re-reads what the answer is believed to be."""

    def __init__(self, *, num_colors: int, max_grid_size: int, hidden_dim: int, heads: int, attention: bool) -> None:
        super().__init__()
        self.heads = heads
        self.colors = nn.Linear(num_colors + 1, hidden_dim)
        self.belief = nn.Linear(num_colors, hidden_dim, bias=False)
        self.rows = nn.Parameter(torch.randn(max_grid_size, hidden_dim) * 0.1)
        self.columns = nn.Parameter(torch.randn(max_grid_size, hidden_dim) * 0.1)
        self.rows_from_end = nn.Parameter(torch.randn(max_grid_size + 1, hidden_dim) * 0.1)
        self.columns_from_end = nn.Parameter(torch.randn(max_grid_size + 1, hidden_dim) * 0.1)
        self.to_query = nn.Linear(hidden_dim, hidden_dim)
        self.from_context = nn.Linear(hidden_dim, hidden_dim)
        self.block = RecursiveBlock(hidden_dim, attention=attention)

    def start(
        self,
        grid: Float[Tensor, "B H W C1"],
        size: Int[Tensor, "B 2"],
        conditioning: Float[Tensor, "B D"],
        context: Context | None,
        area: Bool[Tensor, "B H W"],
        dropout: Float[Tensor, "B D"] | None = None,
    ) -> PlanningStep:
        """Embed the grid that a trajectory starts from: colours, positions from both ends, context read once."""
        height, width = grid.shape[1:3]
        from_bottom = (size[:, :1] - torch.arange(height, device=grid.device)).clamp(min=0)  # [B, H]
        from_right = (size[:, 1:] - torch.arange(width, device=grid.device)).clamp(min=0)
        injection = (
            self.colors(grid)
            + (self.rows[:height] + self.rows_from_end[from_bottom])[:, :, None]
            + (self.columns[:width] + self.columns_from_end[from_right])[:, None]
        )
        if context is not None:
            queries = self.to_query(injection).unflatten(-1, (self.heads, -1)).flatten(1, 2).transpose(1, 2)
            read = F.scaled_dot_product_attention(queries, context.keys, context.values, attn_mask=context.token_mask)
            injection = injection + self.from_context(read.transpose(1, 2).flatten(2).unflatten(1, (height, width)))
        modulation = self.block.modulate(conditioning, dropout)
        inside = area[..., None].to(injection.dtype)
        state = torch.zeros_like(injection)

        def step(belief: Float[Tensor, "B H W C"], kept: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B H W D"]:
            nonlocal state, injection, modulation, inside
            if kept is not None:
                state, injection, inside = state[kept], injection[kept], inside[kept]
                modulation = tuple(each[kept] for each in modulation)
            state = self.block(state, injection + self.belief(belief), modulation, inside)
            return state

        return step

    def flops(self, height: int, width: int, pairs: int, steps: int) -> float:
        """Operations of a trajectory of so many steps, once, on a canvas, with so many context pairs."""
        cells, hidden_dim, block = height * width, self.rows.shape[1], self.block
        of_start = product_flops(cells, self.colors, self.to_query, self.from_context)
        of_start += attention_flops(cells, pairs * (height + width), hidden_dim) + product_flops(1, block.modulation)
        of_step = product_flops(cells, self.belief, block.local, block.to_axes, block.out)
        of_step += sum(map(product_flops, (height, width, 1), block.from_axes))
        if block.attention is not None:
            of_step += product_flops(cells, block.attention) + attention_flops(cells, cells, hidden_dim)
        return of_start + steps * of_step


class ConvCore(nn.Module):
    """Encodes a grid once; planning step t is read by head t from the fused encoding."""

    def __init__(self, *, num_colors: int, hidden_dim: int, max_steps: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_colors + 1, hidden_dim // 2, kernel_size=3, padding=1)
        self.second = MatrixConv2d(hidden_dim // 2, hidden_dim, kernel_size=3, padding=1)
        self.fuse_prompt = nn.Linear(hidden_dim, hidden_dim)
        self.belief = nn.Linear(num_colors, hidden_dim, bias=False)
        self.heads = nn.ModuleList(MatrixConv2d(hidden_dim, hidden_dim, 3, padding=1) for _ in range(max_steps))

    def start(
        self,
        grid: Float[Tensor, "B H W C1"],
        size: Int[Tensor, "B 2"],
        conditioning: Float[Tensor, "B D"],
        context: Context | None,
        area: Bool[Tensor, "B H W"],
        dropout: Float[Tensor, "B D"] | None = None,
    ) -> PlanningStep:
        """Encode the grid that a trajectory starts from. This core reads neither sizes nor context pairs."""
        del size, context
        inside = area[..., None].to(grid.dtype)
        encoded = F.silu(_convolve(grid * inside, self.first)) * inside
        encoded = F.silu(_convolve(encoded, self.second) + self.fuse_prompt(conditioning)[:, None, None]) * inside
        if dropout is not None:
            encoded = encoded * dropout[:, None, None]
        heads = iter(self.heads)

        def step(belief: Float[Tensor, "B H W C"], kept: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B H W D"]:
            nonlocal encoded, inside
            if kept is not None:
                encoded, inside = encoded[kept], inside[kept]
            return F.silu(_convolve((encoded + self.belief(belief)) * inside, next(heads))) * inside

        return step

    def flops(self, height: int, width: int, pairs: int, steps: int) -> float:
        """Operations of a trajectory of so many steps, once, on a canvas."""
        del pairs
        cells = height * width
        of_start = product_flops(cells, self.first, self.second) + product_flops(1, self.fuse_prompt)
        return of_start + product_flops(cells, *self.heads[:steps]) + steps * product_flops(cells, self.belief)
