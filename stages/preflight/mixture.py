"""What a type cannot say of how sources mix for SFT."""

from collections.abc import Mapping

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Label
from stages.config.choices import Split
from stages.config.errors import UserError, one_of
from stages.config.schema import Config


def refuse(cfg: Config, sources: Mapping[str, Source | Label]) -> None:
    """Raise UserError for the first setting that cannot work: by weight come all sources or none, and only those mix
    that SFT learns from. `sources` are all of the run, by their keys."""
    named = {f"data.sources[{i}]": source for i, source in enumerate(cfg.data.sources)}
    to_learn = {key: source for key, source in named.items() if source.shares.get(Split.sft)}
    weighed = [key for key, source in to_learn.items() if source.weight]
    for key, source in sources.items():
        for name in ("weight", "epochs"):
            if isinstance(source, Source) and vars(source)[name] and key not in to_learn and key != "reward.source":
                raise UserError(f"{key}.{name} is for rows that SFT learns from, and this source brings none.")
    if weighed and len(weighed) < len(to_learn):
        lacking = next(key for key in to_learn if key not in weighed)
        raise UserError(f"{lacking}.weight is missing: {weighed[0]} has one, and shares are of all sources for sft.")
    mixture = cfg.data.mixture
    if (mixture.cap or mixture.quotas) and not to_learn:
        raise UserError("data.mixture mixes rows of data.sources for sft, and there are none.")
    one_of("data.mixture.quotas", mixture.quotas, sorted({source.of_task for source in to_learn.values()}))
    if fewest := [task for task, quota in mixture.quotas.items() if quota < 1]:
        raise UserError(f"data.mixture.quotas.{fewest[0]} must be at least 1. To have no row of it, leave it out.")
