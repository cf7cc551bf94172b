"""Every seam holds; and each of these checks fails, naming the seam, once upstream has moved it."""

import importlib
import inspect
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.helpers import NEEDS_4_BIT
from tests.upstream.effects import EFFECTS
from tests.upstream.parts import Parts
from tests.upstream.seams import ATTENTION_OPS, SEAMS, Seam

IN_C = "ops"  # operations of torch's: their names are not Python's to take away


class Lost(Exception):
    """Names the seam, our files, and what breaks."""

    def __init__(self, seam: Seam, why: BaseException):
        reason = " ".join(f"{type(why).__name__}: {why}".split())[:300]
        super().__init__(f"{seam.place} ({', '.join(seam.files)}): {seam.breaks}. {reason}")


def watch(seam: Seam, parts: Parts) -> None:
    """Raises Lost where the seam's place, its signature or its effect is not as we know it."""
    try:
        attribute = getattr(owner(seam, parts), seam.name)
        if seam.takes:
            takes_what_we_know(attribute, seam.takes.split(", "))
        if seam.place in EFFECTS:
            EFFECTS[seam.place].check(parts)
    except BaseException as reason:
        raise Lost(seam, reason) from reason


def owner(seam: Seam, parts: Parts) -> Any:
    """Return the owner of the attribute: a module, a class, or an instance."""
    owner_object: Any = importlib.import_module(seam.module)
    for step in seam.path[:-1]:
        owner_object = (
            parts.instances[step.removesuffix("()")]
            if step.endswith("()")
            else getattr(owner_object, step)
        )
    return owner_object


def takes_what_we_know(function: Any, expected_names: list[str]) -> None:
    """Our parameters first and in this order; what there is besides may be left out."""
    parameters = inspect.signature(function).parameters
    assert [*parameters][: len(expected_names)] == expected_names, (
        f"it takes {', '.join(parameters)}"
    )
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    rest = [p for p in [*parameters.values()][len(expected_names) :] if p.kind not in optional]
    assert all(p.default is not inspect.Parameter.empty for p in rest), (
        f"it also takes {', '.join(map(str, rest))}"
    )


def each(seams: list[Seam]) -> pytest.MarkDecorator:
    """A test for each."""
    params = [
        pytest.param(
            seam, id=seam.place, marks=NEEDS_4_BIT if seam.module.startswith("bitsandbytes") else ()
        )
        for seam in seams
    ]
    return pytest.mark.parametrize("seam", params)


@pytest.mark.extended
@each(SEAMS)
def test_a_seam_holds(seam: Seam, parts: Parts) -> None:
    watch(seam, parts)


@each([seam for seam in SEAMS if " " not in seam.place])
def test_a_seam_that_is_gone_is_named(
    seam: Seam, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    if IN_C in seam.path:
        seam = replace(seam, place=f"{seam.place}_renamed")
    else:
        take_away(owner(seam, parts), seam.name, monkeypatch)
    with pytest.raises(Lost) as lost:
        watch(seam, parts)
    assert str(lost.value).startswith(seam.place)
    assert "AttributeError" in str(lost.value)


def take_away(owner_object: Any, name: str, patch: pytest.MonkeyPatch) -> None:
    """From whatever class of the object's defines it; a function also from the module from which it is handed on."""
    if inspect.ismodule(owner_object):
        home = getattr(getattr(owner_object, name), "__module__", None)
        for module in {owner_object.__name__, home or owner_object.__name__}:
            patch.delattr(sys.modules[module], name, raising=False)
    elif inspect.isclass(owner_object):
        for kind in owner_object.__mro__:
            if name in vars(kind):
                patch.delattr(kind, name)
    else:
        patch.delattr(owner_object, name)


@each([seam for seam in SEAMS if seam.takes])
@pytest.mark.parametrize(
    "other", [lambda *, something_else: None, lambda: None], ids=["renamed", "fewer"]
)
def test_a_seam_with_another_signature_is_named(
    seam: Seam, other: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner(seam, parts), seam.name, other)
    with pytest.raises(Lost) as lost:
        watch(seam, parts)
    assert str(lost.value).startswith(seam.place)
    assert "it takes" in str(lost.value)


@each([seam for seam in SEAMS if seam.place in EFFECTS])
def test_a_seam_without_effect_is_named(
    seam: Seam, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    EFFECTS[seam.place].lost(parts, monkeypatch)
    with pytest.raises(Lost) as lost:
        watch(seam, parts)
    assert str(lost.value).startswith(seam.place)


def test_what_is_watched_by_its_name_alone_is_of_other_devices_or_programs() -> None:
    """Only APIs of GPUs and of W&B's service, another program, have no effect test here; tests/pretend/test_fsdp.py
    is that of sharding."""
    sharding = ["fsdp2_prepare_model", "_no_split_modules", "fsdp_plugin_args"]
    without_effect = [seam.name for seam in SEAMS if seam.place not in EFFECTS]
    assert {*EFFECTS} <= {seam.place for seam in SEAMS}
    assert without_effect == [*sharding, *ATTENTION_OPS[1:], "_grouped_mm", "x_disable_meta"]


def test_an_argument_more_than_ours_is_told() -> None:
    with pytest.raises(AssertionError, match="it also takes new"):
        takes_what_we_know(lambda first, new: None, ["first"])
    takes_what_we_know(lambda first, new=None, *rest, **options: None, ["first"])
