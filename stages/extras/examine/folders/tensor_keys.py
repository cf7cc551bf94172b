"""Differences of the weights: types, missing tensors, rows that are zero or not finite, few values, size and rank."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median_low

from stages.config.errors import UserError
from stages.evaluation.stored_tensors import StoredTensors
from stages.extras.examine.folders.config_fit import fit_differences
from stages.extras.examine.folders.difference import NONE, Difference, Level
from stages.extras.examine.folders.embedding_rows import lost_rows, new_row_differences
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.extras.examine.folders.moved_tensors import (
    constant_differences,
    moved_differences,
    scaled_differences,
)
from stages.extras.examine.folders.tensor_names import LAYER, is_embedding, is_head, kind_of
from stages.extras.examine.folders.tensor_statistics import (
    SHOWN_ROWS,
    TensorFigures,
    changed_matrix,
    count_directions,
    is_comparable,
    rankable_names,
    tensor_figures,
)
from stages.models.rounding import INDEX
from stages.models.safe_folder import read_json

RANKED = 12  # matrices whose change is taken apart
FEW_VALUES = 30.5  # of 32 side by side: bf16 has 31.5 or more, 8 bits 29.6 or fewer, 6 bits and fp8 fewer than 26
FEWER = 0.965  # of the start's number
MORE_ZEROS = 0.05
LARGER = 10.0  # times the start's largest weight of a matrix
POINTS_ELSEWHERE = 0.5  # cosine
OTHER_FORMATS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"}
# places of the output head
TIED = "tied to the embedding"
COPIED = "tied to the embedding, and the same in the file"
IN_FILE = "in the file"
NOWHERE = "neither tied nor in the file"


def weight_differences(start: ModelFolder, model: ModelFolder) -> Iterator[Difference]:
    """Yield the differences of the weights of two folders."""
    old, new = StoredTensors.of_folder(start.place), StoredTensors.of_folder(model.place)
    yield from file_differences(start.place, model.place, old, new)
    if not new.files:
        return
    yield from name_differences(old, new, model)
    yield from type_differences(old, new)
    yield from head_differences(start, model, old, new)
    yield from fit_differences(start, model, old, new)
    figures = [tensor_figures(old, new, name) for name in sorted(new.files)]
    yield from new_row_differences(model, old, new, figures)
    yield from figure_differences(start, model, old, new, figures)


def figure_differences(
    start: ModelFolder,
    model: ModelFolder,
    old: StoredTensors,
    new: StoredTensors,
    figures: Sequence[TensorFigures],
) -> list[Difference]:
    """Return what the figures of all tensors tell."""
    shared = [each for each in figures if each.before]
    return [
        *not_finite_differences(figures),
        *zero_row_differences(model, shared),
        *zero_differences(shared),
        *value_differences(shared),
        *largest_differences(shared),
        *turned_differences(old, new, shared),
        *scaled_differences(shared),
        *constant_differences(old, new, shared),
        *change_differences(old, new, shared, start.title),
    ]


def file_differences(
    start: Path, model: Path, old: StoredTensors, new: StoredTensors
) -> list[Difference]:
    """Return the files of weights that are missing or cannot be read."""
    differences = list[Difference]()
    problems = [*new.problems, *missing_shards(model)]
    if not new.files and not problems:
        problems = ["no *.safetensors"]
    if problems:
        earlier = "; ".join([*old.problems, *missing_shards(start)]) or "all read"
        text = "; ".join(problems[:3])
        differences.append(row_difference("weights: files", earlier, text, Level.breaks))
    if new.repeated:
        name, files = next(iter(new.repeated.items()))
        text = f"{len(new.repeated):,} tensors, as {name} in {' and '.join(files)}"
        differences.append(row_difference("weights: in two files", NONE, text, Level.changes))
    other_files = sorted(path.name for path in model.iterdir() if path.suffix in OTHER_FORMATS)
    if other_files:
        text = ", ".join(other_files[:3])
        differences.append(row_difference("weights: other formats", NONE, text, Level.differs))
    return differences


def missing_shards(folder: Path) -> list[str]:
    """Return the files that the index of a folder names and that are not there."""
    index = folder / INDEX
    if not index.exists():
        return []
    content = read_json(index)
    weight_map = content.get("weight_map", {}) if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f"{index}: it maps no tensors to files. Copy the file again.")
    files = {str(name) for name in weight_map.values()}
    return [f"{name} is missing" for name in sorted(files) if not (folder / name).exists()]


def name_differences(
    old: StoredTensors, new: StoredTensors, model: ModelFolder
) -> list[Difference]:
    """Return the tensors that one of two models does not have, or has in another shape."""
    differences = list[Difference]()
    layers = getattr(model.config and model.config.get_text_config(), "num_hidden_layers", None)
    missing = [
        name
        for name in sorted(old.files.keys() - new.files.keys())
        if not is_head(name) and not is_beyond_layers(name, layers)
    ]
    further = [name for name in sorted(new.files.keys() - old.files.keys()) if not is_head(name)]
    reshaped = [
        name
        for name in sorted(old.files.keys() & new.files.keys())
        if not is_comparable(old.shapes[name], new.shapes[name])
    ]
    if missing:
        differences.append(
            row_difference("weights: missing", NONE, examples(missing), Level.breaks)
        )
    if further:
        differences.append(
            row_difference("weights: not in the start", NONE, examples(further), Level.changes)
        )
    if reshaped:
        name = reshaped[0]
        differences.append(
            row_difference(
                "weights: shape",
                f"{name} {old.shapes[name]}",
                f"{new.shapes[name]}, of {len(reshaped)} such",
                Level.changes,
            )
        )
    return differences


def is_beyond_layers(name: str, layers: object) -> bool:
    """Return whether a tensor is of a layer that the config does not have."""
    match = LAYER.search(name)
    return bool(match and isinstance(layers, int) and int(match[1]) >= layers)


def examples(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names):,} tensors, as {names[0]}"


def type_differences(old: StoredTensors, new: StoredTensors) -> list[Difference]:
    """Return the difference of the types that weights are stored in."""
    first, second = types_text(old), types_text(new)
    return (
        [row_difference("weights: type", first, second, Level.differs)] if first != second else []
    )


def types_text(tensors: StoredTensors) -> str:
    """Return the types of a folder's weights, the most frequent first."""
    elements = Counter[str]()
    for name, kind in tensors.types.items():
        elements[kind] += tensors.size(name)
    return ", ".join(kind for kind, _ in elements.most_common()) or NONE


