"""Drawing the next token so that it depends on nothing but the request: Gumbel-max with noise keyed by content."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from stages.samplers.sampler import Request

BLOCK = 256  # tokens of the vocabulary that share a first draw of noise
STEPS = 16  # steps of noise drawn at once: most completions end before they would need more
CHUNK = 32  # rows whose logits are handled together: what fits a CPU's cache


@dataclass
class Draw:
    """The random part of one candidate: its temperature, and its noise, step by step."""

    request: Request
    index: int
    step: int = 0
    noise: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.temperature = self.request.temperatures[self.index]
        self.generator = torch.Generator().manual_seed(self.request.seed_of(self.index))

    def gumbel(self, width: int) -> torch.Tensor:
        """Gumbel noise for the next token, (width,)."""
        if self.step % STEPS == 0:
            uniform = torch.rand(STEPS, width, generator=self.generator, dtype=torch.float64)
            self.noise = uniform.clamp_(min=1e-300).log_().neg_().log_().neg_().float()
        self.step += 1
        return self.noise[(self.step - 1) % STEPS]


def choose(logits: torch.Tensor, draws: Sequence[Draw], top_p: float) -> tuple[list[int], list[float]]:
    """The next token of every row and its log-prob at temperature 1. Logits: (rows, vocabulary)."""
    tokens: list[int] = []
    logprobs: list[float] = []
    width = -(-logits.shape[1] // BLOCK) + BLOCK
    for start in range(0, len(draws), CHUNK):
        rows, part = draws[start : start + CHUNK], logits[start : start + CHUNK].float()
        chosen = part.argmax(-1)
        random = [i for i, row in enumerate(rows) if row.temperature > 0]
        if random:
            noise = torch.stack([rows[i].gumbel(width) for i in random]).to(part.device)
            heat = torch.tensor([rows[i].temperature for i in random], device=part.device)
            heated = (part if len(random) == len(rows) else part[random]) / heat[:, None]
            chosen[random] = gumbel_max(nucleus(heated, top_p), noise)
        tokens += chosen.tolist()
        logprobs += (part.gather(-1, chosen[:, None])[:, 0] - part.logsumexp(-1)).tolist()
    return tokens, logprobs


def gumbel_max(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw a token per row from softmax(logits) by the Gumbel-max trick, in two steps: a block of the vocabulary by
    its total weight, then a token inside it. The distribution is that of one draw over the whole vocabulary, which
    would need noise for every token of it.

    Shapes: logits (rows, vocabulary), noise (rows, blocks + BLOCK); returns (rows,).
    """
    rows, vocabulary = logits.shape
    blocks = noise.shape[1] - BLOCK
    if vocabulary < blocks * BLOCK:
        logits = torch.nn.functional.pad(logits, (0, blocks * BLOCK - vocabulary), value=-torch.inf)
    grid = logits.view(rows, blocks, BLOCK)
    block = (grid.logsumexp(-1) + noise[:, :blocks]).argmax(-1)
    inside = grid[torch.arange(rows, device=logits.device), block]
    return block * BLOCK + (inside + noise[:, blocks:]).argmax(-1)


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask all but the smallest set of tokens whose probability reaches `top_p` (arXiv:1904.09751)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    excluded = probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -torch.inf)
