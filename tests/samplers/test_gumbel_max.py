"""The noise of draws: SplitMix64's published bits, and the frequencies of a softmax."""

import math

import torch

from stages.samplers.gumbel_max import BLOCK, CHUNK, DrawState, splitmix64
from stages.samplers.sampler import Request

CPU = torch.device("cpu")


def test_bits_are_the_published_outputs_of_splitmix64() -> None:
    """Compare with the outputs for seed 1234567 of its authors' C program, splitmix64.c."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    seeds = torch.tensor([1234567])
    drawn = splitmix64(seeds, torch.tensor([0]), 5)[0].tolist()
    assert [bits % 2**64 for bits in drawn] == published
    assert splitmix64(seeds, torch.tensor([3]), 1).item() % 2**64 == published[3]


def test_drawn_frequencies_are_the_softmax() -> None:
    """Draw over four blocks with a rest, from neighbouring seeds; compare groups of about 100 draws by chi squared."""
    draws = 16_000
    temperature = 0.7
    logits = torch.randn(3 * BLOCK + 7, generator=torch.Generator().manual_seed(0))
    steps = torch.zeros(draws, dtype=torch.long)
    state = DrawState(torch.arange(draws), steps, torch.full((draws,), temperature), True)
    tokens, logprobs = state.choose(logits.expand(draws, -1), 1.0)
    expected = draws * (logits.double() / temperature).softmax(-1)
    ordered = expected.argsort(descending=True)
    groups = (expected[ordered].cumsum(0) / 100).long()
    group_of = torch.empty_like(groups).scatter(0, ordered, groups)
    counts = group_of[tokens].bincount(minlength=int(groups.max()) + 1)
    means = torch.zeros(len(counts), dtype=torch.double).scatter_add(0, group_of, expected)
    filled = means > 20  # the last group may be small
    chi2 = float(((counts - means)[filled] ** 2 / means[filled]).sum())
    degrees = int(filled.sum()) - 1
    assert abs(chi2 - degrees) < 4.5 * math.sqrt(2 * degrees)
    assert torch.allclose(logprobs, logits.log_softmax(-1)[tokens], atol=1e-5)


def test_a_row_draws_the_same_in_any_batch_and_at_any_start() -> None:
    """Draw three steps of more rows than a chunk at once, and single steps of single rows."""
    requests = [Request(f"{i:04x}", [], [5], [1.0, 0.5], 0) for i in range(CHUNK)]
    candidates = [(request, index) for request in requests for index in (0, 1)]
    logits = torch.randn(3, len(candidates), 300, generator=torch.Generator().manual_seed(0))
    together = DrawState.start(candidates, CPU)
    for step in range(3):
        tokens = together.choose(logits[step], 0.9)[0]
        for row in (0, 7, len(candidates) - 1):
            alone = DrawState.start([candidates[row]], CPU)
            alone.steps += step
            [token] = alone.choose(logits[step, row : row + 1], 0.9)[0]
            assert token == tokens[row]
