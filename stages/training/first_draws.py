"""Is there anything to learn? The draws before the first step say so, or why not.

An objective that draws learns from how the scores of a prompt's completions differ. Where they differ for no prompt,
training would end with the model that it began with."""

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from statistics import fmean

from stages.config.blocks.draws import Drawing
from stages.config.errors import UserError
from stages.evaluation.relative_scores import have_difference
from stages.training.rollouts import Rollout, ended_with_reward

# Why a prompt teaches nothing: fewer than two of its completions can be compared, as the others do not end; all pass;
# none does; all have one score; or the scores differ, but the objective wants a higher one.
Cause = StrEnum("Cause", "cut right wrong constant unmet")
WORDS = {
    Cause.cut: "too few of its completions end",
    Cause.right: "all of its completions are right",
    Cause.wrong: "all of its completions are wrong",
    Cause.constant: "all of its completions have one score",
    Cause.unmet: "its best score is too low",
}


class FirstDraws:
    """The groups of some prompts by the weights before the first step. `compared`: the completions of a group whose
    scores the objective compares; `teaches`: whether a group teaches something."""

    def __init__(
        self,
        groups: Sequence[list[Rollout]],
        relative: bool,
        compared: Callable[[list[Rollout]], list[Rollout]],
        teaches: Callable[[list[Rollout]], bool],
    ):
        self.groups = groups
        self.relative = relative
        self.compared = compared
        self.dead = [group for group in groups if not teaches(group)]

    @property
    def figures(self) -> dict[str, float]:
        """The number of prompts, the shares of completions that end and that are right, and the share of prompts that
        teach something. Relative scores do not say what is right."""
        draws = [draw for group in self.groups for draw in group]
        figures = {
            "first_prompts": float(len(self.groups)),
            "first_ended": fmean(draw.finish_reason == "stop" for draw in draws),
            "first_contrast": 1 - len(self.dead) / len(self.groups),
        }
        if not self.relative:
            figures["first_right"] = fmean(is_right(draw) for draw in draws)
        return figures

    def require_contrast(self, cfg: Drawing) -> None:
        """Raise UserError if no prompt teaches anything, with the most frequent cause and the key to change."""
        if len(self.dead) < len(self.groups):
            return
        causes = Counter(self.cause(group) for group in self.dead)
        parts = [f"{count} × {WORDS[cause]}" for cause, count in causes.most_common()]
        problem = f"none of {len(self.groups)} prompts has completions to learn from"
        way_out = self.way_out(causes.most_common(1)[0][0], cfg)
        raise UserError(
            f"{cfg.subject}: {problem}, before the first step: {', '.join(parts)}. {way_out}"
        )

    def few_message(self, cfg: Drawing) -> str:
        """Return a warning if a step is expected to have less than one prompt that teaches something, else ''."""
        expected = cfg.batch_size * (1 - len(self.dead) / len(self.groups))
        if expected >= 1:
            return ""
        causes = Counter(self.cause(group) for group in self.dead)
        [[cause, count]] = causes.most_common(1)
        problem = (
            f"a step has {expected:.1f} prompts to learn from, by the draws before the first step"
        )
        reason = f"for {count} of {len(self.groups)} prompts, {WORDS[cause]}"
        return f"{cfg.block_of_keys}.batch_size={cfg.batch_size}: {problem}: {reason}. {self.way_out(cause, cfg)}"

    def ending_message(self, cfg: Drawing) -> str:
        """Return a warning if scores differ between completions that end and truncated ones alone, else ''."""
        for group in self.groups:
            ended = ended_with_reward(self.compared(group))
            if have_difference([draw.reward or 0.0 for draw in ended]):
                return ""
        problem = "the completions of a prompt that end have one score, so it learns to end and nothing else"
        return (
            f"{cfg.subject}: {problem}, by the draws before the first step. Choose another label."
        )

    def cause(self, group: list[Rollout]) -> Cause:
        """Return why a group teaches nothing."""
        compared = self.compared(group)
        ended = [draw for draw in compared if draw.finish_reason == "stop"]
        if not ended or len(compared) < 2:
            return Cause.cut
        rewards = [draw.reward or 0.0 for draw in compared]
        if have_difference(rewards):
            return Cause.unmet
        if self.relative:
            return Cause.constant
        if all(is_right(draw) for draw in compared):
            return Cause.right
        return Cause.constant if max(rewards) > 0 else Cause.wrong

    def way_out(self, cause: Cause, cfg: Drawing) -> str:
        """Return what to change because of a cause."""
        block = cfg.block_of_keys
        temperature = f"{block}.temperature (now {cfg.temperature:g})"
        if cause is Cause.cut:
            return f"Raise {block}.max_new_tokens (now {cfg.max_new_tokens})."
        if cause is Cause.unmet:
            return cfg.way_to_lower_demands
        if all(len({draw.text for draw in group}) == 1 for group in self.dead):
            return f"The completions of each prompt are one text: raise {temperature}."
        if cause is Cause.right:
            return "Name harder prompts (data.path=FILE), or a stricter label."
        if cause is Cause.wrong:
            return f"Raise {block}.completions (now {cfg.completions}) or {temperature}, or train SFT on such tasks."
        return f"{cfg.scorer.option} gives different texts one score: choose another label."


def is_right(draw: Rollout) -> bool:
    return draw.reward is not None and draw.reward >= 1
