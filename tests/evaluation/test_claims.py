"""An interval becomes a word in one place, the note wins, and nothing says more of an effect than its claim."""

import ast
import html
import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from stages import evaluation, report
from stages.commands.documents import evaluation_section
from stages.config.installation import ROOT
from stages.evaluation import claims, rounds
from stages.evaluation.checked import Checked
from stages.evaluation.claims import ANSWERS, Claim, Word
from stages.evaluation.intervals import Interval
from stages.evaluation.outcomes import differences, rate_row, read_answers, tabulate
from stages.evaluation.results import (
    FILE,
    JudgedComparison,
    Opposed,
    PairGroup,
    PairGroups,
    Results,
    Retained,
    Retention,
    WinRates,
    parse_results,
    read_results,
    write_results,
)
from stages.pages.first_screen import sentence
from stages.pages.live import LivePage
from stages.store.node import Node
from stages.store.store import Store
from stages.store.typed_json import encode
from tests.evaluation.made_results import Bounds, group, learnt, results
from tests.evaluation.planted_preferences import SETS, WITH_CONTROL, Planted
from tests.helpers import Chain, nodes, settings
from tests.rows import work

EVALUATION = ROOT / "stages" / "evaluation"
# The claims. Ranges of findings and limits of settings are no intervals of effects.
MAY_COMPARE = {
    EVALUATION / "claims.py",
    EVALUATION / "diagnosis" / "finding.py",
    ROOT / "stages" / "config" / "limits.py",
}
EFFECTS: dict[str, Bounds] = {
    "better": (0.3, 0.2, 0.4),
    "worse": (-0.3, -0.4, -0.2),
    "same": (0.0, -0.1, 0.1),
    "noted": (0.3, 0.2, 0.4),
}
NOTE = "too few tasks to say"
# The words that say each effect. A count of 0 says none, and "the better answer" is the chosen one of a pair.
WORDS = {
    "better": re.compile(
        r"\b(better(?! (answers?|on 0|by one))|helped|passes more|added more|more than chance|"
        r"(?<!perhaps )learnt (?!the opposite|a shortcut)|so not by|more than plain SFT(?! by one))\b",
        re.IGNORECASE,
    ),
    "worse": re.compile(
        r"\b(worse(?! on 0)|hurt|passes less|took some|the opposite|less likely|less than plain SFT(?! by one))\b",
        re.IGNORECASE,
    ),
    "same": re.compile(
        r"\b(no (measurable|change|clear)|nothing (more|measurable)|not (clearly|measurably))\b"
    ),
    "noted": re.compile(
        r"\b(too few (tasks|judgements|times|to say)|only repeats|rehearsal)\b",
        re.IGNORECASE,
    ),
    "perhaps": re.compile(r"\bperhaps learnt\b"),
    "shortcut": re.compile(r"\b(a shortcut|so it went by)\b"),
    "unmoved": re.compile(r"\bmoved nothing\b"),
    "one measure": re.compile(r"\bby one of two measures\b"),
    "unknown": re.compile(r"\b(cannot be told|too few to tell)\b"),
}
# The words of claims on preferences whose names are others
NAMES = {"preferred": "one measure", "rejected": "one measure", "too_few": "unknown"}


@pytest.mark.parametrize("question", ANSWERS)
def test_the_note_of_a_claim_is_its_whole_answer_to_each_question(question: str) -> None:
    assert {*ANSWERS[question]} <= {word.name for word in Word}
    for word in ANSWERS[question]:
        claim = Claim(Word[word], "+30.0 points, +20.0 to +40.0", "8 prompts", NOTE)
        assert claim.says(question) == claim.with_figure(question) == NOTE
        assert claim.state == "none"
        assert not (claim.is_better or claim.is_worse or claim.is_same)


@pytest.mark.parametrize(
    ("bounds", "word"), [((0.2, 0.0, 0.4), "same"), ((0.2, 1e-9, 0.4), "better")]
)
def test_a_bound_on_the_neutral_value_is_no_effect(bounds: Bounds, word: str) -> None:
    assert claims.difference(Interval(*bounds)).word.name == word
    moved = Interval(*(0.5 + bound for bound in bounds))
    assert claims.word_of(moved, claims.HALF).name == word


