"""The configuration of a recipe's base, without its weights: from where the base is, or from the published ones shipped here."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from frbio_lite import hub, recipe
from frbio_lite.demo.base import VOCABULARY, make_config
from frbio_lite.errors import RequestError


def configuration(base: recipe.Base) -> Any:
    """The transformers configuration of a directory, a demo base, a model of bases.yaml, or one in the cache or on the Hub.

    Raises RequestError when it is in none of them.
    """
    from transformers import AutoConfig

    if Path(base.model).is_dir():
        return hub.load_config(Path(base.model))
    if base.model in ("demo", "demo-untrained"):
        return make_config(VOCABULARY, 0)
    if base.model in published():
        return AutoConfig.for_model(**published()[base.model])
    hub.why_offline()  # without a network the library would ask for half a minute
    try:
        return hub.text_part(AutoConfig.from_pretrained(base.model, revision=base.revision))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"the configuration of {base.model} is neither at hand nor to be had ({str(error).splitlines()[0]}): pass a "
            f"directory with its config.json, --set base.model=DIR, or one of {', '.join(published())}"
        ) from error


@cache
def published() -> dict[str, dict[str, Any]]:
    """Configurations by Hub id, from the smallest model of a family to the largest."""
    text = resources.files("frbio_lite.memory").joinpath("bases.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def smaller(model: str) -> list[str]:
    """Published models of the same family as `model` with fewer parameters, the largest first."""
    names = list(published())
    if model not in names:
        return []
    kind = published()[model]["model_type"]
    return [n for n in reversed(names[: names.index(model)]) if published()[n]["model_type"] == kind]
