"""`results.json` is read into types and written back to the byte, and a file of another shape is refused."""

import json
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.evaluation import rounds
from stages.evaluation.intervals import Interval
from stages.evaluation.results import (
    FILE,
    OLDEST_VERSION,
    Behaviour,
    Divergence,
    JudgedComparison,
    MatchedRate,
    OpenPrompts,
    Opposed,
    PairGroup,
    PairGroups,
    PeopleRate,
    Rates,
    References,
    Results,
    Retained,
    Retention,
    Waiting,
    WinRates,
    parse_results,
    read_results,
    write_results,
)
from stages.store.sealed_json import Damaged
from stages.store.typed_json import encode
from tests.evaluation.made_results import group, learnt, results
from tests.helpers import Chain

SHARE = Interval(0.5, 0.4, 0.6)


def test_what_the_stage_wrote_is_read_and_written_to_the_byte(built: Path, tmp_path: Path) -> None:
    for file in built.glob(f"eval/*/{FILE}"):
        write_results(tmp_path / FILE, read_results(file.parent))
        assert (tmp_path / FILE).read_bytes() == file.read_bytes()


def with_all_parts() -> Results:
    """Return results with each part that an evaluation may have."""
    rates = WinRates(
        win_rate=SHARE,
        longer=0.5,
        matched=MatchedRate(SHARE, 0.7),
        unmatched="",
        people=PeopleRate(60, True, SHARE, "people alone"),
        nulls={"longer wins": SHARE},
        detectable=0.1,
        effect="better",
    )
    asked = Opposed("SFT", "judge", 30, 4)
    by_round = rounds.Rounds(9, [SHARE, SHARE], [SHARE], 1, SHARE, SHARE)
    german = PairGroup("language", "de", 42, 40, 1.0, SHARE, SHARE, SHARE, 1e-9, True, True)
    rate = {"policy": (0.5, 0.4, 0.6), "policy-sft": (0.1, 0.0, 0.2)}
    thinking = Behaviour({"policy": 9.0}, {"policy": 1.0}, {"policy": 0.0}, {"policy": 0.1}, {})
    return results(
        {"seen tasks": group(rate, containing=Rates(3, {"policy": SHARE}))},
        learnt=learnt(rate, by=PairGroups(0.1, [german])),
        judged={
            "sft": JudgedComparison(asked, 26, {"too long": 4}, 2, None, {"policy": 9.0}, rates)
        }
        | {"base": Waiting(Opposed("Base", "human", 30, 4), 26, 0.2)},
        behaviour=thinking,
        open={"your own prompts": OpenPrompts(30, thinking)},
        kl={"policy": Divergence(0.1, 1.0, 8)},
        references=References(9, {"policy": -1.5, "policy-sft": SHARE}),
        retention=Retention([Retained("loops", "base", 1.0, 1.0, 0.05, 0.2, 9, None)], "None."),
        sections={rounds.SECTION: encode(by_round)},
    )


def test_every_part_is_read_back_as_it_was_and_its_module_reads_a_section() -> None:
    every_part = with_all_parts()
    read_again = parse_results(json.loads(json.dumps(encode(every_part))))
    assert read_again == every_part
    by_round = rounds.rounds_of(read_again)
    assert by_round and by_round.gains == [SHARE]


def test_results_without_optional_parts_name_none() -> None:
    content = encode(results())
    assert isinstance(content, dict)
    assert content["learnt"] == content["retention"] == content["references"] == {}
    assert content["primary"] is None
    assert not {"rounds", "thoughts", "sections", "behaviour"} & content.keys()
    assert parse_results(content) == results()
    of_pairs = encode(learnt({}))
    assert isinstance(of_pairs, dict)
    assert "by" not in of_pairs


def change_json(path: Path, *keys: str, value: object) -> None:
    """Replace a value in a JSON file, or remove its key if the value is None."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (("endings",), None, "endings is missing"),
        (("primary", "policy-sft", "low"), None, "primary.policy-sft.low is missing"),
        (("groups", "seen tasks", "prompts"), "many", "groups.seen tasks.prompts is str"),
        (("kl", "policy", "answers"), True, "kl.policy.answers is bool"),
        (("kl", "policy", "more"), 1, "kl.policy.more is unknown"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_the_key_with_what_makes_it_again(
    keys: tuple[str, ...], value: object, problem: str, chain: Chain
) -> None:
    folder = chain.folder("eval")
    change_json(folder / FILE, *keys, value=value)
    with pytest.raises(Damaged) as error:
        read_results(folder)
    assert problem in str(error.value)
    assert "rebuild=eval" in str(error.value)


def test_a_file_of_an_older_version_is_refused_with_what_makes_it_again(chain: Chain) -> None:
    folder = chain.folder("eval")
    change_json(folder / "manifest.json", "version", value=OLDEST_VERSION)
    assert read_results(folder)
    change_json(folder / "manifest.json", "version", value=OLDEST_VERSION - 1)
    with pytest.raises(UserError) as error:
        read_results(folder)
    assert f"version {OLDEST_VERSION - 1}" in str(error.value)
    assert "rebuild=eval" in str(error.value)
