"""The token ids of a pair: what was sampled is what is scored and trained.

Text says less than the ids that it was decoded from. A tokenizer may cut it up in another way than it was drawn, and
a completion that was cut off would be given an end of turn that was never drawn.
"""

from stages.models.contract import Contract
from stages.models.rendering import ContractError
from stages.store.records import Pair, PairLogProbs


def drawn(pair: Pair, terms: Contract) -> list[list[int] | None]:
    """The ids that were drawn as chosen and as rejected. None where there are none, where they were drawn under
    another contract, and where the text has been changed since."""
    sides = (
        (pair.chosen, pair.chosen_token_ids, pair.chosen_tokenizer),
        (pair.rejected, pair.rejected_token_ids, pair.rejected_tokenizer),
    )
    return [own(ids, of, said[0]["content"], terms) for said, ids, of in sides]


def own(ids: list[int] | None, of: str | None, text: str, terms: Contract) -> list[int] | None:
    """Ids drawn under the contract of digest `of`, where that is this one and they still say the text."""
    return ids if ids is not None and of == terms.digest and terms.text(ids) == text else None


def tokenized(pair: Pair, terms: Contract, found: list[list[int] | None] | None = None) -> PairLogProbs:
    """The pair as token ids, without log-probs: what was drawn, else its text under the contract. `found` is what
    `drawn` gave, where it was asked before.

    Raises:
        ContractError: where the text cannot be rendered, or a completion has no token.
    """
    prompt = terms.prompt(pair.prompt)
    chosen, rejected = drawn(pair, terms) if found is None else found
    if chosen is None:
        _, chosen = terms.completion(pair.prompt, pair.chosen)
    if rejected is None:
        _, rejected = terms.completion(pair.prompt, pair.rejected, pair.rejected_finish_reason == "stop")
    if not (chosen and rejected):
        raise ContractError("an unfinished completion holds no token")
    return PairLogProbs(pair.id, prompt, chosen, rejected, [], [])
