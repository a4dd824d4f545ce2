"""Models in MLflow's registry: a version for each recorded model, with the alias `best` on the best of a study."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from subspacelab.tracking.store import store_lock

BEST = "best"
"""The alias of the version with the largest headline metric. `@latest` is MLflow's own name for the newest."""
LINKED = "mlflow.modelVersions"
"""MLflow's tag of a logged model: the versions to which its page links, those that a person registered too."""
METRIC, VALUE = "headline.metric", "headline.value"
"""Tags of a version: the metric by which versions are compared, and its value."""


def registered_name(kind: str, study: str | None) -> str:
    """The registered model for a kind of model, `lowrank-demo`; without a study `lowrank`."""
    return re.sub(r"[^\w\-. ]", "_", f"{kind}-{study}" if study else kind, flags=re.ASCII)


def register(client: Any, uri: str, run_id: str, model: str, name: str, tags: Mapping[str, str]) -> None:
    """Makes the logged `model` of a run a version of the registered model `name`, and gives `best` where it is due.

    `client` is an `MlflowClient`. The same model is not registered twice. ValueError when the run has no such model.
    """
    run = client.get_run(run_id)
    wanted = f"name = '{model}' AND source_run_id = '{run_id}'"
    logged = client.search_logged_models([run.info.experiment_id], wanted, max_results=1)
    if not logged:
        raise ValueError(f"run {run_id} has no model {model!r}, so there is none to register")
    source = f"models:/{logged[0].model_id}"
    with store_lock(uri):  # two stages may end at once
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=_about(tags))
        versions = client.search_model_versions(f"name = '{name}'")
        if any(version.run_id == run_id and version.tags.get("model") == model for version in versions):
            return
        model_id = logged[0].model_id  # which a server asks for
        made = client.create_model_version(name, source, run_id, tags={**tags, "model": model}, model_id=model_id)
        linked = [*json.loads(logged[0].tags.get(LINKED, "[]")), {"name": name, "version": made.version}]
        client.set_logged_model_tags(model_id, {LINKED: json.dumps(linked)})
        if VALUE in tags and _is_best(tags, versions):
            client.set_registered_model_alias(name, BEST, made.version)


def _is_best(tags: Mapping[str, str], versions: list[Any]) -> bool:
    rivals = [_value(version.tags) for version in versions if version.tags.get(METRIC) == tags[METRIC]]
    return _value(tags) > max(rivals, default=-math.inf)


def _value(tags: Mapping[str, str]) -> float:
    try:
        return float(tags[VALUE])
    except (KeyError, ValueError):  # a person's own tags
        return -math.inf


def _about(tags: Mapping[str, str]) -> str:
    where = f" of the study {tags['study']}" if "study" in tags else ""
    return f"Models{where}. `@latest` is the newest version, `@{BEST}` has the largest headline metric, see its tags."
