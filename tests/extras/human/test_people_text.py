"""People see all characters of a text, also those that rendered Markdown or HTML would hide."""

import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.config.errors import visible
from stages.extras.human.markup import CODE, ESCAPED, STRONG, shown_text, spans
from tests.browser import CHROMIUM, browser
from tests.extras.human.asking import asking

# Texts with a word that rendered Markdown or HTML would hide.
HIDING = [
    "```python secret\nx = 1\n```",
    "~~~ secret\nx\n~~~",
    "| a | b |\n|---|---|\n| 1 | 2 | secret | 3 |",
    "> " * 120 + "secret",
    "".join(f"{'  ' * i}- item\n" for i in range(120)) + "  " * 120 + "- secret",
    "before <!-- secret --> after",
    '[x](http://127.0.0.1:9/secret "secret")',
    "![secret](http://127.0.0.1:9/secret.png)",
    "[x]: http://127.0.0.1:9/secret 'secret'\n\ntext",
    "<details><summary>x</summary>secret</details>",
    '<p hidden style="display:none">secret</p>',
    "<script>window.broken = 'secret'</script>",
    '<img src="http://127.0.0.1:9/secret" onerror="window.broken = 1">',
    "&#115;ecret &lt;secret&gt;",
    "\\*secret\\*",
    "3. secret\n7. secret",
    "    indented secret\n\n\n\nsecret",
    "x\u202esecret\u202c y\u200b\u200d\u2060\ufeffsecret\u00ad",
    "x\x1b[8msecret\x1b[0m\x9b8m\r\x00\x08secret",
    "x" + "".join(chr(0xE0000 + ord(c)) for c in "secret"),
    "x" + "".join(chr(0xE0100 + ord(c)) for c in "secret"),
    "x\u2800\u3164\u115f\uffa0secret\ue000",
    "---\ntitle: secret\n---\n# secret #\n===\n",
    "**secret** __secret__ `secret` ``a`secret`` ~~secret~~ [^1]\n\n[^1]: secret",
]
PIECES = st.sampled_from(
    [*"`~*_#|>-+[](){}<>&\\\n\t \r\x1b\u202e\u200b\u200d\ufe0f\ud800é❤日", "```", "~~~", "**", "# "]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=30).map("".join)
# Script that lists characters outside the window's width, too small, or in the colour of their background.
UNPAINTED = """[...document.querySelectorAll('#answers .text span')].flatMap(span => {
    const style = getComputedStyle(span), hidden = style.visibility != 'visible' || +style.opacity < 1
        || style.color == style.backgroundColor || parseFloat(style.fontSize) < 10;
    const range = document.createRange(), node = span.firstChild, found = [];
    for (let i = 0; node && i < node.length; i += node.data.codePointAt(i) > 0xffff ? 2 : 1) {
        if (/[\\s\\p{M}\\u200c\\u200d]/u.test(String.fromCodePoint(node.data.codePointAt(i)))) continue;
        range.setStart(node, i); range.setEnd(node, i + (node.data.codePointAt(i) > 0xffff ? 2 : 1));
        const seen = [...range.getClientRects()].some(r => r.width > 0 && r.height > 0 && r.left >= 0
            && r.right <= innerWidth);
        if (hidden || !seen) found.push(node.data.slice(i, i + 20));
    }
    return found; })"""


@settings(max_examples=300, deadline=None, derandomize=True)
@example("```a\n```` `x` ```").via("a fence inside another")
@given(TEXTS)
def test_spans_hold_every_character_of_a_text_in_its_place(text: str) -> None:
    pairs = spans(text)
    assert "".join(characters for _, characters in pairs) == shown_text(text)
    assert {style for style, _ in pairs} <= {"", CODE, STRONG, ESCAPED}


def test_invisible_characters_are_escaped_and_typed_escapes_stay_text() -> None:
    assert spans("a\u202eb\\u202e") == [("", "a"), (ESCAPED, "\\u202e"), ("", "b\\u202e")]
    for character in "\x00\x9b\u200b\u2060\u2028\ufeff\ud800\ue000\U000e0041":
        assert visible(character) == ascii(character)[1:-1]
    for text in ("❤️ 1️⃣ 👨\u200d👩\u200d👧 👍🏽", "می\u200cخواهم", "क्\u200dष", "日本 é ß"):
        assert visible(text) == text, "characters with a visible effect stay"
    assert visible("❤\ufe0f\ufe0f a\u200cb") == "❤\ufe0f\\ufe0f a\\u200cb"


@pytest.mark.extended
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_every_character_of_both_answers_is_painted(tmp_path: Path) -> None:
    texts = [[f"first {text}", f"second {text}"] for text in HIDING]
    expected = {shown_text(text) for pair in texts for text in pair}
    with (
        asking(tmp_path, *texts, prompts=len(texts)) as server,
        browser(tmp_path / "browser") as tab,
    ):
        tab.tell("Network.enable")
        seen = set[str]()
        tab.open(f"http://127.0.0.1:{server.port}/#name=ann", 1440)
        for width in [1440, 390] * (len(HIDING) // 2):
            tab.look(width)
            ends = time.monotonic() + 60
            while not tab.evaluate("!busy && now && now.question ? 1 : 0"):
                assert time.monotonic() < ends
                time.sleep(0.02)
            assert tab.evaluate(UNPAINTED) == []
            answers = tab.evaluate(
                "[...document.querySelectorAll('#answers .text')].map(e => e.textContent)"
            )
            assert len(answers) == 2
            seen |= {*answers}
            tab.press("t")
        assert tab.evaluate("window.broken") is None
    assert seen == expected
    assert sum("secret" in text for text in expected) >= 2 * (len(HIDING) - 2)
    assert not [
        url
        for url in tab.pipe.requested
        if not url.startswith(("data:", f"http://127.0.0.1:{server.port}/"))
    ]
