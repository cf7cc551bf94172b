"""Stage `versus`: two models' answers to the same prompts, side by side, as candidates for the labeler.

A candidate's id is a hash of whose it is and of its prompt, so that two models which answer alike stay two candidates:
that is a tie, and no copy of which one would be left out (as in a pool to train on).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Versus
from stages.config.choices import Role
from stages.config.errors import UserError
from stages.evaluation.asked import read_prompts
from stages.evaluation.win_rates import detectable
from stages.models.contract import Contract, load_or_derive_contract
from stages.store.records import Candidate, Example, content_id, load, save
from stages.store.workspace import StageDir

SHORT = 80  # characters of the constant answer that are told


def run(cfg: Versus, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet`, two of a prompt, in which `policy` is whose answer it is.
    Prompts are those that both answered: without checks, where there are any, else with; as many as `prompts`, drawn
    by their ids.

    Raises:
        UserError: where there is no such prompt.
    """
    contract = load_or_derive_contract(inputs["model"] / "model")
    answers = {a.prompt_id: a for a in load(inputs["policy"] / "answers.parquet", Candidate)}
    prompts = [e for e in read_prompts(inputs) if e.id in answers]
    other_answers = {
        e.id: Candidate.of_text(e.id, e.reference, cfg.against, "file", 0) for e in prompts if e.reference
    }
    if "other" in inputs:
        other_answers = {a.prompt_id: a for a in load(inputs["other"] / "answers.parquet", Candidate)}
    with_two_answers = sorted((e for e in prompts if e.id in other_answers), key=lambda e: e.id)
    drawn = ([e for e in with_two_answers if not e.checks] or with_two_answers)[: cfg.prompts]
    if not drawn:
        raise UserError(
            f"eval.judged: {len(prompts)} prompts were asked, and none of them has two answers to compare."
        )
    identical = sum(answers[e.id].stripped_text == other_answers[e.id].stripped_text for e in drawn)
    summary = (
        f"{len(drawn)} of {len(with_two_answers)} prompts with two answers each, {identical} of them alike: a win rate that is "
        f"{100 * detectable(len(drawn)):.0f} points off 50% can be seen"
    )
    if cfg.constant:
        constant = answers[drawn[0].id]  # a real answer to one of the prompts
        drawn = drawn[1:] if identical < len(drawn) else []  # of two models that are the same there is nothing to ask
        answers = {e.id: replace(constant, prompt_id=e.id) for e in drawn}
        summary = f"{len(drawn)} prompts, all answered with {constant.text[:SHORT]!r}"

    roles = ((str(Role.policy), answers), (cfg.against, other_answers))
    save(out / "prompts.parquet", drawn, Example)
    save(
        out / "candidates.parquet",
        (side(answers_by_prompt[e.id], role, contract) for e in drawn for role, answers_by_prompt in roles),
        Candidate,
    )
    return {"prompts": len(drawn), "of": len(with_two_answers), "alike": identical, "summary": summary}


def side(answer: Candidate, role: str, contract: Contract) -> Candidate:
    """An answer as one side of a comparison: as long as the policy's tokenizer makes it, so that lengths compare."""
    tokens = answer.n_tokens if answer.tokenizer == contract.digest else contract.length(answer.text)
    return replace(answer, candidate_id=content_id(role, answer.prompt_id), policy=role, n_tokens=tokens)
