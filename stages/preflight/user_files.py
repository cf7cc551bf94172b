"""Checks of files that the user wrote: rubrics, tasks and chat templates are rendered, Python code is only parsed.

The stage that runs the code checks the rest: names that are imported, assigned or made by a decorator, and classes
whose bases are in other files."""

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
from stages.config.errors import Errors, UserError, name_block
from stages.config.installation import ENGINE, ROOT, install_command
from stages.config.schema import Config
from stages.preflight import sources
from stages.store import plugins
from stages.store.node import Node
from stages.store.source_files import read_template
from stages.store.store import Store
from stages.store.templates import Refusal, guard_template, render

Function = ast.FunctionDef | ast.AsyncFunctionDef
NEUTRAL = {"object", "abc.ABC", "typing.Generic", "typing.Protocol"}  # bases without methods


def validate_user_files(cfg: Config) -> None:
    """Raise one UserError for all rubrics, chat templates and tasks that cannot be rendered."""
    errors = Errors()
    for label in cfg.labels:
        if label.judge.kind and label.judge.rubric:
            with errors, name_block(label.name):
                validate_rubric(label.judge, Path(label.judge.rubric))
    if cfg.sft.template.path:
        with errors:
            validate_chat_template(Path(cfg.sft.template.path))
    for key, source in sources.run_sources(cfg):
        if isinstance(source, Source) and source.task and plugins.user_path(source.task).is_file():
            with errors:
                validate_task(f"{key}.task", source.task)
    errors.raise_all()


def require_engine(node: Node, store: Store) -> None:
    """Raise UserError if the Python of `benchmark.runtime.python` does not have the engine of benchmarks."""
    python, tasks = node.config.runtime.python, f"benchmark.tasks=[{','.join(node.config.tasks)}]"
    if not node.config.engine:
        way = f"{python} -m pip install '{ENGINE}[ifeval]'" if python else install_command("benchmark")
        place = f"benchmark.runtime.python={python}" if python else "this Python"
        raise UserError(f"{tasks} needs {ENGINE} in {place}. Type: {way}.")


def validate_rubric(judge: Judge, file: Path) -> None:
    """Raise UserError for a rubric that cannot be rendered, or does not show the judge all texts."""
    texts = RUBRIC_TEXTS[judge.kind or Rubrics.pairwise]
    setting, source = f"label.judge.rubric={file}", read_template(file, "label.judge.rubric")
    with guard_template(setting, f"It may read {', '.join(texts)} and reply"):
        prompt = render(source, {name: f"<{name}>" for name in (*texts, "reply")})
    if missing := [name for name in texts if f"<{name}>" not in prompt]:
        raise UserError(f"{setting}: {', '.join(missing)} is missing from the text. Add {{{{ {missing[0]} }}}}.")


