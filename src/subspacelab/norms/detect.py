"""Which family a checkpoint belongs to."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from subspacelab.norms.families import FAMILIES
from subspacelab.norms.family import Family


@dataclass(frozen=True)
class Detected:
    """A checkpoint's family."""

    family: Family | None
    """None when it is none of the table."""
    model_type: str
    """The family's `model_type`, as config.json writes it where it does; `unknown` outside the table."""
    found_by: str
    """model_type, architectures, key names; or what is unknown."""


def detect_family(config: Mapping[str, Any], names: Collection[str]) -> Detected:
    """The family by `model_type`, without one by `architectures`, without both by the canonical `names`.

    A `model_type` outside the table is unknown, whatever its keys look like: relatives differ in what matters here.
    """
    model_type = config.get("model_type")
    if model_type:
        family = next((f for f in FAMILIES if model_type in f.model_types), None)
        return Detected(family, str(model_type) if family else "unknown", f"model_type {model_type}")
    for name in config.get("architectures") or ():
        family = next((f for f in FAMILIES if name in f.architectures), None)
        if family:
            return Detected(family, family.name, f"architectures {name}")
    family = next((f for f in FAMILIES if _has_signature(f, names)), None)
    return Detected(family, family.name if family else "unknown", "the names of its weights")


def _has_signature(family: Family, names: Collection[str]) -> bool:
    def there(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in names)

    return all(there(p) for p in family.signature) and not any(there(p) for p in family.absent)
