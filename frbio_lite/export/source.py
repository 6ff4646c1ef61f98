"""What is exported: a model directory, or the merged model of a run; and where an export may be written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frbio_lite import hub
from frbio_lite.artifacts import MANIFEST
from frbio_lite.errors import RequestError

RUN_FILES = ("recipe.yaml", "corpus", "train", "ablation")  # one of them beside `merge` makes a directory a run


@dataclass(frozen=True)
class Model:
    """A directory that `AutoModelForCausalLM.from_pretrained` loads; `name` is for files and servers: a-z, 0-9, `.`, `_`, `-`."""

    directory: Path
    name: str
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        found = self.config.get("architectures")
        return str(found[0]) if isinstance(found, list) and found else "unknown"

    def setting(self, key: str) -> Any:
        """A setting of the text model, also where the configuration nests it."""
        nested = self.config.get("text_config")
        return nested.get(key, self.config.get(key)) if isinstance(nested, dict) else self.config.get(key)


def open_model(path: Path) -> Model:
    """The model at `path`, or the merged one of the run at `path`.

    Raises RequestError for an adapter, a run that has no merged model yet, and what is no model of safetensors.
    """
    if not path.is_dir():
        raise RequestError(f"{path} is not a directory: give a merged model, or a run that `frbio run --out` filled")
    directory, named = path, path.resolve()
    if (path / "merge").is_dir() or (path / "recipe.yaml").is_file():
        directory = path / "merge"
        if not (directory / MANIFEST).is_file():
            raise RequestError(f"{path} has no merged model yet: finish it with `frbio run RECIPE --out {path}`")
    elif named.name == "merge" and any((named.parent / name).exists() for name in RUN_FILES):
        named = named.parent
    if hub.is_adapter(directory):
        raise RequestError(
            f"{directory} is an adapter, which nothing serves alone: merge it into its base first, "
            f"`frbio merge --base BASE --adapter {directory} --out merged`"
        )
    if (directory / MANIFEST).is_file() and not (directory / "config.json").is_file():
        kind = json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("kind", "other")
        raise RequestError(f"{directory} holds {kind}, not a model: give a merged model or its run")
    hub.fetch(str(directory))
    return Model(directory, server_name(named.name), _config(directory))


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{directory} has no usable config.json: {error}") from error
    if not isinstance(config, dict):
        raise RequestError(f"{directory} has no usable config.json: it holds no mapping of settings")
    if config.get("quantization_config"):
        raise RequestError(f"{directory} is quantised: export the 16 or 32-bit weights it was made from")
    return config


def server_name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "model"


def default_place(model: Model, format: str) -> Path:
    """Beside the model: `MODEL-FORMAT`."""
    directory = model.directory.absolute()
    return directory.with_name(f"{directory.name}-{format}")


@contextmanager
def directory_made(place: Path) -> Iterator[None]:
    """Work in `place`, made if missing, and not left empty by work that fails. Raises RequestError when it cannot be one."""
    was = place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RequestError(f"{place} is a file: name a directory with --out") from error
    try:
        yield
    except BaseException:
        if not was:
            with suppress(OSError):  # something is in it
                place.rmdir()
        raise
