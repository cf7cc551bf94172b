"""Replay: demonstrations of SFT that are trained again beside the draws of a step, so that other skills are kept.

Which ones follows from the step's number and the seed, so that a resumed training has the same."""

from bisect import bisect
from collections.abc import Iterable

from stages.config.blocks.draws import Drawing
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.rendering import ContractError
from stages.store.records import Candidate, Example, content_id
from stages.training.rollouts import Rollout
from stages.training.token_rows import Row

REPLAYED = "replayed"  # the key of a row, and of a batch, that no draw is in


class Replay:
    """The demonstrations that SFT trains on, in an order by hash."""

    def __init__(
        self, examples: Iterable[Example], contract: Contract, cfg: Drawing, context: int | None
    ):
        """`context`: the number of tokens that the model reads.
        Raise UserError if there are no demonstrations."""
        self.cfg = cfg
        self.contract = contract
        self.longest, _, _ = cfg.length_limit(context)
        demonstrations = [e for e in examples if e.reference and e.split == Split.sft]
        if not demonstrations:
            key = f"{cfg.block}.replay"
            problem = "the data has no demonstrations of SFT to train on again"
            raise UserError(
                f"{key}={cfg.replay:g}: {problem}. Set {key}=0, or raise data.tasks.sft."
            )
        self.by_hash = dict[str, Example]()
        for example in demonstrations:
            self.by_hash[content_id(REPLAYED, example.id)] = example
        self.hashes = sorted(self.by_hash)
        self.skipped_ids = set[str]()

    @property
    def skipped_message(self) -> str:
        """A warning if steps came to demonstrations that cannot be trained, else ''."""
        if not self.skipped_ids:
            return ""
        problem = f"{len(self.skipped_ids)} of {len(self.hashes)} demonstrations were skipped"
        return f"{self.cfg.block}.replay={self.cfg.replay:g}: {problem}. {self.reason_to_skip}."

    @property
    def reason_to_skip(self) -> str:
        key = f"{self.cfg.block}.max_length"
        return f"They have no answer to train, or it ends after token {self.longest} ({key}, or the model's context)"

    def rows(self, step: int, trained_tokens: int) -> list[Row]:
        """Return the rows of a step that trains on so many tokens of draws, each as `prompt_ids` and `completion_ids`.
        They follow one another by hash, from a place that the step and the seed name. The last one is taken with the
        probability that makes the mean share of their tokens `replay`. Raise UserError if no demonstration can be
        trained."""
        name = content_id(REPLAYED, self.cfg.seed, step)
        digest = content_id(name)
        chance = int(digest, 16) / 16 ** len(digest)
        share = self.cfg.replay or 0.0
        missing = trained_tokens * share / (1 - share)
        first = bisect(self.hashes, name)
        rows = list[Row]()
        for each in (*self.hashes[first:], *self.hashes[:first]):
            row = self.row(self.by_hash[each])
            if not row:
                self.skipped_ids.add(each)
                continue
            tokens = len(row["completion_ids"])
            if missing <= chance * tokens:
                break
            rows.append(row)
            missing -= tokens
        if len(self.skipped_ids) == len(self.hashes):
            key = f"{self.cfg.block}.replay"
            problem = f"none of {len(self.hashes)} demonstrations can be trained"
            way_out = f"Set {key}=0, or raise {self.cfg.block}.max_length."
            raise UserError(f"{key}={share:g}: {problem}. {self.reason_to_skip}. {way_out}")
        return rows

    def row(self, example: Example) -> Row | None:
        """Return the prompt and the last trained answer of an example; None if it cannot be rendered, or is too long."""
        try:
            stretches = self.contract.stretches(example.conversation)
        except ContractError:
            return None
        places = [(stretch, answer) for stretch in stretches for answer in stretch.answers]
        weights = example.trained or [True] * len(places)
        row = None
        for (stretch, (_, start, end)), is_trained in zip(places, weights, strict=False):
            # a running text without BOS has no prompt for its first token
            begin = max(start, 1)
            if is_trained and begin < end <= self.longest:
                row = {
                    "prompt_ids": stretch.ids[:begin],
                    "completion_ids": stretch.ids[begin:end],
                }
        return row


def as_draw(token_ids: list[int]) -> Rollout:
    """Return the completion of a replayed row in the form of a draw."""
    candidate = Candidate(
        prompt_id="",
        candidate_id="",
        policy="",
        sampler=REPLAYED,
        temperature=1.0,
        seed=0,
        text="",
        token_ids=token_ids,
        finish_reason="stop",
        logprob=None,
        n_tokens=len(token_ids),
    )
    return Rollout(**vars(candidate))
