"""Tests of `stage=parity`: plain TRL follows our first steps, and each planted difference is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.commands import parity, plain_trl
from stages.commands.plain_trl import FirstSteps
from stages.config.installation import ROOT
from stages.models import lm_head, packing
from stages.models.loading import load_tokenizer
from tests.helpers import Chain, refused, slow_but
from tests.helpers import inside as run

PREFERENCES = ROOT / "docs" / "examples" / "preferences.jsonl"
COMMAND = ("stage=parity", "recipe=tiny", "tracker=none")
TEN_STEPS = {"sft": (), "dpo": ("dpo.epochs=2",), "reward": ("reward.epochs=2",)}
OUR_FORWARD = {
    "sft": {"CPULogProbFunction"},
    "dpo": {"CPULogProbFunction", "PackedPairs"},
    "reward": {"PackedPairs"},
}
END = "<|im_end|>"
OTHER_ARGUMENTS = [
    (
        "sft",
        "parity.trl.learning_rate=1e-4",
        ("learning_rate is 0.005 here, and 0.0001 in TRL", "learning rate: "),
    ),
    (
        "sft",
        "parity.trl.assistant_only_loss=false",
        ("32 of 32 have other trained tokens", "trained tokens: "),
    ),
    ("reward", f'parity.trl={{pad_token: "{END}"}}', (f"{END} in TRL", "trained tokens: ")),
    (
        "dpo",
        "parity.trl.max_length=30",
        ("max_length is 1024 here, and 30 in TRL", "other token ids"),
    ),
]
EMBEDDED = (
    *(
        "model=embedded",
        "precision=fp32",
        "sft.learning_rate=5e-5",
        "sft.batch_size=4",
        "data.tasks.sft=48",
    ),
    *("label=dataset", f"label.path={PREFERENCES}", "dpo.learning_rate=1e-5", "dpo.epochs=3"),
    *("reward.learning_rate=1e-5", "reward.epochs=3", "sft.epochs=1"),
)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> list[FirstSteps]:
    """Both sides of the comparisons that a test makes: ours, then TRL's."""
    recorded, table = list[FirstSteps](), parity.steps_table

    def recording(own: FirstSteps, trl: FirstSteps) -> Any:
        recorded.extend((own, trl))
        return table(own, trl)

    monkeypatch.setattr(parity, "steps_table", recording)
    return recorded


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Parts of our own forward that a comparison uses, with the side: the LM head, the packed pairs."""
    names, side, train_trl = set[str](), ["ours"], plain_trl.train_trl

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any) -> Any:
            names.add(f"{owner.__name__} {side[0]}")
            return function(*args)

        is_static = isinstance(vars(owner)[name], staticmethod)
        monkeypatch.setattr(owner, name, staticmethod(watched) if is_static else watched)

    def on_trls_side(*args: Any) -> FirstSteps:
        side[0] = "TRL"
        return train_trl(*args)

    watch(lm_head.CPULogProbFunction, "forward")
    watch(packing.PackedPairs, "pack")
    monkeypatch.setattr(plain_trl, "train_trl", on_trls_side)
    return names


def assert_close(own: FirstSteps, trl: FirstSteps, steps: int) -> None:
    """Assert that all losses are within 1e-5, that the training moved, and that weights stayed together."""
    assert len(own.figures) == len(trl.figures) == len(own.trained) == steps
    assert own.trained == trl.trained and all(own.trained)
    for figures, trl_figures in zip(own.figures, trl.figures, strict=True):
        assert figures["loss"] == pytest.approx(trl_figures["loss"], abs=1e-5)
        assert figures["grad_norm"] == pytest.approx(trl_figures["grad_norm"], rel=1e-4)
    assert len({figures["loss"] for figures in own.figures}) == steps
    assert own.weights.keys() == trl.weights.keys()


@pytest.mark.extended
@pytest.mark.parametrize("stage", slow_but(TEN_STEPS, "dpo"))
def test_plain_trl_follows_ten_steps(
    stage: str, chain: Chain, sides: list[FirstSteps], used: set[str]
) -> None:
    nodes = chain.count()
    ran = run(*COMMAND, f"outputs={chain.root}", f"parity.stage={stage}", *TEN_STEPS[stage])
    assert ran.returncode == 0, ran.stderr
    assert_close(*sides, steps=10)
    assert "By design" in ran.stdout and "white space after the end" in ran.stdout
    assert chain.count() == nodes, "the two trained models are not stored"
    assert used == {f"{name} ours" for name in OUR_FORWARD[stage]}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "overrides",
    [
        ("parity.stage=sft", "sft.adapter=lora"),
        ("parity.stage=dpo", "dpo.adapter=lora"),
        ("parity.stage=dpo", "sft.adapter=lora", "dpo.adapter=continued"),
        ("parity.stage=reward", "reward.adapter=lora"),
    ],
    ids=lambda overrides: " ".join(overrides[-2:]),
)
def test_plain_trl_follows_adapters_in_both_precisions(
    overrides: tuple[str, ...], precision: str, chain: Chain
) -> None:
    ran = run(*COMMAND, f"outputs={chain.root}", f"precision={precision}", *overrides)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("sampled", "in_trl", "expected"),
    [
        (" a b", "a b", {parity.SAMPLED, parity.TAIL}),
        ("a b ", "a b", {parity.SAMPLED, parity.TAIL}),
        (" a b", "ab", {parity.IDS}),
        (" a b", "a", {parity.IDS}),
    ],
)
def test_white_space_that_a_template_trims_from_an_answer_is_by_design(
    sampled: str, in_trl: str, expected: set[str], chain: Chain
) -> None:
    tokenizer = load_tokenizer(chain.folder("sft") / "model")

    def encode(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    prompt = encode("<|im_start|>assistant\n")

    def marked(answer):
        return ([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))

    own, trl = marked(encode(sampled + END)), marked(encode(f"{in_trl}{END}\n"))
    assert tokenizer.eos_token == END
    assert parity.find_differences(own, trl, tokenizer, None) == expected


def planted(chain: Chain, *overrides: str) -> str:
    """Return the error of a comparison that must differ."""
    ran = run(*COMMAND, f"outputs={chain.root}", "parity.steps=2", *overrides)
    assert ran.returncode == 1, ran.stdout
    return ran.stderr.splitlines()[-1]


@pytest.mark.extended
def test_another_template_is_named_with_the_first_token_that_differs(
    chain: Chain, tmp_path: Path
) -> None:
    template = (ROOT / "stages" / "models" / "templates" / "chatml.jinja").read_text()
    file = tmp_path / "theirs.jinja"
    file.write_text(template.replace(r"['role'] + '\n'", r"['role'] + ': '"))
    error = planted(chain, "parity.stage=sft", f"parity.template={file}")
    assert "chat template" in error and f"{file} in TRL" in error
    assert "32 have other token ids" in error and r"'\n' (not trained) here, ':'" in error


@pytest.mark.extended
def test_another_eos_is_named(tmp_path: Path, chain: Chain) -> None:
    error = planted(chain, "parity.stage=sft", "template=plain", f'parity.eos_token="{END}"')
    assert f"eos_token is <|endoftext|> here, and {END} in TRL" in error
    assert f"'<|endoftext|>' here, '{END}' in TRL" in error


@pytest.mark.extended
@pytest.mark.parametrize(
    ("stage", "setting", "expected"),
    [
        ("dpo", "parity.trl.beta=0.2", ("beta is 0.1 here, and 0.2 in TRL", "loss: ")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_ARGUMENTS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_argument_of_trl_is_named(
    stage: str, setting: str, expected: tuple[str, ...], chain: Chain
) -> None:
    error = planted(chain, f"parity.stage={stage}", setting)
    assert [text for text in expected if text not in error] == []


@pytest.mark.extended
def test_a_mask_with_labels_on_padding_is_named(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plant a collator that trains padding on TRL's side; its rows one by one have none."""
    train_trl = plain_trl.train_trl

    def with_trained_padding(trainer: Any, *args: Any) -> FirstSteps:
        collate = trainer.data_collator

        def trains_padding(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            batch = collate(rows)
            batch["labels"][batch["attention_mask"] == 0] = trainer.processing_class.pad_token_id
            return batch

        trainer.data_collator = trains_padding
        return train_trl(trainer, *args)

    monkeypatch.setattr(plain_trl, "train_trl", with_trained_padding)
    error = planted(chain, "parity.stage=sft")
    assert "trained tokens: " in error and "rows: " not in error and "settings: " not in error


@pytest.mark.slow
def test_dropped_rows_and_rows_that_fill_no_batch_are_noted(chain: Chain) -> None:
    length = ("sft.max_length=38", "sft.max_dropped=0.9", "sft.batch_size=7")
    ran = run(*COMMAND, f"outputs={chain.root}", "parity.stage=sft", "parity.steps=1", *length)
    assert ran.returncode == 0, ran.stderr
    assert (
        "dropped" in ran.stdout
        and "sft.max_length=38" in ran.stdout
        and "fill no batch" in ran.stdout
    )


def test_a_setting_that_cannot_work_is_refused_before_anything_is_trained(
    chain: Chain, tmp_path: Path
) -> None:
    outputs = f"outputs={chain.root}"
    assert "parity.stage=eval" in refused(*COMMAND, outputs, "parity.stage=eval")
    assert "sft=none" in refused(*COMMAND, outputs, "parity.stage=sft", "sft=none")
    assert "Did you mean 'beta'" in refused(*COMMAND, outputs, "parity.trl.beeta=1")
    assert "parity.eos_token" in refused(
        *COMMAND, outputs, "parity.stage=sft", "parity.eos_token=nothing"
    )


@pytest.mark.slow
def test_a_template_that_trl_refuses_is_an_error_of_one_line(chain: Chain, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    command = (*COMMAND, f"outputs={chain.root}", "parity.stage=sft", "parity.steps=1")
    assert "TRL refuses" in refused(*command, f"parity.template={broken}")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded")


@pytest.mark.slow
@pytest.mark.parametrize("stage", TEN_STEPS)
def test_plain_trl_follows_ten_steps_of_a_real_model(
    stage: str, embedded: Path, sides: list[FirstSteps]
) -> None:
    ran = run(*COMMAND, f"outputs={embedded}", f"parity.stage={stage}", *EMBEDDED)
    assert ran.returncode == 0, ran.stderr
    assert_close(*sides, steps=10)