def test_an_interval_that_is_not_a_number_says_nothing() -> None:
    for bounds in ((0.0, math.nan, 0.1), (math.nan, math.nan, math.nan), (0.2, 0.1, math.nan)):
        interval = Interval(*bounds)
        assert claims.word_of(interval) is Word.too_few
        known = Interval(0.0, -0.1, 0.1)
        judged = claims.judged_word(claims.ENOUGH_JUDGED, interval, "no rate")
        assert judged is Word.too_few
        for claim in (
            claims.difference(interval),
            claims.over_seeds(interval, 3),
            claims.learnt_over_seeds(interval, 3),
            claims.learnt_control_over_seeds(known, interval, 3),
            claims.learnt_control_over_seeds(interval, known, 3),
            claims.learnt(learnt({"policy": bounds})),
        ):
            assert claim.word is Word.too_few
            assert claim.note
            assert not (claim.is_better or claim.is_worse or claim.is_same)
        assert claims.difference(interval, note=NOTE).note == NOTE
    one_prompt = Interval(0.3, -math.inf, math.inf)
    assert claims.difference(one_prompt).is_same


def test_too_few_judgements_or_lengths_that_differ_say_less_than_better() -> None:
    won = Interval(0.8, 0.7, 0.9)
    assert claims.judged_word(claims.ENOUGH_JUDGED - 1, won, "no rate") is Word.too_few
    assert claims.judged_word(claims.ENOUGH_JUDGED, won, "no rate") is Word.preferred
    lost = Interval(0.2, 0.1, 0.3)
    assert claims.judged_word(claims.ENOUGH_JUDGED, lost, "no rate") is Word.rejected


def compared_bounds(path: Path) -> list[int]:
    """Return the lines of a file that compare a bound of an interval with something."""
    source = path.read_text()
    if not re.search(r"\b(low|high)\b", source):
        return []
    lines = list[int]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                is_bound = isinstance(side, ast.Attribute) and side.attr in ("low", "high")
                is_key = (
                    isinstance(side, ast.Subscript)
                    and isinstance(side.slice, ast.Constant)
                    and side.slice.value in ("low", "high")
                )
                if is_bound or is_key:
                    lines.append(node.lineno)
    return lines


def test_only_estimators_and_claims_compare_a_bound_of_an_interval() -> None:
    files = {*(ROOT / "stages").rglob("*.py")}
    astray = {path.name: compared_bounds(path) for path in files - MAY_COMPARE}
    assert not {name: lines for name, lines in astray.items() if lines}
    assert all(compared_bounds(path) for path in MAY_COMPARE)


def planted_row(row: Any, effect: str) -> Any:
    """Return rates whose differences all have one effect."""
    intervals = {
        name: Interval(*EFFECTS[effect]) if "-" in name else each
        for name, each in row.intervals.items()
    }
    return replace(row, intervals=intervals, note=NOTE if effect == "noted" else "")


def planted_learnt(effect: str) -> Any:
    mean, low, high = EFFECTS[effect]
    note = "too few to say" if effect == "noted" else ""
    return learnt({"policy": (0.5 + mean, 0.5 + low, 0.5 + high)}, note=note)


def planted_comparison(effect: str) -> JudgedComparison:
    mean, low, high = EFFECTS[effect]
    won = Interval(0.5 + mean, 0.5 + low, 0.5 + high)
    word = Word.too_few if effect == "noted" else Word[effect]
    rates = WinRates(won, 0.5, None, "no rate", None, {}, 0.1, str(word))
    counts: dict[str, Any] = {"missing": {}, "ties": 0, "flips": None}
    tokens = {"policy": 9.0, "other": 9.0}
    return JudgedComparison(
        Opposed("SFT", "judge", 90, 0), 90, tokens=tokens, rates=rates, **counts
    )


def planted(stored: Results, effect: str, part: str) -> Results:
    """Return stored results in which all has one effect, with a verdict from one part."""
    groups = {name: planted_row(row, effect) for name, row in stored.groups.items()}
    of_kinds = {
        field: {
            side: {name: planted_row(row, effect) for name, row in rows.items()}
            for side, rows in vars(stored)[field].items()
        }
        for field in ("kinds", "tasks")
    }
    changed = replace(
        stored,
        groups=groups,
        primary=groups[str(stored.endpoint)],
        learnt=planted_learnt(effect),
        judged={"sft": planted_comparison(effect)} if part == "judged" else {},
        gives_verdict=[part],
        references=None,
        **of_kinds,
    )
    return replace(changed, verdict=claims.verdict(changed))


def texts_about(chain: Chain, folder: Path, effect: str, part: str) -> set[str]:
    """Return the sentences of the report, its last line and the card on results with one effect."""
    changed = planted(read_results(chain.folder("eval")), effect, part)
    return texts_of(chain, folder, changed)


