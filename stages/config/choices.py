"""The words that settings can have. For any other word, Hydra raises an error that lists them."""

from enum import StrEnum

from stages.config.installation import read_beside

TABLES = read_beside(__file__)

# The role of a model in the evaluation: an objective's name is that of its arm. `other` is a model from outside the
# run that the policy is compared with. `control` is the policy's, `control_NAME` that of an arm. In settings, an
# objective's name means the policy too, if it trained it.
Role = StrEnum(
    "Role",
    "base sft control control_dpo control_grpo control_online_dpo control_pairs policy other dpo kto grpo online_dpo",
)

# The training after SFT: DPO on pairs, KTO on labelled completions, GRPO on the model's own scored answers, online DPO
# on pairs of these; or none. `given`: the policy was trained elsewhere. `raft` is a word for grpo with
# `grpo.baseline=best`.
Align = StrEnum("Align", "dpo kto grpo online_dpo raft given none")

# The pairs of a control: another valid contrast of the prompt, at random; or the run's own, the better one by a coin.
ControlPairs = StrEnum("ControlPairs", "random coin")

ExportFormat = StrEnum("ExportFormat", "gguf hub dataset")

GGUFType = StrEnum("GGUFType", "f32 f16 q8_0")

Precision = StrEnum("Precision", "auto fp32 bf16")

Upstream = StrEnum("Upstream", "build require")

# The figure of a job that an optimising sweeper gets.
SweepMetric = StrEnum("SweepMetric", "pass_rate validation_loss")

# The choice of a prompt's pairs of candidates. `stages/pairing/strategies.py` has a function for each word.
Strategy = StrEnum(
    "Strategy", "best_worst all random margin best_random hard likely length_matched ranked"
)

# The answers that SFT learns from: the data's (given), or also the base model's best ones (selected).
Demonstrations = StrEnum("Demonstrations", "given selected")

# The kind of rows that an objective learns from: answered prompts, pairs, labelled completions, or prompts.
Reads = StrEnum("Reads", "examples pairs unpaired prompts")

# The assistant turns of a conversation that SFT trains on.
Turns = StrEnum("Turns", "each last")
Spelled = StrEnum("Spelled", "split drop keep")

# The treatment of truncated rejected completions: keep them without an end of turn, or drop them. `auto` keeps them if
# more than half of the candidates ended by themselves.
Unfinished = StrEnum("Unfinished", "keep drop auto")

# The question to a judge: which of two candidates is better, or how good one candidate is.
Rubrics = StrEnum("Rubrics", "pairwise pointwise")

# The texts that a rubric must show.
RUBRIC_TEXTS = {Rubrics.pairwise: ("request", "a", "b"), Rubrics.pointwise: ("request", "answer")}

# The form of a judge's verdict: JSON by a schema that the server enforces, or words in the last line.
Reading = StrEnum("Reading", "json text")

Split = StrEnum("Split", "sft preference validation test")

DPOReference = StrEnum("DPOReference", "previous sft")

# The trained weights: all, a new LoRA, a new LoRA over 4-bit weights, or (DPO only) SFT's LoRA, continued.
Adapter = StrEnum("Adapter", "none lora qlora continued")

# The type of weights in memory during training and scoring.
Weights = StrEnum("Weights", "fp32 bf16 nf4")

# The type of published weights, if it is not float32, that of trained weights.
StoredType = StrEnum("StoredType", "bfloat16")

# The input for a pair: the prompt once with both completions (`models/packing.py`), or two padded rows (TRL).
Forward = StrEnum("Forward", "shared_prefix padded")

# The activations that the backward pass recomputes. selective: all except outputs of matrix products and attention.
# full: all except the inputs of layers. auto: the first kind with which the longest row fits.
Checkpointing = StrEnum("Checkpointing", "auto none selective full")

Sharding = StrEnum("Sharding", "none fsdp zero3")

LOSS_TYPES: list[str] = TABLES["loss_types"].split()  # the losses of TRL's DPOTrainer
# the loss without a reference (arXiv:2405.14734), which TRL's DPOTrainer does not have
SIMPO = "simpo"
# GRPO's weights of tokens: every completion of a step counts alike (arXiv:2402.03300), every token by a constant and
# advantages are not divided (arXiv:2503.20783), or every token counts alike (arXiv:2503.14476).
GROUP_LOSSES = ("grpo", "dr_grpo", "dapo")
# of an advantage: the mean of a group, or of the others in it, which is RLOO's (arXiv:2402.14740). With `best` the best
# draws are trained on as SFT trains on demonstrations, and the others are not, as in RAFT (arXiv:2304.06767).
BASELINES = ("group_mean", "leave_one_out", "best")
# transformers' schedules of the learning rate: those that need an option, and all that follow no evaluation
SCHEDULES_WITH_OPTIONS = ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
SCHEDULES = (
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    *SCHEDULES_WITH_OPTIONS,
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")  # from a reference
DEVICES = ("auto", "cpu", "cuda")
# GPUs to plan for: compute capability, GB of memory, TB/s to it, TFLOP/s in bf16 without sparsity, and in fp32.
GPUS: dict[str, tuple[float, ...]] = {name: (*figures,) for name, figures in TABLES["gpus"].items()}
SOURCE_CHECKS = ("label", "number", "math")
# Encodings of text files besides UTF-8: Western, Central European, Cyrillic, Greek, Turkish, Chinese, Japanese, Korean
ENCODINGS = (
    *("cp1252", "latin-1", "iso-8859-15", "mac-roman", "cp437", "cp850"),
    *("cp1250", "iso-8859-2", "cp1251", "koi8-r", "cp1253", "cp1254"),
    *("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
    *("utf-16", "utf-16-le", "utf-16-be"),
)
DOCUMENTS = ("file", "sections", "paragraphs", "lines")  # the unit of plain text that becomes a row
AUDIT_CODES: list[str] = TABLES["audit_codes"].split()
# found by comparing rows
CODES_FROM_COMPARING_ROWS = ("duplicate", "near_duplicate", "other_answer", "crosses_splits")
AUDIT_ACTIONS = ("keep", "fix", "drop", "quarantine")
AUDIT_FIXES = ("damaged", "input_marker")  # codes with only one possible fix
# Codes with a threshold, and its range.
AUDIT_THRESHOLDS: dict[str, tuple[float, float]] = {
    code: (a, b) for code, (a, b) in TABLES["thresholds"].items()
}
