"""`launch=ray`: tasks of a Ray cluster compute the blocks of a stage."""

from dataclasses import dataclass
from importlib.util import find_spec

from stages.config.blocks.processes import Launch
from stages.config.command_record import Block
from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.config.limits import between


@dataclass
class RayLaunch(Launch, Block):
    # of a Ray cluster that samples and scores: auto, on one of its nodes, or HOST:PORT of its head
    address: str | None = None
    # of each Ray task: 0 or 1; null: 1 if this machine shows a GPU
    num_gpus: int | None = between(0, 1, None)
    max_retries: int = 3  # of a Ray task whose process or node died

    def validate(self, is_target: bool) -> None:
        """Raise UserError if Ray is missing, its address is wrong, or it would need several nodes or a GPU that this
        machine lacks."""
        from stages.hardware import machine
        from stages.preflight.machine_needs import is_host_and_port

        if not self.address:
            return
        if find_spec("ray") is None:
            raise UserError(f"launch.address={self.address} needs Ray: {install_command('ray')}.")
        if self.address != "auto" and not is_host_and_port(self.address):
            raise UserError(f"launch.address={self.address} is neither auto nor HOST:PORT.")
        if self.nodes > 1:
            raise UserError(f"launch.nodes={self.nodes}: Ray has the nodes. Use launch.nodes=1.")
        if self.num_gpus and not machine.may_have_gpu():
            raise UserError(
                f"launch.num_gpus={self.num_gpus}: this machine shows no GPU, and tasks use its kind of device. Use 0."
            )


BLOCKS = {"launch": RayLaunch}