def head_differences(
    start: ModelFolder, model: ModelFolder, old: StoredTensors, new: StoredTensors
) -> list[Difference]:
    """Return the difference of where the output head comes from. It matters if config.json ties it to the embedding,
    and a file has another head."""
    before, after = head_text(start, old), head_text(model, new)
    if before == after or not after:
        return []
    if before == IN_FILE and after == TIED:
        level = Level.changes
    elif before == TIED and after == IN_FILE:
        change, length = head_distance(new)
        after = f"{after}, {percent(change, length)} from the embedding"
        level = Level.changes if change >= length else Level.differs
    elif after in (TIED, IN_FILE):
        level = Level.differs
    elif after == COPIED:
        return [row_difference("weights: copy of the head", before, after, Level.differs)]
    else:
        level = Level.breaks if after == NOWHERE else Level.changes
    return [row_difference("weights: head", before, after, level)]


def head_text(folder: ModelFolder, tensors: StoredTensors) -> str:
    """Return where a model's output head comes from; '' if its names or its config are not known."""
    embedding, head = embedding_and_head(tensors)
    if not embedding or folder.config is None:
        return ""
    is_tied = folder.config.get_text_config().tie_word_embeddings
    if not head:
        return TIED if is_tied else NOWHERE
    if not is_tied:
        return IN_FILE
    if tensors.shapes[head] != tensors.shapes[embedding]:
        return f"{TIED}; the file has one of another shape"
    distance, length = head_distance(tensors)
    if not distance:
        return COPIED
    return f"{TIED}; the file has another, {percent(distance, length)} from it"


def embedding_and_head(tensors: StoredTensors) -> tuple[str, str]:
    """Return the names of the embedding and of the output head, '' for one that the files do not have."""
    embedding = next((name for name in tensors.files if is_embedding(name)), "")
    head = next((name for name in tensors.files if is_head(name)), "")
    return embedding, head


