"""Training reads the token ids that the reference scored, without tokenising a pair again, and notices every edit."""

from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stages.config.choices import Spelled
from stages.config.errors import UserError
from stages.models.contract import Contract, load_contract
from stages.objectives.dpo import read_rows
from stages.store.records import Pair, PairLogProbs, load, save
from tests.helpers import Chain, settings
from tests.rows import work

FILES = {"pairs": ("pairs.parquet", Pair), "reference": ("logprobs.parquet", PairLogProbs)}
EDITED = 3  # the row that a test edits


@dataclass
class Tables:
    """The inputs of DPO that name pairs, in a folder where a test may change them, and the policy's contract."""

    inputs: dict[str, Path]
    contract: Contract
    out: Path

    def file(self, role: str) -> Path:
        return self.inputs[role] / FILES[role][0]

    def rows(self, role: str) -> list[Any]:
        return load(self.file(role), FILES[role][1])

    def save(self, role: str, rows: list[Any]) -> None:
        save(self.file(role), rows, FILES[role][1])

    def read(self) -> list[str]:
        """Return the ids of the training pairs."""
        return read_rows(
            self.inputs, self.contract, settings("recipe=tiny").dpo, work(self.out)
        ).train.ids

    def refusal(self) -> str:
        with pytest.raises(UserError) as error:
            self.read()
        return str(error.value)


@pytest.fixture
def tables(built: Path, tmp_path: Path) -> Tables:
    chain = Chain(built)
    copied = Tables({}, load_contract(chain.folder("sft") / "model"), tmp_path / "out")
    for role in FILES:
        copied.inputs[role] = tmp_path / role
        copied.inputs[role].mkdir()
        copied.file(role).write_bytes((chain.folder(role) / FILES[role][0]).read_bytes())
    return copied


def test_no_pair_is_rendered_again(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [pair.id for pair in tables.rows("pairs") if pair.split == "train"]
    tables.contract.rendering_digest  # noqa: B018  # once per contract, not per pair

    def refuse(*_: Any) -> str:
        raise AssertionError("rendered")

    monkeypatch.setattr(Contract, "render", refuse)
    assert tables.read() == expected


def edit_answer(pair: Pair) -> None:
    pair.rejected[0]["content"] += " indeed"


def edit_prompt(pair: Pair) -> None:
    pair.prompt[0]["content"] += " Please."


def edit_token(pair: Pair) -> None:
    assert pair.chosen_token_ids
    pair.chosen_token_ids[0] += 1


def edit_reason(pair: Pair) -> None:
    pair.rejected_finish_reason = "length"


def edit_split(pair: Pair) -> None:
    pair.split = {"train": "validation", "validation": "train"}[pair.split]


def edit_id(pair: Pair) -> None:
    pair.id = "0" * 16


def swap_sides(pair: Pair) -> None:
    pair.chosen, pair.rejected = pair.rejected, pair.chosen


@pytest.mark.parametrize(
    "edit",
    [edit_answer, edit_prompt, edit_token, edit_reason, edit_split, edit_id, swap_sides],
)
def test_an_edited_pair_is_refused_by_its_name(
    edit: Callable[[Pair], None], tables: Tables
) -> None:
    pairs = tables.rows("pairs")
    for pair in pairs[EDITED:]:
        edit(pair)
    tables.save("pairs", pairs)
    refusal = tables.refusal()
    assert str(tables.file("pairs")) in refusal
    assert f"pair {pairs[EDITED].id}:" in refusal
    assert "rebuild=reference" in refusal


def test_a_pair_that_was_moved_removed_or_added_is_refused(tables: Tables) -> None:
    pairs = tables.rows("pairs")
    removed = pairs[:EDITED] + pairs[EDITED + 1 :]
    cases = [
        (pairs[:EDITED] + pairs[EDITED:][::-1], pairs[-1]),
        (removed, pairs[EDITED + 1]),
        (pairs[:-1], pairs[-1]),
        ([*pairs, replace(pairs[-1], id="0" * 16)], replace(pairs[-1], id="0" * 16)),
    ]
    for rows, first in cases:
        tables.save("pairs", rows)
        refusal = tables.refusal()
        assert str(tables.file("pairs")) in refusal
        assert f"pair {first.id}" in refusal
        assert "rebuild=reference" in refusal


@pytest.mark.parametrize("column", ["prompt_ids", "chosen_ids", "rejected_ids"])
def test_token_ids_that_were_not_scored_are_refused(column: str, tables: Tables) -> None:
    scored = tables.rows("reference")
    getattr(scored[EDITED], column)[0] += 1
    tables.save("reference", scored)
    assert f"pair {scored[EDITED].id}:" in tables.refusal()


def test_another_contract_is_refused_before_it_trains_the_tokens_of_the_first(
    tables: Tables,
) -> None:
    first = tables.rows("pairs")[0]
    tables.contract = replace(tables.contract, special=Spelled.drop)
    assert f"pair {first.id}:" in tables.refusal()


def test_a_table_of_an_earlier_version_is_refused_with_the_way_out(tables: Tables) -> None:
    earlier = make_dataclass(
        "Earlier",
        [(each.name, each.type) for each in fields(PairLogProbs) if each.name != "digest"],
    )
    save(tables.file("reference"), tables.rows("reference"), earlier)
    refusal = tables.refusal()
    assert str(tables.file("reference")) in refusal
    assert "rebuild=reference" in refusal


def test_a_pair_that_the_reference_dropped_is_left_out(tables: Tables) -> None:
    scored = tables.rows("reference")
    dropped = scored.pop(EDITED)
    tables.save("reference", scored)
    (tables.inputs["reference"] / "dropped.jsonl").write_text(f'{{"id": "{dropped.id}"}}\n')
    assert dropped.id not in tables.read()
