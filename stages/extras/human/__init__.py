"""`label=human`, `eval/judged=human` and `label.people` of an ensemble: people judge answers in a browser."""

from dataclasses import dataclass
from typing import ClassVar

from stages.config.blocks.evaluation import Compared
from stages.config.blocks.labels import HUMAN, HumanPage, Label
from stages.config.limits import at_least, between, computed


@dataclass
class Human(HumanPage, Label):
    """People who judge answers in a browser, and the questions that they get."""

    prefers: ClassVar[bool] = True
    scores_alone: ClassVar[bool] = False

    labeler: str = computed(HUMAN)
    # how many prompts are asked about, drawn at random; null: all
    prompts: int | None = at_least(1, None)
    answers: int = between(2, 6, 2)  # shown side by side, from 2 to 6
    # questions about a prompt; null: of two answers, all pairs; of more, until each was shown
    comparisons: int | None = at_least(1, 1)

    @property
    def asked_people(self) -> HumanPage:
        return self

    def check(self) -> None:
        super().check()
        self.check_people()


@dataclass
class JudgedByHuman(Compared, Human):
    """People say which answer is better, in a browser."""

    labeler: str = computed(HUMAN)


OPTIONS = {"label": Human, "eval/judged": JudgedByHuman}