def head_distance(tensors: StoredTensors) -> tuple[float, float]:
    """Return the squared length of the difference of embedding and head, and that of the embedding. Both are there and
    have one shape, or nothing is known: 0 of 0."""
    embedding, head = embedding_and_head(tensors)
    distance, length = 0.0, 0.0
    if tensors.shapes.get(embedding) != tensors.shapes.get(head):
        return distance, length
    for first, second in zip(tensors.blocks(embedding), tensors.blocks(head), strict=True):
        distance += float((first.float() - second.float()).square().sum())
        length += float(first.float().square().sum())
    return distance, length


def percent(square: float, square_of_whole: float) -> str:
    """Return the length of a part by that of the whole, both given as squares."""
    if not square_of_whole:
        return "from zero" if square else "0%"
    share = 100 * (square / square_of_whole) ** 0.5
    return f"{share:.0f}%" if share >= 99.5 else f"{share:.2g}%"


def not_finite_differences(figures: Sequence[TensorFigures]) -> list[Difference]:
    """Return the rows with values that are NaN or infinite, unless the start has the same."""
    rows = {each.name: each.not_finite_rows for each in figures}
    before = {each.name: each.before.not_finite_rows for each in figures if each.before}
    if not any(rows.values()) or rows == before:
        return []
    texts = rows_text(before), rows_text(rows)
    return [row_difference("weights: NaN or infinite", *texts, Level.breaks)]


def rows_text(rows_by_name: dict[str, list[int]]) -> str:
    """Return the number of rows in all tensors, and the first of them."""
    count = sum(map(len, rows_by_name.values()))
    if not count:
        return NONE
    name, rows = next((name, rows) for name, rows in rows_by_name.items() if rows)
    row_list = ", ".join(map(str, rows[:SHOWN_ROWS]))
    tensors = sum(1 for rows in rows_by_name.values() if rows)
    return f"{count:,} row{'s' if count > 1 else ''} in {tensors} tensor{'s' if tensors > 1 else ''}, as {row_list} of {name}"


