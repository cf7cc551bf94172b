"""Check that `stage=doctor` finds all damage, and that `stage=gc` only removes files of the store."""

import shutil
from pathlib import Path

import pytest

from stages.commands import gc
from stages.store.store import Store
from tests.helpers import TINY, Chain, build, inside, nodes, refused
from tests.pipeline.test_damage import flip


def test_every_damage_is_named_with_the_command_that_mends_it(chain: Chain) -> None:
    sound = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert sound.returncode == 0, sound.stderr
    assert f"{sum(chain.count().values())} nodes (" in sound.stdout
    flip(chain.folder("data") / "examples.parquet")
    (chain.folder("pairs") / "pairs.parquet").unlink()
    manifest = chain.folder("label") / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    ran = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert ran.returncode == 1
    command = "To rebuild it: python run.py stage={0} recipe=tiny"
    lines = {line.split(": ")[0]: line for line in ran.stdout.splitlines()}
    torn = lines[str(chain.folder("data") / "examples.parquet")]
    assert command.format("data") in torn and torn.endswith("rebuild=data")
    assert lines[str(chain.folder("pairs") / "pairs.parquet")].endswith("rebuild=pairs")
    assert f" outputs={chain.root} " in torn, "this store is a copy, so the command must name it"
    assert f"outputs={chain.root} rebuild=label" in ran.stdout
    assert "error: 3 files of " in ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout


FOREIGN = (
    "sft/mine.partial",
    "sft/aaaaaaaaaaaa.partial",
    "photos/0123456789ab.partial",
    "sft/old.replaced",
)
FOREIGN += ("pairs/bbbbbbbbbbbb.replaced", "letters/2024.partial")


def test_gc_removes_nothing_that_the_store_did_not_make(chain: Chain, tmp_path: Path) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["sft"]
    for name in FOREIGN:
        (chain.root / name).mkdir(parents=True)
        (chain.root / name / "letter").write_text("dear")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "letter").write_text("dear")
    store.folder(node).with_suffix(".replaced").symlink_to(elsewhere)
    shutil.copytree(store.folder(node), store.partial(node))
    ran = inside(*TINY, f"outputs={chain.root}", "stage=gc", "gc.remove=true")
    assert ran.returncode == 0, ran.stderr
    assert not store.partial(node).exists(), "this one is the store's"
    assert all((chain.root / name / "letter").exists() for name in FOREIGN)
    assert (elsewhere / "letter").exists()
    assert store.find(nodes(chain.root)["report"])


def test_gc_follows_no_link_to_another_disk(chain: Chain, tmp_path: Path) -> None:
    store = Store(chain.root)
    node = nodes(chain.root)["sft"]
    store.partial(node).mkdir()
    (chain.root / "sft").rename(tmp_path / "sft")
    (chain.root / "sft").symlink_to(tmp_path / "sft")
    assert gc.leftover_folders(store) == [store.partial(node)]
    assert not gc.is_created_here(store, store.partial(node))


@pytest.mark.parametrize("command", [("stage=gc", "gc.remove=true"), ("stage=doctor",)])
def test_a_folder_that_is_no_store_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / name).mkdir(parents=True)
    message = refused(*TINY, f"outputs={tmp_path}", *command)
    assert message.startswith(f"outputs={tmp_path} is not an artifact store")
    assert all((tmp_path / name).exists() for name in FOREIGN)


def test_a_folder_that_is_not_the_node_of_its_name_is_named(chain: Chain) -> None:
    data = chain.folder("data")
    renamed = data.with_name("0123456789ab")
    shutil.copytree(data, renamed)
    empty = chain.root / "sft" / "0123456789ab"
    empty.mkdir()
    (data / "manifest.json").unlink()
    ran = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert ran.returncode == 1
    for folder in (data, renamed, empty):
        [line] = [each for each in ran.stdout.splitlines() if each.startswith(f"{folder} ")]
        assert "elete" in line, "a way out"
    refusal = refused(*TINY, f"outputs={chain.root}", "stage=gc", "gc.remove=true")
    assert "cannot be read" in refusal
    build(chain.root, "stage=data")
    for folder in (renamed, empty):
        shutil.rmtree(folder)
    assert inside(*TINY, f"outputs={chain.root}", "stage=doctor").returncode == 0


@pytest.mark.extended
def test_in_an_empty_store_nothing_was_built(tmp_path: Path) -> None:
    for stage in ("plan", "doctor", "gc"):  # each leaves a folder of Hydra's
        ran = inside(*TINY, f"outputs={tmp_path}", f"stage={stage}")
        assert ran.returncode == 0, ran.stderr
        assert ("nothing was built" in ran.stdout) == (stage != "plan")
        assert "intact" not in ran.stdout


@pytest.mark.extended
@pytest.mark.parametrize("stage", ["doctor", "export"])
def test_a_store_that_does_not_exist_is_not_made(stage: str, tmp_path: Path) -> None:
    mistyped = tmp_path / "otuputs"
    ran = inside(f"outputs={mistyped}", f"stage={stage}")
    assert ran.returncode == 1
    assert f"outputs={mistyped} does not exist" in ran.stderr
    assert not mistyped.exists()


@pytest.mark.parametrize("stage", ["doctor", "gc", "compare", "sync", "gate", "chat", "export"])
def test_a_store_that_does_not_exist_is_refused(stage: str, tmp_path: Path) -> None:
    message = refused(f"outputs={tmp_path / 'otuputs'}", f"stage={stage}")
    assert "does not exist" in message and "Correct the path" in message


@pytest.mark.parametrize("stage", ["compare", "gate", "chat", "export"])
def test_commands_on_results_name_what_makes_one(stage: str, tmp_path: Path) -> None:
    message = refused(f"outputs={tmp_path}", f"stage={stage}", "gate.against=0123456789ab")
    assert "python run.py" in message and "does not exist" not in message