def texts_of(chain: Chain, folder: Path, changed: Results) -> set[str]:
    """Return the sentences of the report, its last line and the card on these results of the chain's models."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    shutil.copytree(inputs["eval"], folder / "eval")
    if "control" in changed.models:
        inputs |= {"control": inputs["sft"], "answer_control": inputs["answer_sft"]}
        manifest = json.loads((folder / "eval" / "manifest.json").read_text())
        manifest["inputs"]["control"] = manifest["inputs"]["sft"]
        (folder / "eval" / "manifest.json").write_text(json.dumps(manifest))
    write_results(folder / "eval" / FILE, changed)
    metrics = report.run(
        settings("recipe=tiny").report, inputs | {"eval": folder / "eval"}, work(folder)
    )
    page = (folder / "report.html").read_text()
    return sentences_of(page, metrics["summary"], *evaluation_section(changed, 0.95).splitlines())


def sentences_of(page: str, *texts: str) -> set[str]:
    """Return the sentences and clauses of a page, and of other texts."""
    pieces = [html.unescape(text) for text in re.split(r"<[^>]*>", page)]
    sentences = set[str]()
    for piece in [*pieces, *texts]:
        sentences.update(part.strip() for part in re.split(r"(?<=[.;:,])\s", piece))
    return sentences


def names(effect: str, text: str) -> bool:
    """Return whether a sentence says an effect. "Whether it helped" says none."""
    return bool(WORDS[effect].search(text.partition("whether")[0]))


@pytest.mark.extended
@pytest.mark.parametrize("part", ["checks", "learnt", "judged"])
def test_no_page_card_or_last_line_says_an_effect_that_no_claim_made(
    part: str, chain: Chain, tmp_path: Path
) -> None:
    texts = {effect: texts_about(chain, tmp_path / effect, effect, part) for effect in EFFECTS}
    prose = texts["better"] & texts["worse"] & texts["same"]
    for effect, sentences in texts.items():
        about_it = sentences - prose
        assert any(names(effect, text) for text in about_it), effect
        for other in WORDS.keys() - {effect}:
            unclaimed = [text for text in about_it if names(other, text)]
            assert not unclaimed, f"{effect}: {unclaimed}"


def with_control(content: Any) -> Any:
    """Return the JSON of results with a control, of which all figures equal those of SFT."""
    if not isinstance(content, dict):
        return content
    changed = {name: with_control(each) for name, each in content.items()}
    if "sft" in changed:
        changed["control"] = changed["sft"]
    if "policy-sft" in changed:
        for name in differences(WITH_CONTROL):
            changed.setdefault(name, changed["policy-sft"])
    return changed


def on_pairs_of(case: Planted, chain: Chain) -> Results:
    """Return the results of the chain's evaluation on a planted set alone, without checks."""
    stored = planted(read_results(chain.folder("eval")), "same", "learnt")
    no_checks: dict[str, Any] = {"groups": {}, "primary": None, "kinds": {}, "tasks": {}}
    stored = replace(stored, **no_checks)
    made = case.results()
    if "control" in made.models:
        stored = parse_results(with_control(encode(stored)))
    titles = dict.fromkeys(differences(made.models), "one − another")
    parts = {name: getattr(made, name) for name in ("models", "learnt", "kl", "rehearsal")}
    return replace(stored, differences=titles, verdict=made.verdict, **parts)


def words_of(changed: Results) -> set[str]:
    """Return the names in WORDS of all claims on the preferences of these results."""
    assert changed.learnt
    claim = claims.learnt(changed.learnt)
    if claim.note:
        return {"noted"}
    made = {claim.word.name}
    blind = changed.learnt.claimed.blind
    if blind and claim.word in (Word.better, Word.perhaps, Word.shortcut):
        by_rule = claims.beyond_rule(blind).word
        # On these pairs, to lose is to follow the rule, and no difference cannot be told from it.
        made.add({"worse": "shortcut", "same": "unknown"}.get(by_rule.name, by_rule.name))
    if over_control := claims.over_control(changed):
        made.add(over_control.word.name)
    return {NAMES.get(name, name) for name in made}


@pytest.mark.extended
def test_planted_preferences_are_told_with_the_words_of_their_claims_alone(
    chain: Chain, tmp_path: Path
) -> None:
    changed_by_title = dict[str, Results]()
    texts = dict[str, set[str]]()
    for case in SETS:
        changed = on_pairs_of(case, chain)
        changed_by_title[case.title] = changed
        texts[case.title] = texts_of(chain, tmp_path / case.title, changed)
    prose = set.intersection(*texts.values())
    for title, sentences in texts.items():
        made_words = words_of(changed_by_title[title])
        for name in WORDS:
            said = [text for text in sentences - prose if names(name, text)]
            assert bool(said) is (name in made_words), f"{title}, {name}: {said}"


