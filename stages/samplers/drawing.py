"""Drawing of tokens by the Gumbel-max trick, with noise that depends on the request alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stages.samplers.sampler import Request

BLOCK = 256  # tokens of the vocabulary in a block; blocks share one draw of noise
STEPS = 16  # steps of noise that are drawn at once
CHUNK = 32  # rows whose logits fit a CPU's cache together


@dataclass
class Draw:
    """The random state of one candidate: its temperature, and its noise for each step."""

    request: Request
    index: int
    step: int = 0
    noise: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.temperature = self.request.temperatures[self.index]
        self.generator = torch.Generator().manual_seed(self.request.seed_of(self.index))

    def gumbel(self, width: int) -> torch.Tensor:
        """Return Gumbel noise for the next token, of shape (width,)."""
        if self.step % STEPS == 0:
            uniform = torch.rand(STEPS, width, generator=self.generator, dtype=torch.float64)
            self.noise = uniform.clamp_(min=1e-300).log_().neg_().log_().neg_().float()
        self.step += 1
        return self.noise[(self.step - 1) % STEPS]


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw], top_p: float) -> tuple[list[int], list[float]]:
    """Return the next token of every row, and its log-prob at temperature 1, from logits of shape (rows,
    vocabulary)."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for start in range(0, len(draws), CHUNK):
        rows, grid = draws[start : start + CHUNK], to_blocks(logits[start : start + CHUNK])
        noise = torch.zeros(len(rows), grid.shape[1] + BLOCK)
        for i, row in enumerate(rows):
            if row.temperature > 0:
                noise[i] = row.gumbel(noise.shape[1])
        heat = torch.tensor([row.temperature for row in rows])
        chosen, logprob = gumbel_max(grid, heat.to(grid.device), noise.to(grid.device), top_p)
        tokens += chosen.tolist()
        logprobs += logprob.tolist()
    return tokens, logprobs


def to_blocks(logits: torch.Tensor) -> torch.Tensor:
    """Return logits of shape (rows, vocabulary) as (rows, blocks, BLOCK) in fp32. Padding is -inf, which is never
    drawn."""
    short = -logits.shape[1] % BLOCK
    logits = torch.nn.functional.pad(logits.float(), (0, short), value=-torch.inf) if short else logits.float()
    return logits.reshape(len(logits), -1, BLOCK)


def gumbel_max(
    grid: torch.Tensor, heat: torch.Tensor, noise: torch.Tensor, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token per row from softmax(logits / heat) in two steps: a block of the vocabulary, then a token in the
    block. This has the distribution of one draw over the whole vocabulary, without noise for every token. A row with
    heat 0 gets its most likely token. Shapes: grid (rows, blocks, BLOCK), heat (rows,), noise (rows, blocks + BLOCK).
    Returns the tokens, (rows,), and their log-probs at heat 1, (rows,)."""
    tops = grid.amax(-1)
    top = tops.amax(-1, keepdim=True)
    below = grid - top[..., None]  # at most 0, so that sums of exponentials cannot overflow
    total = below.exp().sum((-2, -1)).log()
    greedy = heat == 0
    block = tops.argmax(-1)
    if not bool(greedy.all()):
        below /= torch.where(greedy, 1.0, heat)[:, None, None]
        if top_p < 1:
            below = nucleus(below.flatten(1), top_p).view_as(below)
        drawn = (below.exp().sum(-1).log() + noise[:, : grid.shape[1]]).argmax(-1)
        block = torch.where(greedy, block, drawn)
    rows = torch.arange(len(grid), device=grid.device)
    inside = (below[rows, block] + noise[:, grid.shape[1] :]).argmax(-1)
    return block * BLOCK + inside, grid[rows, block, inside] - top[:, 0] - total


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask all but the smallest set of tokens whose probability reaches `top_p` (arXiv:1904.09751)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    excluded = probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -torch.inf)
