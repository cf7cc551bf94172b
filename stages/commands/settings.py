"""Settings of nodes as a user knows them: one flat table, in which files go by their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for name, inner in value.items() for k, v in flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def named(settings: Any, config: Any, key: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, value and what to call it. `settings` make the fingerprint and hold the digest of every local file;
    `config`, of the same shape, holds its path."""
    if isinstance(settings, dict):
        for name, inner in settings.items():
            given = config.get(name) if isinstance(config, dict) else None
            yield from named(inner, given, f"{key}.{name}" if key else name)
    elif isinstance(settings, list) and any(isinstance(item, dict) for item in settings):
        for i, item in enumerate(settings):
            yield from named(item, config[i] if isinstance(config, list) else None, f"{key}[{i}]")
    elif isinstance(settings, str) and isinstance(config, str) and settings != config:
        yield key, settings, Path(config).name
    else:
        yield key, settings, shown(settings)


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)
