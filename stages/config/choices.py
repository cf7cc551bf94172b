"""The words that settings choose among. Hydra refuses any other, and names these."""

from enum import StrEnum


class Command(StrEnum):
    """What `stage` can do besides: look at the store, or use what is in it."""

    plan = "plan"
    compare = "compare"
    gc = "gc"
    doctor = "doctor"
    audit = "audit"
    chat = "chat"
    export = "export"
    sync = "sync"


class Role(StrEnum):
    """What a model is in the evaluation. `other`: one of somebody's, which is compared with the policy. `dpo` is
    another name of the policy, where a user names a model."""

    base = "base"
    sft = "sft"
    control = "control"
    policy = "policy"
    other = "other"
    dpo = "policy"


class Align(StrEnum):
    """How the policy is made from SFT: by preferences, or it is SFT itself, and nothing is labelled."""

    dpo = "dpo"
    none = "none"


class ExportFormat(StrEnum):
    gguf = "gguf"
    hub = "hub"
    dataset = "dataset"


class GGUFType(StrEnum):
    f32 = "f32"
    f16 = "f16"
    q8_0 = "q8_0"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Upstream(StrEnum):
    build = "build"
    require = "require"


class SweepMetric(StrEnum):
    """What a sweeper that optimises is told of a job."""

    pass_rate = "pass_rate"
    validation_loss = "validation_loss"


class Strategy(StrEnum):
    """Which of a prompt's contrasts become pairs: `stages/pairing/strategies.py` has a function for each."""

    best_worst = "best_worst"
    all = "all"
    random = "random"
    margin = "margin"
    best_random = "best_random"
    hard = "hard"
    length_matched = "length_matched"
    ranked = "ranked"


class Demonstrations(StrEnum):
    """What SFT learns from: the answers that the data gives, or for prompts without one also the base's own."""

    given = "given"
    selected = "selected"


class Reads(StrEnum):
    """What an objective learns from: answered prompts, pairs of completions, completions with a label each, or prompts
    alone."""

    examples = "examples"
    pairs = "pairs"
    unpaired = "unpaired"
    prompts = "prompts"


class TrainedTurns(StrEnum):
    """Which assistant turns of a conversation SFT trains."""

    all = "all"
    last = "last"


class Unfinished(StrEnum):
    """What becomes of a rejected completion that was cut off: kept without an end of turn, or dropped; auto drops it
    unless most candidates ended by themselves."""

    keep = "keep"
    drop = "drop"
    auto = "auto"


class Rubrics(StrEnum):
    """What a judge is asked: which of two candidates is better, or how good each is."""

    pairwise = "pairwise"
    pointwise = "pointwise"


RUBRIC_TEXTS = {Rubrics.pairwise: ("request", "a", "b"), Rubrics.pointwise: ("request", "answer")}  # what it shows


class Reading(StrEnum):
    """How a judge's verdict is read: from JSON that its server keeps to a schema, or from a last line of words."""

    json = "json"
    text = "text"


class Split(StrEnum):
    sft = "sft"
    preference = "preference"
    validation = "validation"
    test = "test"


class DPOReference(StrEnum):
    previous = "previous"
    sft = "sft"


class Adapter(StrEnum):
    """What is trained: all weights, a fresh LoRA, a fresh LoRA over 4-bit weights, or (DPO) the SFT's LoRA on."""

    none = "none"
    lora = "lora"
    qlora = "qlora"
    continued = "continued"


class Weights(StrEnum):
    """How weights are held in memory while a model is trained or scored."""

    fp32 = "fp32"
    bf16 = "bf16"
    nf4 = "nf4"


class Forward(StrEnum):
    """How a model reads a pair: its prompt once (`models/packing.py`), or as TRL does, padded and the prompt twice."""

    shared_prefix = "shared_prefix"
    padded = "padded"


class Checkpointing(StrEnum):
    """Which activations the backward computes again: none; selective, all but the outputs of products and attention;
    full, all but what goes into each layer. auto: the first of these with which memory holds the longest row."""

    auto = "auto"
    none = "none"
    selective = "selective"
    full = "full"


class Sharding(StrEnum):
    none = "none"
    fsdp = "fsdp"
    zero3 = "zero3"


# TRL's losses of pairs.
LOSS_TYPES = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
).split()
DEVICES = ("auto", "cpu", "cuda")
SOURCE_CHECKS = ("label", "number")
DOCUMENTS = ("file", "sections", "paragraphs", "lines")  # where plain text is divided
AUDIT_CODES = (
    "one_character no_answer echo unfinished merged refusal boilerplate repetition wrong_sum broken_promise "
    "other_language stale placeholder input_marker needs_link needs_attachment asks_for_picture damaged secret "
    "personal duplicate near_duplicate other_answer crosses_splits contaminated alike lopsided contradicted"
).split()
OF_ROWS_AMONG_ROWS = ("duplicate", "near_duplicate", "other_answer", "crosses_splits")  # of these codes
AUDIT_ACTIONS = ("keep", "fix", "drop", "quarantine")
AUDIT_FIXES = ("damaged", "input_marker")  # codes whose findings can be mended in one way only
# Codes with a threshold, and from where to where that may be. Below 0.6, near copies are not looked for.
AUDIT_THRESHOLDS = {
    "repetition": (0.0, 1.0),
    "near_duplicate": (0.6, 1.0),
    "crosses_splits": (0.6, 1.0),
    "contaminated": (0.1, 1.0),
    "alike": (0.1, 1.0),
    "lopsided": (1.0, 1000.0),
}
