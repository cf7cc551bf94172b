"""What the label page says of an ensemble's members, one by one, and of the people that it asked."""

import json
from pathlib import Path
from typing import Any

from stages.evaluation.labelling import Labelling, share
from stages.evaluation.reliability import key_of
from stages.pages.jury import Words
from stages.store.manifest import Manifest
from stages.store.sealed_json import WRONG_SHAPE, Damaged, having

PEOPLE = "people"  # beside the members: their word is the judgement


def spoken(folder: Path, manifest: Manifest, labelling: Labelling) -> Words:
    """What every member said, and people where they were asked; of other labelers nothing."""
    names = manifest["metrics"].get("ensemble", {}).get("members", ())
    found: Words = {}
    for j in labelling.judgements if names else ():
        try:
            told = having()(json.loads(j.raw or "{}"))
        except WRONG_SHAPE as error:
            raise Damaged(folder / "judgements.parquet", error) from error
        found[key_of(j)] = {name: str(told[name]) for name in names if name in told}
        if "human" in told:
            found[key_of(j)][PEOPLE] = j.preference
    return found


def members(labelling: Labelling, words: Words, manifest: Manifest) -> dict[str, Any]:
    """The table of members, and how many comparisons they differ on; {} of other labelers."""
    told = manifest["metrics"].get("ensemble", {})
    rows = []
    for name, its in told.get("members", {}).items():
        voted = [(j, words[key_of(j)][name]) for j in labelling.given if name in words[key_of(j)]]
        agrees = share([word == j.preference for j, word in voted], [j.prompt_id for j, _ in voted])
        rows.append({"name": name, "veto": None, "vetoes": 0, **its, "agrees": agrees})
    apart = sum(len({*its.values()}) > 1 for its in words.values())
    return {**told, "members": rows, "apart": apart} if rows else {}
