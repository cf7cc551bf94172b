"""The words of earlier versions: keys and options that have other names now, or are gone.

Errors about unknown words read this table, and `docs/reference/upgrading.md` is made from it."""

from dataclasses import dataclass

VALUE = "VALUE"  # stands for the typed value
ANY_KEY = ".KEY"  # ends the name of a block whose keys are those of another block now


@dataclass(frozen=True)
class OldWord:
    """A word of an earlier version: a key, a block as `BLOCK.KEY`, or one value of a key as `KEY=VALUE`. `now`: the
    arguments in its place. `gone`: why there are none."""

    before: str
    now: str = ""
    gone: str = ""

    def is_typed_in(self, argument: str) -> bool:
        """Return whether an argument, `KEY` or `KEY=VALUE`, is this word."""
        return self.before in (argument.lower(), argument.partition("=")[0])

    def is_around_or_inside(self, argument: str) -> bool:
        """Return whether this word is a block around the key of an argument, or inside a recipe's block, which comes
        without a value."""
        key, equals, _ = argument.partition("=")
        name = self.before.removesuffix(ANY_KEY)
        is_inside = not equals and f"{name}.".startswith(f"{key}.")
        return is_inside or f"{key}.".startswith(f"{name}.")

    def message(self, argument: str) -> str:
        """Return the message for an argument with this word."""
        key, equals, value = argument.partition("=")
        if self.gone:
            return f"{argument}: {self.before} is gone: {self.gone}. Leave it out."
        now = self.now
        if equals:
            inner_key = key.removeprefix(self.before.removesuffix("KEY"))
            now = now.replace(VALUE, value).replace("KEY", f"{inner_key}={value}")
        return f"{argument}: {self.before} has another name now. Type {now}."


INTERVALS = "intervals are calculated, without draws"
PARITY = "tests/upstream/test_plain_trl.py compares with plain TRL"
SIDE_BY_SIDE = "the report has answers side by side"
NEW_PROMPTS = "rounds with sample.prompts_per_round asks new prompts"
OLD_WORDS = (
    OldWord("objective", "sweep_metric=VALUE"),
    OldWord("data.tasks.seed", "data.seed=VALUE"),
    OldWord("data.form.whitespace=keep", "data.form.whitespace=null"),
    OldWord("sft.train=false", "sft=none"),
    OldWord("sft.trained_turns", "sft.turns=VALUE"),
    OldWord("sft.template.kind", "template=VALUE"),
    OldWord("sample.sampler", "sample=VALUE"),
    OldWord("sample.file", "sample=file sample.own_prompts=false sample.file=VALUE"),
    OldWord("sample=openvino", "sample=hf"),
    OldWord("sample.draw", gone=NEW_PROMPTS),
    OldWord("sample.until_pair", gone=NEW_PROMPTS),
    OldWord("label.labeler", "label=VALUE"),
    OldWord("label.own", "label=own label.own=VALUE"),
    OldWord("label.judge.KEY", "label.KEY"),
    OldWord("label.human.KEY", "label.KEY"),
    OldWord("label.reward_model.KEY", "label.KEY"),
    OldWord("label.ensemble.members", "label.members=VALUE"),
    OldWord("label.ensemble.people", "label.people=VALUE"),
    OldWord("label.runtime.batch_size", "label.runtime.token_budget=TOKENS"),
    OldWord("eval.judged.labeler", "eval/judged=VALUE"),
    OldWord("eval.judged.own", "eval/judged=own eval.judged.own=VALUE"),
    OldWord("eval.judged.judge.KEY", "eval.judged.KEY"),
    OldWord("eval.judged.human.KEY", "eval.judged.KEY"),
    OldWord("eval.judged.reward_model.KEY", "eval.judged.KEY"),
    OldWord("eval.judged.ensemble.members", "eval.judged.members=VALUE"),
    OldWord("eval.judged.ensemble.people", "eval.judged.people=VALUE"),
    OldWord("eval.judged.runtime.batch_size", "eval.judged.runtime.token_budget=TOKENS"),
    OldWord("eval.bootstrap_samples", gone=INTERVALS),
    OldWord("eval.seed", gone=INTERVALS),
    OldWord("pairs.max_rejected_ratio", gone="pairs.max_length_ratio bounds both lengths"),
    OldWord(
        "reward.pairs.max_rejected_ratio", gone="reward.pairs.max_length_ratio bounds both lengths"
    ),
    OldWord("reference.runtime.batch_size", "reference.runtime.token_budget=TOKENS"),
    OldWord("tracker.name", "tracker=VALUE"),
    OldWord("plan.tokens", gone="plan.gpu calculates memory alone"),
    OldWord("chat.compare", gone=SIDE_BY_SIDE),
    OldWord("chat.side_by_side", gone=SIDE_BY_SIDE),
    OldWord("recipe=smollm2_135m", "recipe=short_tasks model=smollm2_135m"),
    OldWord("recipe=from_sft_checkpoint", "recipe=zephyr_7b_dpo"),
    OldWord("recipe=bakeoff", "recipe=docs/examples/bakeoff.yaml"),
    OldWord("recipe=qwen3_0p6b_lora", "recipe=docs/examples/qwen3_0p6b_lora.yaml"),
    OldWord("recipe=llama32_1b_qlora", "recipe=docs/examples/llama32_1b_qlora.yaml"),
    OldWord("stage=parity", gone=PARITY),
    OldWord("parity", gone=PARITY),
)


def old_value_message(argument: str) -> str | None:
    """Return the message for an argument whose key exists, if it is a word of an earlier version; else None."""
    for word in OLD_WORDS:
        if word.is_typed_in(argument):
            return word.message(argument)
    return None


def old_key_message(argument: str) -> str | None:
    """Return the message for an argument, `KEY` or `KEY=VALUE`, whose key does not exist, if an earlier version had it;
    else None."""
    for word in OLD_WORDS:
        if word.is_typed_in(argument) or word.is_around_or_inside(argument):
            return word.message(argument)
    return None
