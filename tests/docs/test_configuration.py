"""Keep `docs/reference/configuration.md` equal to the schema and to the comments in `conf/` and `recipes/`.

`python -m tests.docs.test_configuration` writes it again: run it after changing a key, a default or a comment.
"""

import ast
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from stages.cli import spelling
from stages.config.blocks.arguments import TrainerArguments
from stages.config.blocks.data import Data
from stages.config.blocks.evaluation import Compared, Judged
from stages.config.blocks.labels import Label
from stages.config.blocks.models import Template
from stages.config.blocks.sampling import Drawn, Sample
from stages.config.blocks.training import FirstModel
from stages.config.choices import Command
from stages.config.installation import ROOT
from stages.config.limits import COMPUTED, LIMIT, Limit
from stages.config.schema import OPTIONS, RECIPES, Config, Target
from tests.helpers import composed

PAGE = ROOT / "docs" / "reference" / "configuration.md"
CONF = ROOT / "conf"
HEAD = """# Configuration

<!-- Made from stages/config/, conf/ and recipes/ by: python -m tests.docs.test_configuration -->

The command line sets any key: `python run.py dpo.beta=0.05`. A group sets several keys at once, by the option that it
is given: `python run.py pairs=margin`. A recipe sets keys of all groups. Groups come first, then the recipe, then the
keys of the command line.

A default below is what the groups set. Where `recipe=demo`, which runs unless another recipe is named, sets another
value, that stands beside it. `${precision}` is the value of the key `precision`. Keys under `runtime` do not enter a
fingerprint ([guarantees](../explanation/guarantees.md)). Every `trainer` has the keys of
[TrainerArguments](#trainerarguments) too. Blocks that stand in lists, such as `Source`, come last. If the meaning is another key, that key's row has
type and meaning. `>0–1` are the numbers from 0 to 1 without 0.
"""
# Words that are no enum's: those of targets and commands together, and those that are a room's file names.
WORDS = {
    "stage": [*Target, *Command],
}
TYPES: dict[Any, str] = {
    Any: "block",
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}

AS_SOURCE = re.compile(r"(data\.file|reward\.source)\.(?!path$)")  # said of Source
AS_LABEL = ("label.judge.", "label.reward_model.", "label.human.")  # of an ensemble
ALL_OPTIONS = {
    "data": Data,
    "sample": Sample,
    "sft": FirstModel,
    "label": Label,
    "eval/judged": Judged,
    "template": Template,
}  # with the keys that every option has

SAID_BEFORE = {"openai": Drawn}  # with keys of sample=hf

Row = tuple[str, str, str, str]  # key, type, default, meaning


# What conf/ and recipes/ say.


def head_of(path: Path) -> list[str]:
    """The lines of comment that a file begins with."""
    lines = path.read_text().splitlines()
    return lines[
        : next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    ]


def prose(path: Path) -> str:
    """The sentences of a file's head, without `# @package` and lines like `#   command: …`."""
    lines = [
        line.removeprefix("#").strip()
        for line in head_of(path)
        if not re.match(r"#\s{2,}|# @", line)
    ]
    return " ".join(lines).replace("<", "&lt;")


