"""A causal language model writes grids: the loss that teaches it to, decoding, and the probability of any grid.

After the mark `O` that ends a prompt come the output's rows, one token a cell and a newline a row, and then the mark
`I`, with which a next pair would begin and which ends the grid. Probabilities are those of these tokens under the
softmax over the model's whole vocabulary, whatever else it might have written there: those of different grids exclude
each other and add up to at most 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from arcdist.data.tasks import MAX_SIDE, Grid
from arcdist.data.text import INPUT, NEWLINE, GridTokenizer

# B queries, L tokens, D width of Qwen, N texts that are being written, 12 symbols that an output is written with.

Head = Callable[[Tensor], Tensor]
"""Logits over the vocabulary, from hidden states."""

END = INPUT
"""The symbol after an output's last row."""
_SYMBOLS = END + 1
"""Colours, newline and end: the symbols of an output have the smallest numbers."""

_TOKENS_AT_ONCE = 1024
"""Tokens whose logits are held at once: of a vocabulary of 150,000, they take 0.6 GB."""


class SymbolHead(nn.Module):
    """Trained logits for a model of random weights, which has no head: only what a grid is written with gets a row.

    All other tokens have the probability 0. In float32 under any autocast.

    Args:
        width: D of the hidden states.
        symbol_ids: tokens of `SYMBOLS`.
        std: of the first weights.
    """

    symbol_ids: Tensor

    def __init__(self, width: int, symbol_ids: Int[Tensor, " S"], std: float) -> None:
        super().__init__()
        self.rows = nn.Linear(width, _SYMBOLS, bias=False)
        nn.init.normal_(self.rows.weight, std=std)
        self.register_buffer("symbol_ids", symbol_ids[:_SYMBOLS], persistent=False)
        self._vocabulary = int(symbol_ids.max()) + 1

    def forward(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Logits over the vocabulary, as far as it has symbols."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.rows(hidden.float())
        everywhere = logits.new_full((*logits.shape[:-1], self._vocabulary), -math.inf)
        return everywhere.index_copy(-1, self.symbol_ids, logits)


def with_outputs(
    tokens: Int[Tensor, "B L"],
    token_mask: Bool[Tensor, "B L"],
    target: Int[Tensor, "B h w"],
    target_size: Int[Tensor, "B 2"],
    symbol_ids: Int[Tensor, " S"],
) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Texts of prompts and the outputs that follow them, and which of their tokens are the outputs'.

    A query whose target is not known, of size 0, has no output. Padding stays on the right, with any token.
    """
    height, width = target_size.unbind(1)
    starts = token_mask.sum(1)
    lengths = (height * (width + 1) + 1) * (height > 0)
    total = max(tokens.shape[1], int((starts + lengths).max()))
    places = torch.arange(total, device=tokens.device) - starts[:, None]
    output_mask = (places >= 0) & (places < lengths[:, None])
    inside = places.where(output_mask, 0)
    row, column = inside // (width[:, None] + 1), inside % (width[:, None] + 1)
    cells = (row * target.shape[2] + column).clamp_max(target[0].numel() - 1)
    symbols = target.flatten(1).gather(1, cells).where(column < width[:, None], NEWLINE)
    symbols = symbols.where(inside < lengths[:, None] - 1, END)
    return symbol_ids[symbols].where(output_mask, F.pad(tokens, (0, total - tokens.shape[1]))), output_mask


def token_log_probs(head: Head, hidden: Float[Tensor, "N D"], tokens: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Log-probability of each token given the hidden state before it, in float32.

    Logits are computed for some tokens at a time, and once more in a backward pass.
    """

    def some(hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = head(hidden).float()
        return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)

    parts = zip(hidden.split(_TOKENS_AT_ONCE), tokens.split(_TOKENS_AT_ONCE), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
    return torch.cat([some(*part) for part in parts])


def lm_loss(
    head: Head, hidden: Float[Tensor, "B L D"], tokens: Int[Tensor, "B L"], output_mask: Bool[Tensor, "B L"]
) -> Float[Tensor, " B"]:
    """Next-token loss of each query: the mean over its output's tokens, in nats.

    A mean over each query's own tokens, so that a query with a large output counts as much as any other, as in the
    other losses; 0 for a query without an output.

    Args:
        head: of the language model.
        hidden: states of the texts.
        tokens: prompts, each followed by its output.
        output_mask: True for the output's tokens, its end included. The first token of a text is none of them.
    """
    rows, places = output_mask.nonzero(as_tuple=True)
    loss = hidden.new_zeros(len(tokens), dtype=torch.float32)
    if not len(rows):
        return loss
    log_probs = token_log_probs(head, hidden[rows, places - 1], tokens[rows, places])
    return loss.index_add(0, rows, -log_probs) / output_mask.sum(1).clamp_min(1)


class WrittenGrid(NamedTuple):
    """A grid and the logarithm of the probability that the model writes it after the prompt."""

    grid: Grid
    log_prob: float


@dataclass(frozen=True, slots=True)
class FoundGrids:
    """What a search has found for a query."""

    grids: tuple[WrittenGrid, ...]
    """The most probable first."""
    complete: bool
    """Whether these are all grids above the floor; False if some beginnings had to be dropped."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A grid that is being written."""

    query: int
    """Row of its prompt."""
    draw: int = 0
    """Which of the query's grids it is."""
    symbols: tuple[int, ...] = ()
    log_prob: float = 0.0
    width: int = 0
    """Of its rows; 0 until the first is complete."""
    row: int = 0
    column: int = 0
    """Where the next cell would be."""

    @property
    def is_whole(self) -> bool:
        """Whether its end is written."""
        return self.symbols[-1:] == (END,)

    def allowed(self, max_side: int) -> list[int]:
        """The symbols that can continue to a grid: rows of one length, at most `max_side` of them and as long."""
        allowed: list[int] = []
        if self.row < max_side and self.column < (self.width or max_side):
            allowed += range(NEWLINE)
        if self.column and self.width in (0, self.column):
            allowed.append(NEWLINE)
        if self.width and not self.column:
            allowed.append(END)
        return allowed

    def after(self, symbol: int, log_prob: float) -> "_Beginning":
        """With one more symbol of that log-probability."""
        ends_row = symbol == NEWLINE
        return replace(
            self,
            symbols=(*self.symbols, symbol),
            log_prob=self.log_prob + log_prob,
            width=self.width or (self.column if ends_row else 0),
            row=self.row + ends_row,
            column=0 if ends_row else self.column + 1,
        )

    def written(self) -> WrittenGrid:
        """The grid, once it is whole."""
        cells = np.array(self.symbols[:-1], dtype=np.uint8)
        return WrittenGrid(cells.reshape(self.row, self.width + 1)[:, :-1], self.log_prob)


Choose = Callable[[Sequence[_Beginning], Float64[np.ndarray, "N 12"]], Sequence[tuple[int, int]]]
"""Rows and symbols that beginnings continue with, from the log-probabilities of the next symbol; -inf: not allowed."""


class _Texts:
    """N texts that the model has read, with their keys and values.

    Args:
        writer: whose model reads.
        tokens: padded on the left.
        mask: True for real tokens.
    """

    def __init__(self, writer: "GridWriter", tokens: Int[Tensor, "N L"], mask: Bool[Tensor, "N L"]) -> None:
        self._writer = writer
        self._cache = DynamicCache(config=writer.body.config)
        self._mask = mask[:, :0]
        self.next: Float[Tensor, "N 12"] = self._next(self.read(tokens, mask))
        """Log-probabilities of the next symbol."""

    def read(self, tokens: Int[Tensor, "N l"], mask: Bool[Tensor, "N l"]) -> Float[Tensor, "N l D"]:
        """Hidden states of the next tokens."""
        self._mask = torch.cat([self._mask, mask], dim=1)
        output = self._writer.body(
            input_ids=tokens,
            attention_mask=self._mask.long(),
            position_ids=(self._mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def keep(self, rows: Int[Tensor, " M"]) -> None:
        """Keep these of the texts, perhaps repeated."""
        if not torch.equal(rows, torch.arange(len(self._mask), device=rows.device)):
            self._mask, self.next = self._mask[rows], self.next[rows]
            self._cache.reorder_cache(rows)

    def append(self, tokens: Int[Tensor, " N"]) -> None:
        """Append a token to each."""
        self.next = self._next(self.read(tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.bool)))

    def _next(self, hidden: Float[Tensor, "N l D"]) -> Float[Tensor, "N 12"]:
        logits = self._writer.head(hidden[:, -1]).float()
        # Not by log_softmax, whose float32 sum over a large vocabulary is off by 1e-5 on a CPU.
        return logits[:, self._writer.symbol_ids[:_SYMBOLS]] - logits.logsumexp(-1, keepdim=True)


class GridWriter:
    """Writes outputs with a causal language model, and says how probable one is.

    Prompts come as in `QueryInputs`, padded on the right; a query's result depends neither on padding nor on the other
    queries, up to rounding. Dropout is off, nothing has a gradient, and log-probabilities are added up in float64; the
    model computes in the caller's precision. Where Qwen is sharded over processes, each of its forward passes waits for
    all of them.

    Args:
        body: of the language model, without its head.
        head: gives logits over the vocabulary.
        tokenizer: of the model.
        rows: most texts whose keys and values are held at once, at least 1.
    """

    def __init__(self, body: PreTrainedModel, head: Head, tokenizer: GridTokenizer, *, rows: int = 64) -> None:
        self.body, self.head, self.rows = body, head, rows
        self._tokenizer = tokenizer
        self.symbol_ids = torch.from_numpy(tokenizer.symbol_ids).to(body.device)

    def greedy(
        self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], *, max_side: int = MAX_SIDE
    ) -> list[WrittenGrid]:
        """One grid a query: always the most probable symbol of those that can continue to a grid."""

        def choose(_: Sequence[_Beginning], log_probs: Float64[np.ndarray, "N 12"]) -> list[tuple[int, int]]:
            return list(enumerate(log_probs.argmax(1).tolist()))

        starts = [_Beginning(query) for query in range(len(tokens))]
        grids = self._write(tokens, token_mask, starts, choose, max_side)
        return [each.written() for each in sorted(grids, key=lambda each: each.query)]

    def sample(
        self,
        tokens: Int[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        generators: Sequence[np.random.Generator],
        *,
        draws: int,
        temperature: float = 1.0,
        max_side: int = MAX_SIDE,
    ) -> list[list[WrittenGrid]]:
        """Draw grids for each query; they may repeat.

        Args:
            tokens: of the prompts.
            token_mask: True for real tokens.
            generators: one a query, so that what is drawn for it does not depend on the other queries.
            draws: grids a query.
            temperature: more than 0; log-probabilities are divided by it before a symbol is drawn of those that can
                continue to a grid. Those of the results are the model's own.
            max_side: longest side of a grid.
        """
        # A number for each symbol that a grid may have, so that no draw depends on how long the others are.
        longest = max_side * (max_side + 1) + 1
        numbers = np.stack([generator.random((draws, longest)) for generator in generators])

        def choose(beginnings: Sequence[_Beginning], log_probs: Float64[np.ndarray, "N 12"]) -> list[tuple[int, int]]:
            drawn = np.array([numbers[each.query, each.draw, len(each.symbols)] for each in beginnings])
            tempered = (log_probs - log_probs.max(1, keepdims=True)) / temperature
            shares = np.exp(tempered).cumsum(1)
            # The last share is exactly 1, so that rounding cannot draw a symbol of no probability.
            return list(enumerate((shares / shares[:, -1:] <= drawn[:, None]).sum(1).tolist()))

        starts = [_Beginning(query, draw) for query in range(len(tokens)) for draw in range(draws)]
        grids = self._write(tokens, token_mask, starts, choose, max_side)
        in_order = [each.written() for each in sorted(grids, key=lambda each: (each.query, each.draw))]
        return [in_order[query * draws : (query + 1) * draws] for query in range(len(tokens))]

    def search(
        self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], *, floor: float, max_side: int = MAX_SIDE
    ) -> list[FoundGrids]:
        """Every grid that the model writes with at least the probability `floor`, which is more than 0.

        It is what a depth-first search finds that turns back where a beginning falls below the floor, as that of the
        ARChitects (2024). Beginnings of one length exclude each other, so that at most 1 / `floor` of them are above
        it: they are read together, one symbol after the other. A query keeps at most `rows` of them, the most probable;
        from a floor of 1 / `rows` on, none is dropped. What several queries have above that together waits as text.
        """
        least, complete = math.log(floor), [True] * len(tokens)

        def choose(beginnings: Sequence[_Beginning], log_probs: Float64[np.ndarray, "N 12"]) -> list[tuple[int, int]]:
            totals = log_probs + np.array([each.log_prob for each in beginnings])[:, None]
            chosen: list[tuple[int, int]] = []
            for query, group in groupby(range(len(beginnings)), key=lambda row: beginnings[row].query):
                rows = list(group)
                above = [(row, int(symbol)) for row in rows for symbol in np.flatnonzero(totals[row] >= least)]
                # Those that end take no more room.
                opened = sorted(((row, symbol) for row, symbol in above if symbol != END), key=lambda at: -totals[at])
                complete[query] &= len(opened) <= self.rows
                chosen += sorted({*((row, symbol) for row, symbol in above if symbol == END), *opened[: self.rows]})
            return chosen

        starts = [_Beginning(query) for query in range(len(tokens))]
        found = self._write(tokens, token_mask, starts, choose, max_side)
        found.sort(key=lambda each: (-each.log_prob, each.symbols))
        return [
            FoundGrids(tuple(each.written() for each in found if each.query == query), complete[query])
            for query in range(len(tokens))
        ]

    def log_prob(
        self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], grids: Sequence[Sequence[Grid]]
    ) -> list[list[float]]:
        """The log-probability that the model writes each of a query's candidates, its end included.

        Candidates are read together, each prompt once for up to `rows` of them.
        """
        candidates = [(query, grid) for query, of_query in enumerate(grids) for grid in of_query]
        log_probs: list[float] = []
        with self._reading():
            for start in range(0, len(candidates), self.rows):
                queries, outputs = zip(*candidates[start : start + self.rows], strict=True)
                log_probs += self._log_probs(tokens, token_mask, queries, outputs)
        numbers = iter(log_probs)
        return [[next(numbers) for _ in of_query] for of_query in grids]

    def _log_probs(
        self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], queries: Sequence[int], grids: Sequence[Grid]
    ) -> list[float]:
        device = tokens.device
        texts = self._read(tokens, token_mask, [_Beginning(query) for query in queries])
        outputs = [torch.from_numpy(self._tokenizer.encode_output(grid)).to(device) for grid in grids]
        lengths = torch.tensor([len(output) for output in outputs], device=device)
        ids = torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True)
        # The end is predicted, never read.
        mask = torch.arange(ids.shape[1] - 1, device=device) < lengths[:, None] - 1
        hidden = texts.read(ids[:, :-1], mask)
        later = token_log_probs(self.head, hidden[mask], ids[:, 1:][mask])
        firsts = torch.tensor([int(grid[0, 0]) for grid in grids], device=device)
        totals = texts.next.gather(1, firsts[:, None])[:, 0].double()
        return totals.index_add(0, mask.nonzero()[:, 0], later.double()).tolist()

    def _write(
        self,
        tokens: Int[Tensor, "B L"],
        token_mask: Bool[Tensor, "B L"],
        starts: Sequence[_Beginning],
        choose: Choose,
        max_side: int,
    ) -> list[_Beginning]:
        """Continue beginnings, sorted by query, until all are whole; `choose` gives up to `rows` for each query."""
        whole: list[_Beginning] = []
        levels = [starts[at : at + self.rows] for at in range(0, len(starts), self.rows)]
        with self._reading():
            while levels:
                level = self._take(levels)
                texts = self._read(tokens, token_mask, level)
                while level:
                    log_probs = np.full((len(level), _SYMBOLS), -np.inf)
                    for row, (each, known) in enumerate(zip(level, texts.next.tolist(), strict=True)):
                        for symbol in each.allowed(max_side):
                            log_probs[row, symbol] = known[symbol]
                    chosen = choose(level, log_probs)
                    longer = [(row, level[row].after(symbol, float(log_probs[row, symbol]))) for row, symbol in chosen]
                    whole += [each for _, each in longer if each.is_whole]
                    longer = [(row, each) for row, each in longer if not each.is_whole]
                    levels.append([each for _, each in longer])
                    level = self._take(levels)
                    if level:
                        texts.keep(torch.tensor([row for row, _ in longer[: len(level)]], device=tokens.device))
                        texts.append(self.symbol_ids[[each.symbols[-1] for each in level]])
        return whole

    def _take(self, levels: list[Sequence[_Beginning]]) -> Sequence[_Beginning]:
        """Take from the last level the beginnings of as many whole queries as are read at once; the others wait."""
        level, count = levels.pop(), 0
        for _, group in groupby(level, key=lambda each: each.query):
            size = len(list(group))
            if count + size > self.rows:
                levels.append(level[count:])
                break
            count += size
        return level[:count]

    def _read(self, tokens: Int[Tensor, "B L"], token_mask: Bool[Tensor, "B L"], level: Sequence[_Beginning]) -> _Texts:
        """Read prompts and beginnings that are equally long; what several have alike is read once."""
        distinct = {(each.query, each.symbols): row for row, each in enumerate(level)}
        places = {text: place for place, text in enumerate(distinct)}
        device = tokens.device
        rows = torch.tensor([query for query, _ in distinct], device=device)
        lengths = token_mask[rows].sum(1, keepdim=True)
        # Padded on the left: what is appended follows at once, also for layers that keep no mask.
        longest = int(lengths.max())
        sources = torch.arange(longest, device=device) - (longest - lengths)
        symbols = torch.tensor([symbols for _, symbols in distinct], dtype=torch.int64, device=device)
        written = self.symbol_ids[symbols]
        texts = _Texts(
            self,
            torch.cat([tokens[rows].gather(1, sources.clamp_min(0)), written], dim=1),
            torch.cat([sources >= 0, torch.ones_like(written, dtype=torch.bool)], dim=1),
        )
        texts.keep(torch.tensor([places[each.query, each.symbols] for each in level], device=device))
        return texts

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Without dropout and gradients."""
        mode = self.body.training
        self.body.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.body.train(mode)
