"""The parts of a source file: the whole file, or its single definitions, each with its digest and the parts it uses.

A part is named `FILE`, or `FILE:DEFINITION` in packages of which definitions count alone. The digest of Python code is
that of its syntax tree without docstrings, of YAML that of its values, and of any other file that of its text."""

import ast
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stages.config.installation import parse_yaml
from stages.config.stage_table import STAGES

# Packages that all stages import: only the definitions in them count that a stage reaches by name.
BY_DEFINITION = ("config/", "store/", "launch/", "pipeline/")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
WHOLE = ""  # the name of the part that is a whole file
NO_CODE = "-"  # the digest of a part that only uses others
PACKAGE = "stages"
STAGE_FILES = {stage.file for stage in STAGES.values()}


class Part(NamedTuple):
    """A file, or a definition in it. `refs` names the parts that it uses."""

    digest: str
    refs: tuple[str, ...] = ()


def parse(file: str, content: bytes, known_files: Collection[str]) -> dict[str, Part]:
    """Return the parts of a file by name. `known_files`: all source files of the package. Raise SyntaxError, ValueError,
    RecursionError or yaml.YAMLError if the content cannot be parsed."""
    if file.endswith(".py"):
        tree = ast.parse(content, file)
        if file.startswith(BY_DEFINITION):
            return parse_definitions(file, tree, known_files)
        return {WHOLE: parse_whole(file, tree, known_files)}
    if file.endswith(".yaml"):
        return {WHOLE: Part(short_digest(ascii(parse_yaml(content.decode()))))}
    return {WHOLE: Part(text_digest(content))}


def parse_whole(file: str, tree: ast.Module, known_files: Collection[str]) -> Part:
    """Return a Python file as one part. It uses every file that it imports, and the YAML file beside it."""
    # `run` of a stage's own file names the class of its settings as a type
    is_stage = file in STAGE_FILES
    nodes = [*ast.walk(tree)] if is_stage else walk_code(tree)
    imports = Imports.read(file, nodes, known_files)
    refs = {ref for ref in imports.ours.values() if not ref.startswith(BY_DEFINITION)}
    refs |= refs_used(nodes, imports.ours) | imports.starred | yaml_beside(file, known_files)
    return Part(tree_digest(tree), tuple(sorted(refs)))


def parse_definitions(file: str, tree: ast.Module, known_files: Collection[str]) -> dict[str, Part]:
    """Return the definitions and imports of a Python file by name. Statements that define nothing belong to each
    definition. The part WHOLE uses all others."""
    imports = Imports.read(file, ast.walk(tree), known_files)
    statements_by_name = dict[str, list[ast.stmt]]()
    loose = list[ast.stmt]()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or is_text(statement):
            continue
        names = names_defined(statement)
        for name in names:
            statements_by_name.setdefault(name, []).append(statement)
        if not names:
            loose.append(statement)
    parts = {name: Part(NO_CODE, (ref,)) for name, ref in imports.ours.items()}
    parts |= {name: Part(short_digest(origin)) for name, origin in imports.others.items()}
    imports.ours |= {name: f"{file}:{name}" for name in statements_by_name}
    for name, statements in statements_by_name.items():
        code = ast.Module([*statements, *loose], [])
        nodes = walk_code(code, with_fields=True)
        imported = imports | Imports.read(file, nodes, known_files)
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        origins = [f"{each} {imported.others[each]}" for each in sorted(used & {*imported.others})]
        refs = refs_used(nodes, imported.ours) | imported.starred
        refs.discard(f"{file}:{name}")
        if "__file__" in used:
            refs |= yaml_beside(file, known_files)
        digest = short_digest(json.dumps([tree_digest(code), origins]))
        parts[name] = Part(digest, tuple(sorted(refs)))
    return parts | {WHOLE: Part(NO_CODE, tuple(f"{file}:{name}" for name in sorted(parts)))}