def validate_chat_template(file: Path) -> None:
    """Raise UserError for a chat template that is not Jinja, or fails or takes too long on a short conversation."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from stages.models.rendering import GOLDEN, tokenize_conversations

    special_tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special_tokens)
    tokenizer.chat_template = read_template(file)
    way_out = "Correct the file, or leave it out: template=auto"
    with guard_template(f"sft.template.path={file}", way_out), suppress(Refusal):  # SFT tries the model's own tokens
        tokenize_conversations(tokenizer, GOLDEN)


def validate_task(key: str, path: str) -> None:
    """Raise UserError for a task file that is incomplete or has a phrasing that cannot be rendered."""
    from stages.formats.phrased import read_task

    try:
        read_task(path)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from error


def require_labeler(node: Node, store: Store) -> None:
    """Raise UserError if `label.own` is not a labeler."""
    if own := node.config.own:
        require_class(own, "label.own", "stages.labelers.labeler.Labeler", "judge", "__init__", positional=1)


def require_sampler(node: Node, store: Store) -> None:
    """Raise UserError if `sample.own` is not a sampler."""
    if own := node.config.own:
        require_class(own, "sample.own", "stages.samplers.sampler.Sampler", "complete", "open", positional=4)


def require_data_part(node: Node, store: Store) -> None:
    """Raise UserError if `data.own` is neither a task family nor a function that reads a row."""
    own = node.config.own
    definition = PythonFile(own, "data.own").defined() if own else None
    if isinstance(definition, ast.ClassDef):
        raise UserError(f"data.own.name={own.name} is a class. Name a task family, or a function that takes a row.")
    if definition and not definition.decorator_list:
        require_options(own, "data.own", definition, positional=1)


def require_class(own: Own, key: str, kind: str, method: str, constructor: str, positional: int) -> None:
    """Raise UserError unless the file has such a class with `method`, and a `constructor` that takes the arguments."""
    text = PythonFile(own, key)
    if (definition := text.defined()) is None:
        return
    lineage, bases = text.lineage(definition) if isinstance(definition, ast.ClassDef) else ([], set[str]())
    if bases <= NEUTRAL:
        raise plugins.wrong_class_error(own, key, kind)
    if bases - NEUTRAL != {kind} or any(one.decorator_list or one.keywords for one in lineage):
        return
    members = {name: member for one in reversed(lineage) for name, member in class_members(one)}
    plugins.require_complete(own, key, "name" in members, {method, constructor} - {"__init__", *members})
    construct = members.get(constructor)
    if construct is None and own.options:
        raise UserError(f"{key}.options={own.options}: {own.name} has no {constructor} to take them. Leave them out.")
    if isinstance(construct, Function):
        static = any(ast.unparse(each) == "staticmethod" for each in construct.decorator_list)
        require_options(own, key, construct, positional - static)


def require_options(own: Own, key: str, function: Function, positional: int) -> None:
    """Raise UserError if a function does not take `positional` arguments and the options as keywords."""
    kind, args = inspect.Parameter, function.args
    arguments = [*args.posonlyargs, *args.args]
    needed = len(arguments) - len(args.defaults)
    parameters = [
        kind(arg.arg, kind.POSITIONAL_ONLY if i < len(args.posonlyargs) else kind.POSITIONAL_OR_KEYWORD,
             default=kind.empty if i < needed else None)
        for i, arg in enumerate(arguments)
    ]  # fmt: skip
    parameters += [kind(args.vararg.arg, kind.VAR_POSITIONAL)] if args.vararg else []
    parameters += [
        kind(arg.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None)
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    parameters += [kind(args.kwarg.arg, kind.VAR_KEYWORD)] if args.kwarg else []
    plugins.require_options(own, key, inspect.Signature(parameters), *[None] * positional)


class PythonFile:
    """The parsed text of a user's file. Raise UserError if it cannot be read, or imports what is not installed."""

    def __init__(self, own: Own, key: str):
        self.own, self.key = own, key
        self.tree = ast.parse(plugins.read_python(own, key))
        imported = (pair for statement in ast.walk(self.tree) for pair in imported_names(statement))
        self.origins = dict(imported)  # by imported name: `Labeler` is stages.labelers.labeler.Labeler
        for statement in self.tree.body:
            for module in imported_modules(statement):
                if not module_exists(module):
                    raise UserError(f"{key}: line {statement.lineno}: no module {module!r}. Install it.")

    def defined(self) -> ast.ClassDef | Function | None:
        """Return the definition of this name, or None if not shown. Raise UserError if the file never mentions it."""
        name = self.own.name
        definitions = [each for each in self.tree.body if isinstance(each, ast.ClassDef | Function)]
        definition = next((each for each in reversed(definitions) if each.name == name), None)
        if not definition and not {name, "*"} & {*self.origins} and not self.mentions(str(name)):
            raise plugins.undefined_error(self.own, self.key)
        return definition

    def mentions(self, name: str) -> bool:
        """Return whether the name occurs anywhere in the file, as a name or in a text."""
        values = (vars(each).get(field) for each in ast.walk(self.tree) for field in ("id", "name", "value", "attr"))
        return name in [value for value in values if isinstance(value, str)]

    def lineage(self, class_node: ast.ClassDef) -> tuple[list[ast.ClassDef], set[str]]:
        """Return a class with its bases in this file, and the dotted names of its other bases."""
        local = {each.name: each for each in self.tree.body if isinstance(each, ast.ClassDef)}
        lineage, bases, queue = list[ast.ClassDef](), set[str](), [class_node]
        while queue:
            lineage.append(current := queue.pop(0))
            for base in map(ast.unparse, current.bases):
                first, _, rest = base.partition("[")[0].partition(".")
                if base in local and local[base] not in lineage:
                    queue.append(local[base])
                else:
                    bases.add(".".join(filter(None, (self.origins.get(first, first), rest))))
        return lineage, bases


def imported_names(statement: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each name that a statement imports, with its dotted origin."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name, f"{statement.module}.{alias.name}"


def imported_modules(statement: ast.stmt) -> list[str]:
    """Return the modules that a statement imports."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return ["." * statement.level + (statement.module or "")] if isinstance(statement, ast.ImportFrom) else []


def module_exists(module: str) -> bool:
    """Return whether a module can probably be imported; its package is not imported to find out."""
    root = module.partition(".")[0]
    if root == "stages":
        place = ROOT.joinpath(*module.split("."))
        return place.is_dir() or place.with_suffix(".py").is_file()
    return bool(root) and (root == "__main__" or find_spec(root) is not None)


def class_members(class_node: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the name and the statement of each member of a class."""
    for statement in class_node.body:
        if isinstance(statement, Function | ast.ClassDef):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                yield ast.unparse(target), statement
        elif isinstance(statement, ast.AnnAssign) and statement.value:
            yield ast.unparse(statement.target), statement
