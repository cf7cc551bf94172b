"""`stage=chat`: talk to a model of a finished run in the terminal."""

from dataclasses import dataclass, field

from omegaconf import II

from stages.config import choices
from stages.config.blocks.runtimes import DeviceRuntime
from stages.config.command_record import Command, Object
from stages.config.limits import at_least, random_seed, words


@dataclass
class ChatRuntime(DeviceRuntime):
    """The device of a chat, and the Python and GPUs of vLLM."""

    device: str = words(*choices.DEVICES, default="auto")
    python: str | None = None
    tensor_parallel: int = at_least(1, 1)


@dataclass
class Chat:
    """Answers to one prompt after the other, from the terminal or a pipe."""

    # base | sft | control | control_pairs | policy, or an objective's name
    model: choices.Role = choices.Role.policy
    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int = at_least(1, 256)
    precision: choices.Precision = field(default=II("precision"))
    seed: int = random_seed(II("seed"))
    # generate, which prints an answer while it is drawn; or vllm, when it is complete
    sampler: str = words("generate", "vllm", default="generate")
    # python and tensor_parallel as of sample.runtime
    runtime: ChatRuntime = field(default_factory=ChatRuntime)


COMMAND = Command(
    "talk to a model, or to all side by side",
    Object.model,
    prints_json=False,
    block=Chat,
    example="talk to the policy of the last run",
    next_step="Chat with the model:",
)