def groups() -> dict[str, list[Path]]:
    files_by_group: dict[str, list[Path]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        files_by_group.setdefault(path.parent.name, []).append(path)
    return files_by_group


def chosen() -> dict[str, str]:
    """The option that each group has by default."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    return {
        group: option
        for entry in entries
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


@cache
def said_in_yaml() -> dict[str, str]:
    """The comments of conf/ by key: those of a default option first, else another's that sets keys of its group."""
    comment_by_key = dict[str, str]()
    for group, options in groups().items():
        for path in options:
            marked = re.search(r"# @package (\S+)", path.read_text())
            package = marked[1] if marked else group
            if path.stem == chosen().get(group):
                comment_by_key |= comments(path, "" if package == "_global_" else f"{package}.")
            elif package != "_global_":
                comment_by_key = comments(path, f"{package}.") | comment_by_key
    comment_by_key |= comments(CONF / "rows.yaml", "data.")
    comment_by_key |= comments(CONF / "drawn.yaml", "sample.")
    return comment_by_key | comments(CONF / "config.yaml", "")


def comments(path: Path, package: str) -> dict[str, str]:
    """By key, the comment behind it, or else the lines of comment right above it."""
    lines, head = path.read_text().splitlines(), len(head_of(path))
    comment_by_key = dict[str, str]()

    def walk(mapping: yaml.MappingNode, prefix: str) -> None:
        for key, value in mapping.value:
            name = f"{prefix}{key.value}"
            block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            end = key.end_mark if block else value.end_mark
            behind = (
                re.match(r":?\s*#\s*(.*)", lines[end.line][end.column :])
                if end.line < len(lines)
                else None
            )
            first = key.start_mark.line
            while first > head and re.match(rf" {{{key.start_mark.column}}}#", lines[first - 1]):
                first -= 1
            above = " ".join(
                line.strip().removeprefix("#").strip()
                for line in lines[first : key.start_mark.line]
            )
            if comment := behind[1] if behind else above:
                alone = (
                    isinstance(value, yaml.MappingNode)
                    and value.flow_style
                    and len(value.value) == 1
                )
                comment_by_key[f"{name}.{value.value[0][0].value}" if alone else name] = (
                    comment.replace("<", "&lt;")
                )
            if isinstance(value, yaml.MappingNode):
                walk(value, f"{name}.")

    if isinstance(tree := yaml.compose(path.read_text()), yaml.MappingNode):
        walk(tree, package)
    return comment_by_key


# What the schema says.

COMMENT = re.compile(r"\s*#(?!\s*(?:type|noqa)\b)\s*(.*)")


@cache
def said_in_schema(kind: type) -> dict[str, str]:
    """By field of a dataclass or of its bases, the comment above it or behind it."""
    comment_by_field = dict[str, str]()
    for cls in (c for c in reversed(kind.__mro__) if is_dataclass(c)):
        source = textwrap.dedent(inspect.getsource(cls))
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        lines = source.splitlines()
        for field in definition.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                behind = lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode()
                above = itertools.takewhile(COMMENT.match, reversed(lines[: field.lineno - 1]))
                comments = [COMMENT.match(line) for line in (*reversed([*above]), behind)]
                comment_by_field[field.target.id] = " ".join(
                    comment[1] for comment in comments if comment
                )
    return comment_by_field


def docstring(kind: type) -> str:
    """A dataclass's own docstring, not the signature that Python puts in its place."""
    text = vars(kind).get("__doc__") or ""
    return "" if text.startswith(f"{kind.__name__}(") else " ".join(text.split())


def members(hint: Any) -> list[Any]:
    """The members of a union; of any other type, itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if union else [hint]


def nested(hint: Any) -> type | None:
    """The dataclass that a field holds, alone or in a list."""
    for part in members(hint):
        for inner in (part, *typing.get_args(part)):
            if isinstance(inner, type) and is_dataclass(inner):
                return inner
    return None


def interval(limit: Limit) -> str:
    """The numbers that a limit accepts: `0–1`, or `>0–1` and `0–<1` where an end is excluded."""
    low, high = (f"{end:,}" if end < 2**32 - 1 else f"{end}" for end in (limit.low, limit.high))
    return f"{'>' * limit.open}{low}–{'<' * limit.below}{high}".replace("inf", "∞")


def listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def type_of(hint: Any) -> str:
    """A type as a user would say it; of an enum, its words."""
    names = []
    for part in members(hint):
        if isinstance(part, type) and issubclass(part, StrEnum):
            names.append(listed(part))
        elif typing.get_origin(part) is list:
            names.append(f"list of {type_of(typing.get_args(part)[0])}")
        elif typing.get_origin(part) is dict:
            names.append("mapping")
        else:
            names.append("block" if is_dataclass(part) else TYPES.get(part, str(part)))
    return " or ".join(names).replace("integer or number", "number")


# The page.


def values(*overrides: str) -> dict[str, Any]:
    """Return what Hydra composes of these overrides: each block and key by its path."""
    defaults: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            defaults[f"{prefix}{name}"] = value
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(composed(*overrides), resolve=False, enum_to_str=True), "")
    return defaults


def value_text(value: Any) -> str:
    if value == "???":
        return "required"
    if isinstance(value, float):
        return f"`{value:g}`"
    value = str(value) if isinstance(value, StrEnum) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return f"`{text.strip().removesuffix('...').strip()}`"


def default(key: str, field: "Field[Any]", plain: dict[str, Any], demo: dict[str, Any]) -> str:
    """Return the value that the groups set, and the demo's value if it differs; else the schema's default."""
    if key in plain:
        return value_text(plain[key]) + (
            f"; demo: {value_text(demo[key])}" if demo.get(key) != plain[key] else ""
        )
    return value_text(
        field.default if field.default_factory is MISSING else field.default_factory()
    )


def sentences(*parts: str, always: bool = False) -> str:
    """Join texts. Two or more texts, or `always`, become sentences with full stops."""
    texts = [text for text in parts if text]
    if len(texts) < 2 and not always:
        return "".join(texts)
    return " ".join(
        f"{text if '=' in text.split()[0] else text[0].upper() + text[1:]}".removesuffix(".") + "."
        for text in texts
    )


def keys(kind: type, prefix: str, plain: dict[str, Any], demo: dict[str, Any]) -> Iterator[Row]:
    """A row for every field, and for those of the blocks in it."""
    hints, comments_in_schema = typing.get_type_hints(kind), said_in_schema(kind)
    for field in fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if COMPUTED in field.metadata:  # nobody can type it
            continue
        limit = field.metadata.get(LIMIT)
        meanings = [said_in_yaml().get(key, ""), comments_in_schema.get(field.name, "")]
        inner = nested(hint)
        several = {list: "list", dict: "mapping"}.get(typing.get_origin(members(hint)[0]))
        if not prefix and inner in elements(Config).values() and not several:
            yield key, f"[{inner.__name__}](#{inner.__name__.lower()})", "", sentences(*meanings)
            continue
        if inner is None or several:
            kinds = (
                f"{several} of [{inner.__name__}](#{inner.__name__.lower()})"
                if inner
                else type_of(hint)
            )
            kinds = listed(WORDS[key]) if key in WORDS else kinds
            kinds += f", {interval(limit)}" if limit else ""
            yield key, kinds, default(key, field, plain, demo), sentences(*meanings)
            continue
        meaning = sentences(*meanings, docstring(inner))
        null = plain.get(key, MISSING) is None
        if null or meaning:
            yield key, type_of(hint), value_text(None) if null else "", meaning
        yield from keys(inner, f"{key}.", plain, demo)


def say_once(elements: list[Row], rows: list[Row]) -> list[Row]:
    """The rows; where type and meaning were said of an element's or an earlier key of the same name, they name that
    key instead."""
    first = {
        (key.rsplit(".", 1)[-1], kind, meaning): key for key, kind, _, meaning in reversed(elements)
    }
    shortened = []
    for key, kind, value, meaning in rows:
        earlier = first.setdefault((key.rsplit(".", 1)[-1], kind, meaning), key)
        is_known = earlier != key and len(meaning.split()) > 1
        shortened.append(
            (key, "", value, f"`{earlier}`") if is_known else (key, kind, value, meaning)
        )
    return shortened


@cache
def elements(kind: type) -> dict[str, type]:
    """The dataclasses that stand in lists, in a block, in those inside it and in those of a group's options."""
    options = [each for group in OPTIONS.values() for each in group.values()]
    blocks: dict[str, type] = {}
    for each in options if kind is Config else ():
        blocks |= elements(each)
    for hint in typing.get_type_hints(kind).values():
        if inner := nested(hint):
            several = any(typing.get_origin(part) in (list, dict) for part in members(hint))
            blocks |= elements(inner) | ({inner.__name__: inner} if several else {})
    if kind is Config:
        blocks["TrainerArguments"] = TrainerArguments
    return dict(sorted(blocks.items()))


def table(*rows: tuple[str, ...]) -> list[str]:
    head, *rest = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return [head, "|" + " --- |" * len(rows[0]), *rest, ""]


def key_table(rows: list[Row]) -> list[str]:
    return table(
        ("key", "type", "default", "meaning"), *((f"`{key}`", *rest) for key, *rest in rows)
    )


def option_keys(group: str, option: str) -> list[Row]:
    """The rows of the keys that an option of a group has beside those of every option."""
    block = group.replace("/", ".")
    plain = values("~recipe", f"{group}={option}")
    demo = values() if chosen().get(group) == option else plain
    of_all = {key.name for key in fields(SAID_BEFORE.get(option, ALL_OPTIONS[group]))}
    rows = [*keys(OPTIONS[group][option], f"{block}.", plain, demo)]
    own = [row for row in rows if row[0].removeprefix(f"{block}.").split(".")[0] not in of_all]
    return [row for row in own if not row[0].startswith(AS_LABEL)]


def option_sections(elements: list[Row], said: list[Row]) -> list[str]:
    """A section of keys for each option whose class has its own. `elements` and `said`: rows whose meaning is not
    repeated."""
    lines = []
    choices = [
        ("data", "verifiable"),
        ("sft", "default"),
        ("sample", "hf"),
        ("sample", "openai"),
        ("sample", "file"),
    ]
    choices += [("label", option) for option in OPTIONS["label"]]
    for group, option in choices:
        if rows := option_keys(group, option):
            kind = OPTIONS[group][option]
            shown = without_plain(elements, say_once([*elements, *said], rows))
            lines += [f"### {group}={option}", "", docstring(kind), "", *key_table(shown)]
    plain = values("~recipe", "eval/judged=judge")
    judged = (
        "Its other keys are those of its labeler: `eval.judged.endpoints` is as `label.endpoints`."
    )
    rows = [*keys(Compared, "eval.judged.", plain, plain)]
    lines += ["### eval/judged=", "", f"{docstring(Compared)} {judged}", "", *key_table(rows)]
    return lines


def mark(group: str, option: str) -> str:
    return " (default)" if chosen().get(group) == option else ""


def render() -> str:
    lines = [HEAD, "## Groups", ""]
    for group, options in groups().items():
        option_rows = [
            (f"`{group}={path.stem}`{mark(group, path.stem)}", prose(path)) for path in options
        ]
        lines += [f"### {group}=", "", *table(("option", "what it sets"), *option_rows)]
    recipes = []
    for path in sorted(RECIPES.glob("*.yaml")):
        hardware = re.search(r"^#   hardware: *(.*)$", path.read_text(), flags=re.MULTILINE)
        name = f"[`recipe={path.stem}`](../../recipes/{path.name}){mark('recipe', path.stem)}"
        recipes.append((name, prose(path), hardware[1] if hardware else ""))
    lines += ["## Recipes", "", *table(("recipe", "what it is", "hardware"), *recipes)]
    sections = {name: [*keys(kind, "", {}, {})] for name, kind in elements(Config).items()}
    element_rows = [
        (f"{name}.{key}", *rest) for name, section in sections.items() for key, *rest in section
    ]
    every = keys(Config, "", values("~recipe"), values())
    said = [row for row in every if not AS_SOURCE.match(row[0])]
    rows = without_plain(element_rows, say_once(element_rows, said))
    blocks = {
        name: kind
        for name, hint in typing.get_type_hints(Config).items()
        if (kind := nested(hint)) is hint
    }
    lines += ["## Keys", "", "### Of every run", ""]
    lines += key_table([row for row in rows if row[0].split(".")[0] not in blocks])
    for name, kind in blocks.items():
        about = sentences(said_in_yaml().get(name, ""), docstring(kind), always=True)
        lines += [f"### {name}", "", *([about, ""] if about else [])]
        lines += key_table([row for row in rows if row[0].startswith(f"{name}.")])
    lines += option_sections(element_rows, said)
    for name, kind in elements(Config).items():
        lines += [f"### {name}", "", docstring(kind), "", *key_table(sections[name])]
    return "\n".join(lines).rstrip("\n") + "\n"


def without_plain(elements: list[Row], rows: list[Row]) -> list[Row]:
    """The rows without those that only repeat an argument of every trainer."""
    return [(key, *rest) for key, *rest in rows if not is_plain_argument(key, rest, elements)]


def is_plain_argument(key: str, rest: list[str], element_rows: list[Row]) -> bool:
    """Whether a row only repeats an argument of every trainer, with its default."""
    name = f"TrainerArguments.{key.rpartition('.')[2]}"
    defaults = {key: value for key, _, value, _ in element_rows}
    return rest[2] == f"`{name}`" and rest[1] == defaults.get(name)


def line_of(key: str) -> str:
    (line,) = [line for line in render().splitlines() if line.startswith(f"| `{key}` |")]
    return line


def test_the_page_is_true() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "docs/reference/configuration.md is not what the schema, conf/ and recipes/ say: run "
        "python -m tests.docs.test_configuration"
    )