def test_the_live_page_of_planted_preferences_says_the_words_of_their_claims_alone(
    chain: Chain, tmp_path: Path
) -> None:
    planned = nodes(tmp_path)
    folder = Store(tmp_path).folder(planned["eval"])
    folder.mkdir(parents=True)
    manifest = chain.manifest("eval")
    page = LivePage(Store(tmp_path), planned, [planned["eval"]], "", "", never_known)
    texts = dict[str, set[str]]()
    for case in SETS:
        manifest["metrics"]["summary"] = case.results().verdict
        (folder / "manifest.json").write_text(json.dumps(manifest))
        page.show(running=False)
        listed = (tmp_path / "index.html").read_text()
        texts[case.title] = sentences_of(page.file.read_text() + listed)
    prose = set.intersection(*texts.values())
    for case in SETS:
        made_words = words_of(case.results())
        for name in WORDS:
            said = [text for text in texts[case.title] - prose if names(name, text)]
            assert bool(said) is (name in made_words), f"{case.title}, {name}: {said}"


def never_known(*_: object) -> tuple[float, list[Node]]:
    """Return the seconds left of a run whose time nobody knows."""
    return math.nan, []


def test_a_rehearsal_has_no_verdict_in_its_results(chain: Chain) -> None:
    stored = planted(read_results(chain.folder("eval")), "better", "judged")
    test = Retained("passes", "sft", 0.9, 0.5, 0.1, 0.001, 90, None, holds=True)
    share = Interval(0.2, 0.1, 0.3)
    group = PairGroup("language", "de", 9, 9, 1.0, share, share, share, 0.001, True, True)
    by_language = PairGroups(0.1, [group])
    kept = Retention([test], claims.retention_sentence([test], stored.models))
    effects = {"retention": kept, "learnt": replace(planted_learnt("better"), by=by_language)}
    made = claims.rehearsed(replace(stored, cautions=", and loops more", **effects))
    content = json.dumps(encode(replace(made, verdict=claims.verdict(made))))
    verdicts = r'"effect": "(?!cannot tell)|"(holds|is_reversed|is_certain)": true|keeps|loops more'
    assert not re.search(verdicts, content)
    assert made.judged["sft"].rates.win_rate == stored.judged["sft"].rates.win_rate  # type: ignore[union-attr]


def test_the_section_of_rounds_of_a_rehearsal_says_its_note_and_no_effect() -> None:
    gain = Interval(*EFFECTS["better"])
    by_round = rounds.Rounds(90, [gain] * 3, [gain] * 2, 1, gain, gain)
    says = partial(rounds.sentence, by_round)
    assert says(note=claims.REHEARSAL).startswith(claims.REHEARSAL.capitalize())
    assert says(note=claims.REHEARSAL) != says()
    assert not any(names(effect, says(note=claims.REHEARSAL)) for effect in ("better", "worse"))


def test_a_figure_takes_eight_steps_from_the_answers_to_the_first_line() -> None:
    """The package's docstring names them, and each takes what the one before it returns."""
    groups = Checked.groups.func
    steps = [
        read_answers,
        tabulate,
        groups,
        rate_row,
        write_results,
        claims.change,
        Claim.says,
        sentence,
    ]
    named = re.findall(r"^\d\. `.*?(\w+)`", str(evaluation.__doc__), re.MULTILINE)
    assert named == [step.__name__ for step in steps]
    takes = {step: get_type_hints(step) for step in steps}
    [answers, _] = get_args(takes[read_answers]["return"])
    assert takes[tabulate]["answers"] == answers
    assert get_args(takes[groups]["return"])[1] is takes[tabulate]["return"]
    assert takes[rate_row]["table"] is takes[tabulate]["return"]
    assert takes[rate_row]["return"] is takes[claims.change]["row"]
    assert takes[write_results]["results"] is takes[sentence]["results"] is Results
    assert takes[claims.change]["return"] is Claim
    assert takes[Claim.says]["return"] is takes[sentence]["return"] is str


def test_a_note_stands_on_the_lamp_and_in_the_section_and_no_place_says_an_effect() -> None:
    from stages.pages.first_screen import lamps
    from stages.pages.headline import Headline

    changes: dict[str, Bounds] = {"policy-sft": EFFECTS["better"]}
    groups = {
        "seen tasks": group(changes),
        "unseen tasks": group(changes, tasks=1, note=NOTE),
    }
    few = results(groups)
    node: dict[str, Any] = {"dpo": {"stage": "dpo"}}
    assert "new" not in sentence(few, node, "it"), "the note stands on the lamp"
    [lamp] = [lamp for lamp in lamps(few, node, "it", "") if lamp.title == "New tasks"]
    assert (lamp.word, lamp.state, lamp.figure) == (NOTE, "none", "")
    assert f"out of training: {NOTE}." in Headline(few).checks()
