"""Judges and ensemble members on the label page: the figures of each one, and their agreement in pairs."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.evaluation.labelling import Labelling, Share, share
from stages.evaluation.reliability import Key, key_of
from stages.labelers.verdicts import JudgeVote, judge_votes
from stages.store.manifest import Manifest
from stages.store.sealed_json import WRONG_SHAPE, Damaged, require_keys

Votes = dict[Key, dict[str, JudgeVote]]  # by the judged candidates, then by judge
# label (a, b, tie or a score) by candidates, then by member
VotesByMember = dict[Key, dict[str, str | int | None]]
PEOPLE = "people"  # listed with the members; people's label is the judgement


def read_votes(folder: Path, manifest: Manifest, labelling: Labelling) -> Votes:
    """Read every judge's votes; empty for other labelers."""
    if manifest["metrics"]["labeler"] != "judge":
        return {}
    judge = manifest["config"]
    kind, reading = Rubrics(judge["kind"]), Reading(judge["reading"])
    try:
        return {key_of(j): judge_votes(j, kind, reading) for j in labelling.judgements}
    except WRONG_SHAPE as error:
        raise Damaged(folder / "judgements.parquet", error) from error


def names(votes: Votes | VotesByMember) -> list[str]:
    return list(dict.fromkeys(name for votes_of_one in votes.values() for name in votes_of_one))


def judges(labelling: Labelling, votes: Votes) -> list[dict[str, Any]]:
    """Return a row per judge: questions, missing verdicts, shares that prefer the first and change with the order."""
    rows = []
    for name in names(votes):
        cast = [
            (j.prompt_id, votes[key_of(j)][name])
            for j in labelling.judgements
            if name in votes[key_of(j)]
        ]
        sides = [
            (prompt, side)
            for prompt, voice in cast
            for side in voice.verdicts.values()
            if side in ("A", "B")
        ]
        turned = [
            (prompt, voice.order_decided)
            for prompt, voice in cast
            if voice.order_decided is not None
        ]
        first = share([side == "A" for _, side in sides], [prompt for prompt, _ in sides])
        changed = share([is_so for _, is_so in turned], [prompt for prompt, _ in turned])
        silent = sum(voice.word is None for _, voice in cast)
        rows.append(
            {"name": name, "asked": len(cast), "silent": silent, "first": first, "turned": changed}
        )
    return rows


def agreeing(labelling: Labelling, words: VotesByMember) -> list[tuple[str, str, Share]]:
    """Return for each two judges or members the share of equal labels, where both gave one."""
    agreements = []
    for one, two in combinations(names(words), 2):
        both = [
            (j.prompt_id, [words[key_of(j)].get(name) for name in (one, two)])
            for j in labelling.judgements
        ]
        words_of_both = [(prompt, pair) for prompt, pair in both if None not in pair]
        if alike := share(
            [a == b for _, (a, b) in words_of_both], [prompt for prompt, _ in words_of_both]
        ):
            agreements.append((one, two, alike))
    return agreements


def words_of_members(
    folder: Path, manifest: Manifest, labelling: Labelling, votes: Votes
) -> VotesByMember:
    """Return the label of every judge, by its `votes`, or read that of every ensemble member, and of people if they
    were asked; empty for other labelers."""
    if votes:
        return {
            key: {name: voice.word for name, voice in of_one.items()}
            for key, of_one in votes.items()
        }
    names = manifest["metrics"].get("ensemble", {}).get("members", ())
    words: VotesByMember = {}
    for j in labelling.judgements if names else ():
        try:
            answer = require_keys()(json.loads(j.raw or "{}"))
        except WRONG_SHAPE as error:
            raise Damaged(folder / "judgements.parquet", error) from error
        words[key_of(j)] = {name: str(answer[name]) for name in names if name in answer}
        if "human" in answer:
            words[key_of(j)][PEOPLE] = j.preference
    return words


def members(labelling: Labelling, words: VotesByMember, manifest: Manifest) -> dict[str, Any]:
    """Return the table of members and the number of comparisons on which they differ; {} for other labelers."""
    ensemble = manifest["metrics"].get("ensemble", {})
    rows = []
    for name, figures in ensemble.get("members", {}).items():
        voted = [(j, words[key_of(j)][name]) for j in labelling.valid if name in words[key_of(j)]]
        agrees = share([word == j.preference for j, word in voted], [j.prompt_id for j, _ in voted])
        rows.append({"name": name, "veto": None, "vetoes": 0, **figures, "agrees": agrees})
    differing = sum(len({*words_of_one.values()}) > 1 for words_of_one in words.values())
    return {**ensemble, "members": rows, "apart": differing} if rows else {}