def zero_row_differences(model: ModelFolder, shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return the rows of matrices that are zero, and were not in the start."""
    rows = lost_rows(model, shared)
    if not any(rows.values()):
        return []
    earlier = {
        each.name: each.before.zero_rows for each in shared if each.before and each.is_matrix
    }
    text = rows_text(rows)
    return [row_difference("weights: zero rows", rows_text(earlier), text, Level.changes)]


def zero_differences(shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return the share of single weights that are zero, if it rose; zero rows are left to their own difference."""
    matrices = [
        each for each in shared if each.is_matrix and not each.new_zero_rows and each.before
    ]
    elements = sum(each.elements for each in matrices)
    if not elements:
        return []
    now = sum(each.zeros for each in matrices) / elements
    earlier = sum(each.before.zeros for each in matrices if each.before) / elements
    if now - earlier < MORE_ZEROS:
        return []
    return [row_difference("weights: zeros", f"{earlier:.0%}", f"{now:.0%}", Level.changes)]


def value_differences(shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return how many different values weights side by side have, if that fell in some matrices."""
    fallen = list[TensorFigures]()
    for each in shared:
        assert each.before
        is_few = 0 < each.values_side_by_side < FEW_VALUES and not each.new_zero_rows
        if is_few and each.values_side_by_side < FEWER * each.before.values_side_by_side:
            fallen.append(each)
    if not fallen:
        return []
    now = fmean(each.values_side_by_side for each in fallen)
    earlier = fmean(each.before.values_side_by_side for each in fallen if each.before)
    text = f"{now:.1f} of 32 in {len(fallen)} matrices, as {fallen[0].name}"
    start_text = f"{earlier:.1f} of 32"
    return [row_difference("weights: values side by side", start_text, text, Level.changes)]


def largest_differences(shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return the matrix whose largest weight grew most, if it grew by far."""
    grown = list[tuple[float, TensorFigures]]()
    for each in shared:
        assert each.before
        if each.is_matrix and each.before.largest and each.largest / each.before.largest >= LARGER:
            grown.append((each.largest / each.before.largest, each))
    if not grown:
        return []
    _, figures = max(grown, key=growth)
    assert figures.before
    text = f"{figures.largest:.3g} in {figures.name}"
    return [
        row_difference("weights: largest", f"{figures.before.largest:.3g}", text, Level.changes)
    ]


def growth(grown: tuple[float, TensorFigures]) -> float:
    return grown[0]


def turned_differences(
    old: StoredTensors, new: StoredTensors, shared: Sequence[TensorFigures]
) -> list[Difference]:
    """Return the matrices that point elsewhere than the start's, and what they are of the start."""
    matrices = [each for each in shared if each.is_matrix]
    turned = [each for each in matrices if each.cosine < POINTS_ELSEWHERE and each.square]
    if not turned:
        return []
    least = min(turned, key=cosine_of)
    text = f"{len(turned)} of {len(matrices)} matrices, as {least.name} with a cosine of {least.cosine:.2f}"
    return [
        *moved_differences(old, new, turned),
        row_difference("weights: turned", NONE, text, Level.changes),
    ]


def cosine_of(figures: TensorFigures) -> float:
    return figures.cosine


def change_differences(
    old: StoredTensors, new: StoredTensors, shared: Sequence[TensorFigures], start_title: str
) -> list[Difference]:
    """Return size and rank of the change of all weights, by the parts of a model."""
    if not shared:
        return []
    change = sum(each.change for each in shared)
    if not change and old.shapes != new.shapes:
        text = f"0%: every weight that both have is that of {start_title}"
        return [row_difference("weights: change", "", text, Level.changes)]
    if not change:
        text = f"every weight is that of {start_title}"
        return [row_difference("weights: nothing changed", "", text, Level.changes)]
    whole = sum(each.before.square for each in shared if each.before)
    sizes = "; ".join(sizes_by_kind(shared))
    text = f"{percent(change, whole)}: {sizes}"
    differences = [row_difference("weights: change", "", text, Level.differs)]
    differences += layer_differences(shared)
    directions = list[int]()
    sides = list[int]()
    for name in rankable_names(shared, RANKED):
        matrix = changed_matrix(old, new, name)
        directions.append(count_directions(matrix))
        sides.append(min(matrix.shape))
    if directions:
        differences.append(directions_difference("weights", directions, sides))
    return differences


def layer_differences(shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return the layers that are the start's, if others changed: as where layers were frozen, or half of an adapter was
    merged."""
    changes = defaultdict[int, float](float)
    for each in shared:
        match = LAYER.search(each.name)
        if match:
            changes[int(match[1])] += each.change
    unchanged = [str(layer) for layer in sorted(changes) if not changes[layer]]
    if not unchanged or len(unchanged) == len(changes):
        return []
    numbers = ", ".join(unchanged[:8]) + ("…" if len(unchanged) > 8 else "")
    text = f"{len(unchanged)} of {len(changes)}: {numbers}"
    return [row_difference("weights: unchanged layers", "", text, Level.differs)]


def directions_difference(part: str, directions: Sequence[int], sides: Sequence[int]) -> Difference:
    """Return the row on the rank of a change."""
    count = len(directions)
    text = f"{median_low(directions)} of {median_low(sides)}"
    if count > 1:
        text = f"{text} (median of {count} matrices)"
    return row_difference(f"{part}: directions of the change", "", text, Level.differs)


def sizes_by_kind(shared: Sequence[TensorFigures]) -> list[str]:
    """Return the size of the change of each part of a model, the largest first."""
    changes, wholes = defaultdict[str, float](float), defaultdict[str, float](float)
    for each in shared:
        assert each.before
        kind = kind_of(each.name)
        changes[kind] += each.change
        wholes[kind] += each.before.square
    ordered = sorted(changes, key=relative_to(changes, wholes), reverse=True)
    clauses = [
        f"{kind} {percent(changes[kind], wholes[kind])}" for kind in ordered if changes[kind]
    ]
    unchanged = [kind for kind in ordered if not changes[kind]]
    return [*clauses, *([f"{', '.join(unchanged)} unchanged"] if unchanged else [])]


def relative_to(changes: dict[str, float], wholes: dict[str, float]) -> Callable[[str], float]:
    """Return a function that gives the relative size of the change of a part."""

    def size(kind: str) -> float:
        return changes[kind] / max(wholes[kind], 1e-30)

    return size