def test_it_names_every_key_option_and_recipe() -> None:
    page = render()
    typed = {
        key
        for option in OPTIONS["label"]
        for key, value in values("~recipe", f"label={option}").items()
        if not isinstance(value, dict) and spelling.setting_types().get(key)
        if COMPUTED not in spelling.setting_types()[key][1]
    }
    named = {
        f"| `{key}` |" for key in typed if not key.startswith(AS_LABEL) and not AS_SOURCE.match(key)
    }
    named -= {
        name
        for name in named
        if re.match(r"\| `((sft|dpo|kto|grpo|reward)\.trainer|prices|model\.config)\.", name)
    }
    named |= {f"| `{group}={path.stem}`" for group, options in groups().items() for path in options}
    named |= {f"`recipe={path.stem}`" for path in RECIPES.glob("*.yaml")}
    assert sorted(name for name in named if name not in page) == []


@pytest.mark.extended
def test_a_key_has_its_words_its_defaults_and_its_comments_beside_it() -> None:
    assert "`best_worst`, `all`, `random`, `margin`" in line_of("pairs.strategy")
    assert "`1e-05`; demo: `2.5e-05`" in line_of("dpo.learning_rate")
    assert "longer pairs are dropped" in line_of("dpo.max_length"), "behind a key in conf/"
    assert "the commit it stands for" in line_of("model.revision"), (
        "in another option than the default one"
    )
    assert "of twins in each suite" in line_of("eval.suites.pairs").lower(), (
        "behind a field of the schema"
    )
    assert "number, >0–1,000" in line_of("dpo.beta"), "a limit of the schema"
    assert "needed: the judges" in line_of("label.endpoints"), "in the class of an option"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
