"""What the label page says of judges and of an ensemble's members, one by one and two by two."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.evaluation.labelling import Labelling, Share, share
from stages.evaluation.reliability import Key, key_of
from stages.labelers.verdicts import JudgeVote, voices
from stages.store.manifest import Manifest
from stages.store.sealed_json import WRONG_SHAPE, Damaged, having

Votes = dict[Key, dict[str, JudgeVote]]  # by what was judged, then by judge
VotesByMember = dict[Key, dict[str, str | int | None]]  # the same, by whoever said it: a, b or tie, or a score
PEOPLE = "people"  # beside the members: their word is the judgement


def heard(folder: Path, manifest: Manifest, labelling: Labelling) -> Votes:
    """What every judge said; of other labelers nothing."""
    if manifest["metrics"]["labeler"] != "judge":
        return {}
    judge = manifest["config"]["judge"]
    kind, reading = Rubrics(judge["kind"] or Rubrics.pairwise), Reading(judge["reading"] or Reading.json)
    try:
        return {key_of(j): voices(j, kind, reading) for j in labelling.judgements}
    except WRONG_SHAPE as error:
        raise Damaged(folder / "judgements.parquet", error) from error


def said(votes: Votes) -> VotesByMember:
    """What the judges come to, each by itself."""
    return {key: {name: voice.word for name, voice in its.items()} for key, its in votes.items()}


def names(of: Votes | VotesByMember) -> list[str]:
    return list(dict.fromkeys(name for its in of.values() for name in its))


def judges(labelling: Labelling, votes: Votes) -> list[dict[str, Any]]:
    """A row for every judge: how often it was asked and said nothing that counts, how often it prefers the answer that
    is shown first, and how often the order changes its choice. Of scores, only the former."""
    found = []
    for name in names(votes):
        mine = [(j.prompt_id, votes[key_of(j)][name]) for j in labelling.judgements if name in votes[key_of(j)]]
        sides = [(prompt, side) for prompt, voice in mine for side in voice.found.values() if side in ("A", "B")]
        turned = [(prompt, voice.turned) for prompt, voice in mine if voice.turned is not None]
        found.append(
            {
                "name": name,
                "asked": len(mine),
                "silent": sum(voice.word is None for _, voice in mine),
                "first": share([side == "A" for _, side in sides], [prompt for prompt, _ in sides]),
                "turned": share([is_so for _, is_so in turned], [prompt for prompt, _ in turned]),
            }
        )
    return found


def together(labelling: Labelling, words: VotesByMember) -> list[tuple[str, str, Share]]:
    """How often two say the same, of what both say something of."""
    found = []
    for one, two in combinations(names(words), 2):
        both = [(j.prompt_id, [words[key_of(j)].get(name) for name in (one, two)]) for j in labelling.judgements]
        told = [(prompt, theirs) for prompt, theirs in both if None not in theirs]
        if alike := share([a == b for _, (a, b) in told], [prompt for prompt, _ in told]):
            found.append((one, two, alike))
    return found


def spoken(folder: Path, manifest: Manifest, labelling: Labelling) -> VotesByMember:
    """What every member said, and people where they were asked; of other labelers nothing."""
    names = manifest["metrics"].get("ensemble", {}).get("members", ())
    found: VotesByMember = {}
    for j in labelling.judgements if names else ():
        try:
            told = having()(json.loads(j.raw or "{}"))
        except WRONG_SHAPE as error:
            raise Damaged(folder / "judgements.parquet", error) from error
        found[key_of(j)] = {name: str(told[name]) for name in names if name in told}
        if "human" in told:
            found[key_of(j)][PEOPLE] = j.preference
    return found


def members(labelling: Labelling, words: VotesByMember, manifest: Manifest) -> dict[str, Any]:
    """The table of members, and how many comparisons they differ on; {} of other labelers."""
    told = manifest["metrics"].get("ensemble", {})
    rows = []
    for name, its in told.get("members", {}).items():
        voted = [(j, words[key_of(j)][name]) for j in labelling.given if name in words[key_of(j)]]
        agrees = share([word == j.preference for j, word in voted], [j.prompt_id for j, _ in voted])
        rows.append({"name": name, "veto": None, "vetoes": 0, **its, "agrees": agrees})
    apart = sum(len({*its.values()}) > 1 for its in words.values())
    return {**told, "members": rows, "apart": apart} if rows else {}
