"""The noise of draws: SplitMix64's published bits, uniform, uncorrelated, and with the frequencies of a softmax."""

import math

import pytest
import torch

from stages.samplers.drawing import BLOCK, CHUNK, Draws, gumbel, splitmix64
from stages.samplers.sampler import Request

CPU = torch.device("cpu")
ROWS, STEPS, WIDTH = 64, 64, 64


def noise(rows: int, steps: int, width: int) -> torch.Tensor:
    """Return noise of neighbouring seeds and steps, (rows, steps, width)."""
    seeds, at = torch.arange(rows).repeat_interleave(steps), torch.arange(steps).repeat(rows)
    return gumbel(seeds, at, width).view(rows, steps, width)


def normal_quantile(chi2: float, degrees: int) -> float:
    """Return a χ² statistic as standard deviations of a normal variable (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * degrees)
    return ((chi2 / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def test_bits_are_the_published_outputs_of_splitmix64() -> None:
    """Compare with the outputs for seed 1234567 of its authors' C program, splitmix64.c."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [
        bits % 2**64
        for bits in splitmix64(torch.tensor([1234567]), torch.tensor([0]), 5)[0].tolist()
    ] == published
    assert splitmix64(torch.tensor([1234567]), torch.tensor([3]), 1).item() % 2**64 == published[3]


@pytest.mark.parametrize("bits", range(0, 64, 8))
def test_every_byte_is_uniform(bits: int) -> None:
    """Count the values of one byte of the noise's bits, over neighbouring seeds, steps and places."""
    seeds, steps = torch.arange(ROWS).repeat_interleave(STEPS), torch.arange(STEPS).repeat(ROWS)
    values = splitmix64(seeds, steps << 32, WIDTH).flatten() >> bits & 255
    expected = len(values) / 256
    chi2 = float(((values.bincount(minlength=256) - expected) ** 2 / expected).sum())
    assert abs(normal_quantile(chi2, 255)) < 4.5


@pytest.mark.parametrize("dimension", [0, 1, 2], ids=["seeds", "steps", "places"])
@pytest.mark.parametrize("distance", [1, 2, 31])
def test_neighbours_are_uncorrelated(dimension: int, distance: int) -> None:
    uniform = (-noise(ROWS, STEPS, WIDTH).double()).exp().neg().exp() - 0.5
    count = uniform.shape[dimension] - distance
    pairs = uniform.narrow(dimension, 0, count) * uniform.narrow(dimension, distance, count)
    # a uniform number's variance is 1/12
    assert abs(float(pairs.mean())) * 12 * math.sqrt(pairs.numel()) < 4.5


def test_noise_has_the_mean_and_variance_of_gumbels_distribution() -> None:
    values = noise(ROWS, STEPS, WIDTH).double().flatten()
    variance = math.pi**2 / 6
    assert abs(float(values.mean()) - 0.5772156649) < 4.5 * math.sqrt(variance / len(values))
    spread = math.sqrt(4.4 * variance**2 / len(values))  # its kurtosis is 5.4
    assert abs(float(values.var()) - variance) < 4.5 * spread


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_drawn_frequencies_are_the_softmax(temperature: float) -> None:
    """Draw over four blocks with a rest, from neighbouring seeds: every token is expected at least 20 times."""
    draws, vocabulary = 40_000, 3 * BLOCK + 7
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    state = Draws(
        torch.arange(draws),
        torch.zeros(draws, dtype=torch.long),
        torch.full((draws,), temperature),
        True,
    )
    tokens, logprobs = state.choose(logits.expand(draws, -1), 1.0)
    expected = draws * (logits.double() / temperature).softmax(-1)
    ordered = expected.argsort(descending=True)
    groups = (expected[ordered].cumsum(0) / 100).long()  # at least about 100 draws each
    group_of = torch.empty_like(groups).scatter(0, ordered, groups)
    expected_counts = torch.zeros(int(groups.max()) + 1, dtype=torch.double).scatter_add(
        0, group_of, expected
    )
    counts = group_of[tokens].bincount(minlength=len(expected_counts))
    filled = expected_counts > 20
    chi2 = float(((counts - expected_counts)[filled] ** 2 / expected_counts[filled]).sum())
    assert normal_quantile(chi2, int(filled.sum()) - 1) < 4.5
    assert torch.allclose(logprobs, logits.log_softmax(-1)[tokens], atol=1e-5)


def test_a_row_draws_the_same_in_any_batch_and_at_any_start() -> None:
    """Draw three steps of more rows than a chunk at once, and single steps of single rows."""
    requests = [Request(f"{i:04x}", [], [5], [1.0, 0.5], 0) for i in range(CHUNK)]
    candidates = [(request, index) for request in requests for index in (0, 1)]
    logits = torch.randn(3, len(candidates), 300, generator=torch.Generator().manual_seed(0))
    together, steps = Draws.start(candidates, CPU), list[torch.Tensor]()
    for step in range(3):
        steps.append(together.choose(logits[step], 0.9)[0])
    for row in (0, 7, len(candidates) - 1):
        for step in range(3):
            alone = Draws.start([candidates[row]], CPU)
            alone.steps += step
            assert (
                alone.choose(logits[step, row : row + 1], 0.9)[0].item() == steps[step][row].item()
            )


def test_padding_of_the_vocabulary_changes_no_draw() -> None:
    logits = torch.randn(CHUNK, 300, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(logits, (0, 3 * BLOCK), value=-torch.inf)
    candidates = [(Request(f"{i:04x}", [], [5], [1.0], 0), 0) for i in range(CHUNK)]
    plain, wide = (Draws.start(candidates, CPU).choose(x, 1.0)[0] for x in (logits, padded))
    assert plain.tolist() == wide.tolist()
