"""Files that the user wrote, tried before anything is built: rubrics, tasks and chat templates by rendering them,
Python code by its text alone, as none of it is run before its stage.

The stage itself judges what the text of code does not show: a name that is imported, assigned or made by a decorator,
and a class whose bases are of other files.
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Judge
from stages.config.blocks.models import Own
from stages.config.choices import RUBRIC_TEXTS, Rubrics
from stages.config.errors import Errors, UserError, in_the_name_of
from stages.config.installation import ROOT
from stages.config.schema import Config
from stages.preflight import data_sources
from stages.sandbox.jinja_process import Refusal, blaming, facts_of, render
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import read_template
from stages.store.store import Store

Function = ast.FunctionDef | ast.AsyncFunctionDef
NEUTRAL = {"object", "abc.ABC", "typing.Generic", "typing.Protocol"}  # bases that bring no method
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def refuse(cfg: Config) -> None:
    """Raise UserError for the templates that cannot work."""
    errors = Errors()
    for label in cfg.labels:
        if label.judge.kind and label.judge.rubric:
            with errors, in_the_name_of(label.name):
                validate_rubric(label.judge, Path(label.judge.rubric))
    if cfg.sft.template.path:
        with errors:
            validate_chat_template(Path(cfg.sft.template.path))
    for key, source in data_sources.of_run(cfg):
        if isinstance(source, Source) and source.task and plugins.user_path(source.task).is_file():
            with errors:
                validate_task(f"{key}.task", source.task)
    errors.refuse()


def validate_rubric(judge: Judge, file: Path) -> None:
    """Refuse a rubric that cannot be rendered, or that leaves out what is to be judged."""
    texts = RUBRIC_TEXTS[judge.kind or Rubrics.pairwise]
    setting, source = f"label.judge.rubric={file}", read_template(file, "label.judge.rubric")
    with blaming(setting, f"It may read {', '.join(texts)} and reply"):
        [(shown, _)] = render(source, [{name: f"<{name}>" for name in (*texts, "reply")}])
    if lacking := [name for name in texts if f"<{name}>" not in shown]:
        raise UserError(f"{setting} shows the judge no {', '.join(lacking)}: it holds {{{{ {lacking[0]} }}}}.")


def validate_chat_template(file: Path) -> None:
    """Refuse a chat template that is not Jinja, fails, or takes too much for a short conversation. It may refuse the
    conversation: SFT tries it with the model's own tokens."""
    source = read_template(file)
    with blaming(f"sft.template.path={file}", "Mend the file, or leave it out: template=auto"):
        facts_of(source, chat=True)
        with suppress(Refusal):
            render(source, [{**TOKENS, "messages": CONVERSATION, "add_generation_prompt": False}], chat=True)


def validate_task(key: str, path: str) -> None:
    """Refuse a task that lacks something, or of which a phrasing cannot be rendered."""
    from stages.formats.phrased import read_task

    try:
        read_task(path)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error


def require_labeler(node: Node, store: Store) -> None:
    """Raise UserError where `label.own` is not a labeler."""
    if node.config.own:
        require_class(node.config.own, "label.own", "stages.labelers.labeler.Labeler", "judge", "__init__", given=1)


def require_sampler(node: Node, store: Store) -> None:
    """Raise UserError where `sample.own` is not a sampler."""
    if node.config.own:
        require_class(node.config.own, "sample.own", "stages.samplers.sampler.Sampler", "complete", "open", given=4)


def require_data_part(node: Node, store: Store) -> None:
    """Raise UserError where `data.own` is neither a task family nor a function of a row."""
    own = node.config.own
    found = Text(own, "data.own").defined() if own else None
    if isinstance(found, ast.ClassDef):
        raise UserError(f"data.own.name={own.name} must be a task family, without options, or a function of a row.")
    if found and not found.decorator_list:
        require_options(own, "data.own", found, given=1)


def require_class(own: Own, key: str, kind: str, acts: str, made_by: str, given: int) -> None:
    """Raise UserError where the file's text shows no class of this kind that `acts`, or one that is `made_by` a method
    which takes other options beside what it is `given`."""
    text = Text(own, key)
    if (found := text.defined()) is None:
        return
    lineage, bases = text.lineage(found) if isinstance(found, ast.ClassDef) else ([], set[str]())
    if bases <= NEUTRAL:
        raise plugins.of_another_kind(own, key, kind)
    if bases - NEUTRAL != {kind} or any(one.decorator_list or one.keywords for one in lineage):
        return
    members = {name: member for one in reversed(lineage) for name, member in members_of(one)}
    plugins.require_whole(own, key, "name" in members, {acts, made_by} - {"__init__", *members})
    maker = members.get(made_by)
    if maker is None and own.options:
        raise UserError(f"{key}.options={own.options}: {own.name} takes none, as it has no {made_by}.")
    if isinstance(maker, Function):
        static = any(ast.unparse(each) == "staticmethod" for each in maker.decorator_list)
        require_options(own, key, maker, given - static)


