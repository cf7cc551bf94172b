"""Stage `versus`: make candidates for a labeler from two models' answers to the same prompts.

A candidate's id is a hash of its model's role, its prompt and its text. So equal answers of the two models remain two
candidates and count as a tie, and what people said of other answers is not taken for these."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.config.blocks.evaluation import Versus
from stages.config.choices import Role
from stages.config.errors import UserError
from stages.evaluation.asked import read_prompts
from stages.models.contract import Contract, load_or_derive_contract
from stages.store.records import Candidate, Example, content_id, load, save
from stages.store.splits import draw_order
from stages.store.workspace import StageDir


def run(cfg: Versus, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `prompts.parquet` and `candidates.parquet` with two candidates per prompt, whose `policy` is the role.
    Uses up to `cfg.prompts` prompts that both models answered, drawn by id. Prompts with checks are used only if
    there are no others. Raise UserError if no prompt has two answers."""
    contract = load_or_derive_contract(inputs["model"] / "model")
    answers = read_answers(inputs["policy"])
    prompts = [e for e in read_prompts(inputs) if e.id in answers and e.group != "rephrased"]
    if "other" in inputs:
        other_answers = read_answers(inputs["other"])
    else:
        other_answers = reference_answers(prompts, cfg.against)
    comparable = [e for e in prompts if e.id in other_answers]
    comparable.sort(key=lambda e: draw_order(e.id))
    without_checks = [e for e in comparable if not e.checks]
    drawn = (without_checks or comparable)[: cfg.prompts]
    if not drawn:
        raise UserError(
            f"eval.judged: none of {len(prompts)} prompts has answers of both models. Use more prompts."
        )
    identical = sum(
        answers[e.id].answer.strip() == other_answers[e.id].answer.strip() for e in drawn
    )
    if cfg.constant:
        # a real answer to the first prompt, used for all other prompts
        constant = answers[drawn[0].id]
        # if all answers are identical, nothing needs a judge
        drawn = drawn[1:] if identical < len(drawn) else []
        answers = {e.id: replace(constant, prompt_id=e.id) for e in drawn}

    candidates = list[Candidate]()
    for example in drawn:
        candidates.append(candidate_of_role(answers[example.id], str(Role.policy), contract))
        candidates.append(candidate_of_role(other_answers[example.id], cfg.against, contract))
    save(out / "prompts.parquet", drawn, Example)
    save(out / "candidates.parquet", candidates, Candidate)
    return {
        "prompts": len(drawn),
        "of": len(comparable),
        "alike": identical,
        "summary": f"{len(drawn)} of {len(comparable)} prompts with two answers, {identical} of them identical",
    }


def read_answers(folder: Path) -> dict[str, Candidate]:
    """Return a model's answers by prompt id."""
    return {a.prompt_id: a for a in load(folder / "answers.parquet", Candidate)}


def reference_answers(prompts: list[Example], opponent: str) -> dict[str, Candidate]:
    """Return the prompts' own answers by prompt id, as those of an opponent."""
    answers = dict[str, Candidate]()
    for example in prompts:
        if example.reference:
            answer = Candidate.from_text(example.id, example.reference, opponent, "file", 0)
            answers[example.id] = answer
    return answers


def candidate_of_role(answer: Candidate, role: str, policy_contract: Contract) -> Candidate:
    """Return an answer as a candidate of a role. Its length, with any end of turn, is by the policy's tokenizer."""
    measured = (
        answer if answer.tokenizer == policy_contract.digest else policy_contract.measure(answer)
    )
    return replace(
        measured, candidate_id=content_id(role, answer.prompt_id, answer.text), policy=role
    )
