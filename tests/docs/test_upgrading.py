"""Keep the table of old words in `docs/reference/upgrading.md` equal to `stages/config/renamed.py`, and the words true.

`python -m tests.docs.test_upgrading` writes the table again."""

import pytest

from stages.config.extras import EXTRAS
from stages.config.installation import ROOT
from stages.config.renamed import OLD_WORDS, OldWord
from tests.helpers import TINY, extended_but, refused, settings

PAGE = ROOT / "docs" / "reference" / "upgrading.md"
WORDS = {word.before: word for word in OLD_WORDS}
TYPABLE = [word for word in WORDS if ".human." not in word or "human" in EXTRAS]
BEGIN = "<!-- Made from stages/config/renamed.py by: python -m tests.docs.test_upgrading -->\n"
END = "<!-- The end of the table. -->"
# options with which a word can be typed at all, and values of words
OPTIONS = {
    "label.judge.KEY": "label=judge",
    "label.human.KEY": "label=human",
    "label.reward_model.KEY": "label=reward_model",
    "label.runtime": "label=reward_model",
    "eval.judged.judge.KEY": "eval/judged=judge",
    "eval.judged.human.KEY": "eval/judged=human",
    "eval.judged.reward_model.KEY": "eval/judged=reward_model",
    "label.ensemble": "label=ensemble",
    "eval.judged.ensemble": "eval/judged=ensemble",
    "eval.judged.runtime": "eval/judged=reward_model",
}
VALUES = {
    "objective": "validation_loss",
    "sft.trained_turns": "last",
    "sft.template.kind": "chatml",
    "sample.sampler": "vllm",
    "label.labeler": "judge",
    "eval.judged.labeler": "judge",
    "tracker.name": "wandb",
    "sample.file": "a.jsonl",
    "label.own": "{file:a.py,name:b}",
    "eval.judged.own": "{file:a.py,name:b}",
    "label.ensemble.members": "[]",
    "eval.judged.ensemble.members": "[]",
}


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table() -> str:
    lines = ["| before | now |", "|---|---|"]
    for word in OLD_WORDS:
        lines.append(f"| {code(word.before)} | {code(word.now) or f'gone: {word.gone}'} |")
    return "\n".join(lines) + "\n"


def rendered(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def typed(word: OldWord) -> list[str]:
    """Return arguments with an old word."""
    options = [option for name, option in OPTIONS.items() if word.before.startswith(name)]
    argument = word.before.replace("KEY", "audit")
    if "=" not in argument:
        argument = f"{argument}={VALUES.get(word.before, 5)}"
    return [*options[:1], argument]


def test_the_page_has_every_old_word() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == rendered(page), "run python -m tests.docs.test_upgrading"


@pytest.mark.parametrize(
    "before",
    extended_but(TYPABLE, "sample.sampler", "plan.tokens", "label.judge.KEY", "stage=parity"),
)
def test_an_old_word_is_refused_with_the_new_one(before: str) -> None:
    word = WORDS[before]
    *options, argument = typed(word)
    refusal = refused(*TINY, *options, argument)
    if word.gone:
        assert word.gone in refusal
        return
    value = argument.partition("=")[2]
    key = argument.partition("=")[0].rpartition(".")[2]
    now = word.now.replace("VALUE", value).replace("KEY", f"{key}={value}").split()
    assert now[0] in refusal
    assert settings(*TINY, *options, *" ".join(now).replace("TOKENS", "4096").split())


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
