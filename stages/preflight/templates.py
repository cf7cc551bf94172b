"""Rubrics, tasks and chat templates of the user's own, tried before anything is built."""

from contextlib import suppress
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Judge
from stages.config.choices import RUBRIC_TEXTS, Rubrics
from stages.config.errors import Errors, UserError
from stages.config.schema import Config
from stages.preflight import data_sources
from stages.sandbox.jinja_process import Refusal, blaming, facts_of, render
from stages.store import plugins
from stages.store.source_files import read_template

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def refuse(cfg: Config) -> None:
    """Raise UserError for the templates that cannot work."""
    errors = Errors()
    if cfg.label.judge.kind and cfg.label.judge.rubric:
        with errors:
            rubric(cfg.label.judge, Path(cfg.label.judge.rubric))
    if cfg.sft.template.path:
        with errors:
            chat(Path(cfg.sft.template.path))
    for key, source in data_sources.of_run(cfg):
        if isinstance(source, Source) and source.task and plugins.user_path(source.task).is_file():
            with errors:
                task(f"{key}.task", source.task)
    errors.refuse()


def rubric(judge: Judge, file: Path) -> None:
    """Refuse a rubric that cannot be rendered, or that leaves out what is to be judged."""
    texts = RUBRIC_TEXTS[judge.kind or Rubrics.pairwise]
    setting, source = f"label.judge.rubric={file}", read_template(file, "label.judge.rubric")
    with blaming(setting, f"It may read {', '.join(texts)} and reply"):
        [(shown, _)] = render(source, [{name: f"<{name}>" for name in (*texts, "reply")}])
    if lacking := [name for name in texts if f"<{name}>" not in shown]:
        raise UserError(f"{setting} shows the judge no {', '.join(lacking)}: it holds {{{{ {lacking[0]} }}}}.")


def chat(file: Path) -> None:
    """Refuse a chat template that is not Jinja, fails, or takes too much for a short conversation. It may refuse the
    conversation: SFT tries it with the model's own tokens."""
    source = read_template(file)
    with blaming(f"sft.template.path={file}", "Mend the file, or leave it out: template=auto"):
        facts_of(source, chat=True)
        with suppress(Refusal):
            render(source, [{**TOKENS, "messages": CONVERSATION, "add_generation_prompt": False}], chat=True)


def task(key: str, path: str) -> None:
    """Refuse a task that lacks something, or of which a phrasing cannot be rendered."""
    from stages.formats.phrased import read_task

    try:
        read_task(path)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error
