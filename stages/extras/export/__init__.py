"""`stage=export`: a model of a finished run as one file or on the hub, or what it was trained on as a dataset."""

import os
from dataclasses import dataclass

from stages.config import choices
from stages.config.command_record import Block, Command, Object
from stages.config.errors import UserError


@dataclass
class Export(Block):
    # gguf: one file in outputs/export/; hub: the model's folder, to the Hugging Face hub (HF_TOKEN); dataset: a folder in
    # outputs/export/ with pairs, unpaired labels and demonstrations, and to the hub where repo says so
    format: choices.ExportFormat = choices.ExportFormat.gguf
    # base | sft | control | control_pairs | policy, or an objective's name
    model: choices.Role = choices.Role.policy
    dtype: choices.GGUFType | None = None  # of a GGUF file's weights; null: f16
    repo: str | None = None  # of the hub: user/name; of a dataset null pushes nothing
    private: bool = True  # where the repository is new; one that exists stays as it is

    def validate(self, is_target: bool) -> None:
        """Raise UserError for a repository that the hub cannot have, or for an export to the hub without a repository,
        a token, or a model trained here."""
        from stages.store.source_files import is_hub_id  # it reads the configuration

        if self.repo and not is_hub_id(self.repo):
            problem = f"export.repo={self.repo}: the hub takes no such name"
            raise UserError(
                f"{problem}. Type export.repo=user/name, in letters, digits, - _ and dots."
            )
        if not is_target:
            return
        self.validate_format()
        to_hub = self.format is choices.ExportFormat.hub
        if to_hub and not self.repo:
            raise UserError("export.format=hub needs export.repo=user/name.")
        if to_hub and self.model is choices.Role.base:
            raise UserError("export.model=base was not trained here, so it is not pushed.")
        if self.repo and not os.environ.get("HF_TOKEN"):
            raise UserError(f"export.format={self.format} needs a token that can write: HF_TOKEN.")

    def validate_format(self) -> None:
        """Raise UserError for a key that another format reads."""
        is_gguf = self.format is choices.ExportFormat.gguf
        if is_gguf and self.repo:
            raise UserError(f"export.repo={self.repo}: nothing is pushed. Add export.format=hub.")
        if self.dtype and not is_gguf:
            raise UserError(f"export.dtype={self.dtype}: add export.format=gguf, or leave it out.")


COMMAND = Command(
    "a GGUF file, a dataset, or a push to the hub",
    Object.model,
    prints_json=False,
    block=Export,
    next_step="Export the model as one file:",
)