def require_options(own: Own, key: str, function: Function, given: int) -> None:
    """Raise UserError where a function does not take the options beside what it is given by place."""
    kind, args = inspect.Parameter, function.args
    by_place = [*args.posonlyargs, *args.args]
    needed = len(by_place) - len(args.defaults)
    parameters = [
        kind(arg.arg, kind.POSITIONAL_ONLY if i < len(args.posonlyargs) else kind.POSITIONAL_OR_KEYWORD,
             default=kind.empty if i < needed else None)
        for i, arg in enumerate(by_place)
    ]  # fmt: skip
    parameters += [kind(args.vararg.arg, kind.VAR_POSITIONAL)] if args.vararg else []
    parameters += [
        kind(arg.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    parameters += [kind(args.kwarg.arg, kind.VAR_KEYWORD)] if args.kwarg else []
    plugins.fitting(own, key, inspect.Signature(parameters), *[None] * given)


class Text:
    """The text of a user's file.

    Raises:
        UserError: where it cannot be read, or imports what is not installed.
    """

    def __init__(self, own: Own, key: str):
        self.own, self.key = own, key
        self.tree = ast.parse(plugins.python(own, key))
        self.origins = dict[str, str]()  # of imported names: `Labeler` is stages.labelers.labeler.Labeler
        for statement in ast.walk(self.tree):
            for name, origin in imported(statement):
                self.origins[name] = origin
        for statement in self.tree.body:
            for module in modules_of(statement):
                if not is_there(module):
                    raise UserError(
                        f"{key}: line {statement.lineno}: there is no module {module!r}. Install or mend it."
                    )

    def defined(self) -> ast.ClassDef | Function | None:
        """Return what the file defines under the name; None where the text does not show what that is.

        Raises:
            UserError: where nothing of that name is in it.
        """
        name, found = self.own.name, None
        for statement in self.tree.body:
            if isinstance(statement, ast.ClassDef | Function) and statement.name == name:
                found = statement
        if found is None and name not in self.origins and "*" not in self.origins and not self.mentions(str(name)):
            raise plugins.undefined(self.own, self.key)
        return found

    def mentions(self, name: str) -> bool:
        """Return whether the name stands anywhere in the file, as a name or a text."""
        values = (vars(each).get(field) for each in ast.walk(self.tree) for field in ("id", "name", "value", "attr"))
        return name in [value for value in values if isinstance(value, str)]

    def lineage(self, found: ast.ClassDef) -> tuple[list[ast.ClassDef], set[str]]:
        """Return a class with its bases in this file, and where its other bases come from."""
        local = {each.name: each for each in self.tree.body if isinstance(each, ast.ClassDef)}
        lineage, bases, waiting = list[ast.ClassDef](), set[str](), [found]
        while waiting:
            lineage.append(one := waiting.pop(0))
            for base in map(ast.unparse, one.bases):
                first, _, rest = base.partition("[")[0].partition(".")
                if base in local and local[base] not in lineage:
                    waiting.append(local[base])
                else:
                    bases.add(".".join(filter(None, (self.origins.get(first, first), rest))))
        return lineage, bases


def imported(statement: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the names that a statement imports, with their origins."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name, f"{statement.module}.{alias.name}"


def modules_of(statement: ast.stmt) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return ["." * statement.level + (statement.module or "")] if isinstance(statement, ast.ImportFrom) else []


def is_there(module: str) -> bool:
    """Return whether a module can be imported, as far as that is known without importing its package."""
    root = module.partition(".")[0]
    if root == "stages":
        place = ROOT.joinpath(*module.split("."))
        return place.is_dir() or place.with_suffix(".py").is_file()
    return bool(root) and (root == "__main__" or find_spec(root) is not None)


def members_of(found: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a class body defines, by name."""
    for statement in found.body:
        if isinstance(statement, Function | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                yield ast.unparse(target), statement
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            yield ast.unparse(statement.target), statement
