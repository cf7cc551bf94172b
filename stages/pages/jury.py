"""What the label page says of judges, one by one and two by two."""

from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.choices import Reading, Rubrics
from stages.evaluation.labelling import Labelling, Share, share
from stages.evaluation.reliability import Key, key_of
from stages.labelers.votes import Voice, voices
from stages.store.kept import WRONG_SHAPE, Damaged
from stages.store.store import Manifest

Votes = dict[Key, dict[str, Voice]]  # by what was judged, then by judge


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


def names(votes: Votes) -> list[str]:
    return list(dict.fromkeys(name for its in votes.values() for name in its))


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


def together(labelling: Labelling, votes: Votes) -> list[tuple[str, str, Share]]:
    """How often two judges say the same, of what both say something of."""
    found = []
    for one, two in combinations(names(votes), 2):
        both = [
            (j.prompt_id, [voice.word for n, voice in votes[key_of(j)].items() if n in (one, two)])
            for j in labelling.judgements
        ]
        said = [(prompt, words) for prompt, words in both if len(words) == 2 and None not in words]
        if alike := share([a == b for _, (a, b) in said], [prompt for prompt, _ in said]):
            found.append((one, two, alike))
    return found
