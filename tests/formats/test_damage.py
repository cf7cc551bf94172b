"""However a file is damaged, each row is used, left out, or quarantined with a reason."""

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from tests.formats.reading import read

ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
KINDS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "a", "input": "", "output": "b", "history": []},
    "chat": {"messages": [ASK, REPLY, ASK, REPLY]},
    "tools": {"messages": [ASK, {"role": "tool", "content": "c"}], "tools": [{"name": "f"}]},
    "labelled": {"prompt": "a", "completion": "b", "label": True},
    "text": {"text": "a"},
    "chosen": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "ab": {"prompt": "a", "output_1": "b", "output_2": "c", "preference": 2},
    "scored": {
        "prompt": "a",
        "completions": [{"text": "b", "score": 1}, {"text": "c", "score": 0}],
    },
}
KEYS = ["role", "content", "from", "value", "text", "score"]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file of rows of one kind, some with lost columns, other values or cut lines, or with other JSON."""
    row = draw(st.sampled_from([*KINDS.values()]))
    whole = json.dumps(row).encode()
    written = [whole] * 6
    for _ in range(draw(st.integers(0, 4))):
        column = draw(st.sampled_from(sorted(row)))
        place = draw(st.integers(0, len(whole) - 1))
        without = {key: value for key, value in row.items() if key != column}
        hurt = [
            json.dumps(without).encode(),
            json.dumps({**row, column: draw(ANYTHING)}).encode(),
            whole[:place],
            whole[:place] + draw(st.binary(min_size=1, max_size=1)) + whole[place + 1 :],
            json.dumps(draw(ANYTHING)).encode(),
        ]
        written.append(draw(st.sampled_from(hurt)))
    return b"\n".join(draw(st.permutations(written)))


SEVERAL = {
    "prompt": "a",
    "completions": [{"text": "b", "score": 1}, {"text": "c", "score": 0}],
}
NO_ANSWERS_FIRST = "\n".join(map(json.dumps, [{"prompt": "a"}, *[SEVERAL] * 5])).encode()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(damaged(), st.sampled_from([Purpose.answers, Purpose.preferences]))
@example(NO_ANSWERS_FIRST, Purpose.preferences)
def test_rows_in_are_rows_out_and_quarantined(content: bytes, purpose: Purpose) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        try:
            result = read(path, purpose)
        except UserError as error:  # a column that changes the meaning, or a file of another kind
            assert "rows.jsonl" in str(error)
            return
    written = [line for line in content.split(b"\n") if line.strip(b" \t\r\n\xef\xbb\xbf")]
    assert result.rows == len(written)
    assert result.rows == len(result.parsed) + len(result.bad_rows) + result.left_out
    assert all(row.error and str(row.error) for row in result.bad_rows)
    for each in result.parsed:
        texts = [*each.answers, *(turn["content"] for turn in each.messages)]
        assert all(text.strip() for text in texts)
