"""Sources of a pool that cannot be, and files of candidates beside keys that say how to draw them."""

from importlib.util import find_spec

from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.sampling import OWN_PROMPTS, Member, Sample
from stages.config.errors import UserError, one_of
from stages.config.installation import install_command
from stages.config.schema import Config
from stages.store import plugins

DRAWN = ("sampler", "temperature", "top_p", "n")  # keys of a source that is drawn


def refuse(cfg: Config) -> None:
    """Raise UserError for the first of them."""
    sample, samplers = cfg.sample, plugins.words("samplers", "Sampler")
    one_of("sample.sampler", [sample.sampler], [*samplers, OWN_PROMPTS])
    if sample.brings_prompts:
        require_own_prompts(cfg)
    if sample.file and (sample.pool or sample.own):
        other = "sample.pool" if sample.pool else "sample.own"
        raise UserError(f"sample.file and {other} both say where candidates come from: sample.pool holds several.")
    if (sample.file or sample.pool) and cfg.label.brings_pool:
        raise UserError("label=dataset brings its candidates: leave sample.file and sample.pool out.")
    for block in sample.members:
        require_openvino(block)
    for i, member in enumerate(sample.pool or ()):
        key = f"sample.pool[{i}]"
        if member in (sample.pool or [])[:i]:
            raise UserError(f"{key} is a source that stands before it: its candidates would be copies.")
        if member.sampler:
            one_of(f"{key}.sampler", [member.sampler], samplers)
        source(key, member)


def require_own_prompts(cfg: Config) -> None:
    """Raise UserError where candidates with prompts of their own are not there, or their labeler needs checks."""
    if not cfg.sample.file:
        raise UserError("sample=file needs sample.file: a file of prompts and completions.")
    if "verifier" in cfg.label.labelers:
        raise UserError(
            "label=verifier goes by checks, and the prompts of sample=file have none. Use label=judge, human or "
            "reward_model; or leave sample=file out, and sample.file answers the data's prompts."
        )


def require_openvino(block: Sample) -> None:
    """Raise UserError where OpenVINO's engine lacks its package, or is to compute elsewhere than on the CPU."""
    if block.sampler != "openvino" or block.file or block.own:
        return
    if find_spec("openvino_genai") is None:
        raise UserError(f"{block.key}.sampler=openvino needs its package: {install_command('openvino')}.")
    if block.runtime.device == "cuda":
        raise UserError(f"{block.key}.sampler=openvino computes on the CPU: sample.runtime.device=cpu, or sample=hf.")


def source(key: str, member: Member) -> None:
    """One of a model, an endpoint and a file, and nothing that another of these would need."""
    asked = member.endpoint != Endpoint()
    named = [name for name, there in (("model", member.model), ("endpoint", asked), ("file", member.file)) if there]
    if len(named) > 1:
        raise UserError(f"{key} names {' and '.join(named)}: each of them is a source of its own.")
    if member.file and (drawn := [name for name in DRAWN if getattr(member, name) is not None]):
        raise UserError(f"{key}.{drawn[0]} says how candidates are drawn, and {key}.file has them already.")
    if member.columns and not member.file:
        raise UserError(f"{key}.columns says which columns {key}.file has, and there is none.")
    if asked and member.sampler not in (None, "openai"):
        raise UserError(f"{key}.endpoint is asked by sampler=openai, and not by {member.sampler}.")
