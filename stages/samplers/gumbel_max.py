"""Drawing of tokens by the Gumbel-max trick, with noise that depends on the request alone. A hash of the row's seed,
the step and the place makes the noise, so it is the same on every device and in every batch, without any state."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.samplers.sampler import Request

BLOCK = 256  # tokens of the vocabulary in a block; blocks share one draw of noise
CHUNK = 32  # rows whose logits fit a CPU's cache together; another device reads all rows at once
# SplitMix64's 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB as int64
GOLDEN_GAMMA = -0x61C8864680B583EB
FIRST_FACTOR = -0x40A7B892E31B1A47
SECOND_FACTOR = -0x6B2FB644ECCEEE15
# random bits of a uniform number: fp64 holds the middles of 2^52 equal parts of (0, 1) exactly
BITS = 52


@dataclass
class DrawState:
    """The random state of a batch on the device of its logits: seeds, steps and temperatures, each of shape (rows,).
    `sampled`: at least one temperature is above 0. The host knows it, so the device is not asked."""

    seeds: Tensor
    steps: Tensor
    heat: Tensor
    sampled: bool

    @classmethod
    def start(cls, candidates: Sequence[tuple[Request, int]], device: torch.device) -> "DrawState":
        """Return the state before the first step of candidates, each as its request and its index there."""
        seeds = [request.seed_of(index) for request, index in candidates]
        temperatures = [request.temperatures[index] for request, index in candidates]
        first = torch.tensor(seeds, device=device)
        heat = torch.tensor(temperatures, device=device)
        return cls(first, torch.zeros_like(first), heat, any(temperatures))

    def choose(self, logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
        """Return the next token of every row, and its log-prob at temperature 1, each of shape (rows,), from logits of
        shape (rows, vocabulary). The state moves to the next step. Nothing is transferred to the host."""
        size = len(logits)
        if logits.device.type == "cpu":
            size = CHUNK
        tokens = list[Tensor]()
        logprobs = list[Tensor]()
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            grid = to_blocks(logits[rows])
            noise = None
            if self.sampled:
                noise = gumbel(self.seeds[rows], self.steps[rows], BLOCK + grid.shape[1])
            drawn, logprob = gumbel_max(grid, self.heat[rows], noise, top_p)
            tokens.append(drawn)
            logprobs.append(logprob)
        self.steps += 1
        return torch.cat(tokens), torch.cat(logprobs)


def gumbel(seeds: Tensor, steps: Tensor, width: int) -> Tensor:
    """Return Gumbel noise in fp32, shape (rows, width), for rows of these seeds and steps, each of shape (rows,). Bits
    and uniform numbers are exact on every device; fp64 logarithms, rounded to fp32, differ once in about 2^28."""
    bits = splitmix64(seeds, steps << 32, width)
    uniform = (bits >> 64 - BITS).double().mul_(2.0**-BITS).add_(0.5 + 2.0 ** -(BITS + 1))
    return uniform.log_().neg_().log_().neg_().float()


def splitmix64(seeds: Tensor, first: Tensor, count: int) -> Tensor:
    """Return 64 bits, as int64, of shape (rows, count): what SplitMix64 draws from each seed after the `first` numbers
    (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195). Sums and products wrap around at 64 bits."""
    places = torch.arange(1, count + 1, device=seeds.device)
    bits = (seeds + first * GOLDEN_GAMMA)[:, None] + places * GOLDEN_GAMMA
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        bits = bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_((1 << 33) - 1))


def to_blocks(logits: Tensor) -> Tensor:
    """Return logits of shape (rows, vocabulary) as (rows, blocks, BLOCK) in fp32, padded with -inf."""
    short = -logits.shape[1] % BLOCK
    logits = logits.float()
    if short:
        logits = torch.nn.functional.pad(logits, (0, short), value=-torch.inf)
    return logits.reshape(len(logits), -1, BLOCK)


def gumbel_max(
    grid: Tensor, heat: Tensor, noise: Tensor | None, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw a token per row from softmax(logits / heat) in two steps: a block of the vocabulary, then a token in the
    block. This has the distribution of one draw over the whole vocabulary, without noise for every token. A row with
    heat 0 gets its most likely token; `noise` is None if all rows do. Shapes: grid (rows, blocks, BLOCK), heat
    (rows,), noise (rows, BLOCK + blocks). Returns the tokens, (rows,), and their log-probs at heat 1, (rows,)."""
    tops = grid.amax(-1)
    top = tops.amax(-1, keepdim=True)
    below = grid - top[..., None]  # at most 0, so that sums of exponentials cannot overflow
    total = below.exp().sum((-2, -1)).log()
    block = tops.argmax(-1)
    rows = torch.arange(len(grid), device=grid.device)
    if noise is None:
        inside = grid[rows, block].argmax(-1)
    else:
        greedy = heat == 0
        below /= torch.where(greedy, 1.0, heat)[:, None, None]
        below = nucleus(below.flatten(1), top_p).view_as(below)
        drawn = (below.exp().sum(-1).log() + noise[:, BLOCK:]).argmax(-1)
        block = torch.where(greedy, block, drawn)
        inside = (below[rows, block] + noise[:, :BLOCK]).argmax(-1)
        inside = torch.where(greedy, grid[rows, block].argmax(-1), inside)
    return block * BLOCK + inside, grid[rows, block, inside] - top[:, 0] - total


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Mask all but the smallest set of tokens whose probability reaches `top_p` (arXiv:1904.09751)."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    excluded = probability.cumsum(-1) - probability >= top_p
    return logits.masked_fill(torch.zeros_like(excluded).scatter(-1, order, excluded), -torch.inf)