@dataclass
class Imports:
    """The names that import statements bind: `ours` to parts of this package, `others` to dotted names of libraries.
    `starred` are the modules of ours whose names are all imported."""

    ours: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    starred: set[str] = field(default_factory=set)

    def __or__(self, local: "Imports") -> "Imports":
        return Imports(
            self.ours | local.ours, self.others | local.others, self.starred | local.starred
        )

    @classmethod
    def read(cls, file: str, nodes: Iterable[ast.AST], known_files: Collection[str]) -> "Imports":
        """Return what the import statements among the nodes of a file bind."""
        imports = cls()
        for node in nodes:
            if isinstance(node, ast.Import):
                modules = [(alias.name, "", alias.asname or alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = imported_module(file, node)
                modules = [(module, alias.name, alias.asname or alias.name) for alias in node.names]
            else:
                continue
            for module, name, bound in modules:
                if module.partition(".")[0] != PACKAGE:
                    imports.others[bound] = f"{module}.{name}"
                elif name == "*":
                    imports.starred.add(part_imported(module, "", known_files))
                else:
                    imports.ours[bound] = part_imported(module, name, known_files)
        return imports


def imported_module(file: str, node: ast.ImportFrom) -> str:
    """Return the dotted name of the module that a statement imports from."""
    if not node.level:
        return str(node.module)
    package = [PACKAGE, *file.split("/")[: -node.level]]
    return ".".join([*package, node.module] if node.module else package)


def part_imported(module: str, name: str, known_files: Collection[str]) -> str:
    """Return the part that a name in a module of this package stands for; of the name '' the module."""
    folders = module.split(".")[1:]
    submodule = "/".join([*folders, f"{name}.py"])
    package = "/".join([*folders, "__init__.py"])
    if submodule in known_files:
        return submodule
    if package in known_files:
        return package
    file = f"{'/'.join(folders)}.py"
    return f"{file}:{name}" if name and file.startswith(BY_DEFINITION) else file


def yaml_beside(file: str, known_files: Collection[str]) -> set[str]:
    """Return the YAML file beside a module, under the module's name; an empty set without one."""
    return {file.removesuffix(".py") + ".yaml"} & {*known_files}


def refs_used(nodes: Iterable[ast.AST], bindings: Mapping[str, str]) -> set[str]:
    """Return the parts that nodes use, of those that names are bound to. Of a module whose definitions count alone, these
    are the definitions that are read from it."""
    refs = set[str]()
    names = list[ast.Name]()
    modules = list[ast.expr]()
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in bindings:
            names.append(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            ref = bindings.get(node.value.id, "")
            if ref.startswith(BY_DEFINITION) and ":" not in ref:
                refs.add(f"{ref}:{node.attr}")
                modules.append(node.value)
    return refs | {bindings[name.id] for name in names if name not in modules}


def walk_code(tree: ast.AST, with_fields: bool = False) -> list[ast.AST]:
    """Return the nodes of a syntax tree, except types: those of arguments, results and variables, and those that
    `isinstance` tests for. Objects of such types are made elsewhere. `with_fields`: the types of variables are among the
    nodes, since a block of settings makes its fields."""
    nodes = [tree]
    for node in nodes:  # which grows by the nodes inside
        types = types_in(node, with_fields)
        nodes += [child for child in ast.iter_child_nodes(node) if child not in types]
    return nodes


def types_in(node: ast.AST, with_fields: bool) -> list[ast.AST | None]:
    """Return the children of a node that only name types."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.returns]
    if isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and not with_fields):
        return [node.annotation]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
        return [*node.args[1:]]
    return []


def names_defined(statement: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines; none if it does anything else."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets = list[ast.expr]()
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            targets += target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) else []


def is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a text alone, as a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def tree_digest(tree: ast.AST) -> str:
    return short_digest(json.dumps(plain_tree(tree)))


def plain_tree(node: object) -> object:
    """Return a syntax tree as lists, as `ast.dump` would write it. Docstrings are left out, and so are empty fields, of
    which every version of Python has others."""
    if isinstance(node, list):
        return [plain_tree(each) for each in node]
    if not isinstance(node, ast.AST):
        return ascii(node)  # `repr` escapes other characters in every version of Python
    plain = list[object]([type(node).__name__])
    for name, value in ast.iter_fields(node):
        if name == "body" and has_docstring(node):
            value = value[1:]
        if name == "values" and isinstance(node, ast.JoinedStr):
            value = join_texts(value)
        if value is not None and value != []:
            plain.append([name, plain_tree(value)])
    return plain


def has_docstring(node: ast.AST) -> bool:
    return isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None


def join_texts(values: list[ast.expr]) -> list[ast.expr]:
    """Return the values of an f-string with neighbouring texts as one, and without empty ones. Versions of Python cut
    texts differently."""
    joined = list[ast.expr]()
    for value in values:
        before = joined[-1] if joined else None
        if not isinstance(value, ast.Constant):
            joined.append(value)
        elif isinstance(before, ast.Constant):
            joined[-1] = ast.Constant(str(before.value) + str(value.value))
        elif value.value:
            joined.append(value)
    return joined


def text_digest(content: bytes) -> str:
    """Return the digest of a text, whatever ends its lines, with or without an end of its last line."""
    lines = content.replace(b"\r\n", b"\n").removesuffix(b"\n")
    return hashlib.sha256(lines).hexdigest()[:16]


def short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
