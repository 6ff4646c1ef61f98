"""Recipes as files: the shipped ones, what a file `extends`, overrides, and errors with file:line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from frbio_lite.errors import RequestError, nearest
from frbio_lite.recipe.schema import Recipe

Place = str  # "file:line" or "--set KEY=VALUE"
Path_ = tuple[str | int, ...]


def shipped_recipes() -> list[str]:
    """Names of the recipes installed with the package."""
    folder = resources.files("frbio_lite.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def recipe_text(name: str) -> tuple[str, str]:
    """(text, where) of a shipped recipe's name or a recipe file. Raises RequestError when there is neither."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"the recipe {path} cannot be read: {error}") from error
    shipped = shipped_recipes()
    if name not in shipped:
        raise RequestError(
            f"no recipe is called '{name}'{nearest(name, shipped) or '; `frbio recipes list` shows them'}"
        )
    return resources.files("frbio_lite.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml"


def load_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of a shipped name or a file, with `KEY=VALUE` overrides. Raises RequestError with all that is wrong."""
    value, places = _load_tree(name, ())
    model = _model_of(value)
    for override in overrides:
        _apply(value, places, override)
    if not any(override.startswith(("base=", "base.revision=")) for override in overrides):
        _unpin(value, model)
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise RequestError(" | ".join(_explain(e, places, name) for e in error.errors())) from error


def _load_tree(name: str, chain: tuple[str, ...]) -> tuple[dict[str, Any], dict[Path_, Place]]:
    """The plain values of a recipe and where each stands, with what it `extends` below it."""
    if name in chain:
        raise RequestError(f"recipes extend each other in a circle: {' → '.join((*chain, name))}")
    text, where = recipe_text(name)
    places: dict[Path_, Place] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _plain(node, (), where, places)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RequestError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise RequestError(f"{where}: an alias (*name) refers to itself") from error
    if not isinstance(value, dict):
        raise RequestError(f"{where}: a recipe is a mapping of keys, not {type(value).__name__}")
    if "extends" not in value:
        return value, places
    below, below_places = _load_parent(value.pop("extends"), (*chain, name), places[("extends",)])
    model, pinned = _model_of(below), isinstance(value.get("base"), dict) and "revision" in value["base"]
    merged, places = _overlay(below, value, below_places, places, ())
    if not pinned:
        _unpin(merged, model)
    return merged, places


def _load_parent(name: Any, chain: tuple[str, ...], place: Place) -> tuple[dict[str, Any], dict[Path_, Place]]:
    if not isinstance(name, str):
        raise RequestError(f"{place}: extends names one recipe or file, not {name!r}")
    try:
        recipe_text(name)
    except RequestError as error:
        raise RequestError(f"{place}: extends: {error}") from error
    return _load_tree(name, chain)


def _model_of(value: dict[str, Any]) -> Any:
    return value["base"].get("model") if isinstance(value.get("base"), dict) else None


def _unpin(value: dict[str, Any], model: Any) -> None:
    """Forget the base's revision where the base is no longer `model`: a revision belongs to its model."""
    if _model_of(value) != model and isinstance(value.get("base"), dict):
        value["base"].pop("revision", None)


def _plain(node: yaml.Node | None, path: Path_, where: str, places: dict[Path_, Place]) -> Any:
    if node is None:
        return None
    places[path] = f"{where}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = f"{where}:{key_node.start_mark.line + 1}"
            if key in result:
                raise RequestError(f"{here}: '{key}' is given twice")
            result[key] = _plain(value_node, (*path, key), where, places)
            places[(*path, key)] = here
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*path, i), where, places) for i, child in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    return loader.construct_object(node)


def _overlay(
    below: dict[str, Any],
    above: dict[str, Any],
    below_places: dict[Path_, Place],
    places: dict[Path_, Place],
    path: Path_,
) -> tuple[dict[str, Any], dict[Path_, Place]]:
    """`above` over `below`: mappings merge key by key, anything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key], _ = _overlay(old, value, below_places, places, (*path, key))
        else:
            merged[key] = value
    return merged, {**below_places, **places}


def _apply(value: dict[str, Any], places: dict[Path_, Place], override: str) -> None:
    """Set one dotted key, `corpus.sources.0.path=FILE`, to a YAML value."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"--set {override}: write KEY=VALUE, for example --set train.tokens=1_000_000")
    parts = tuple(int(p) if p.isdigit() else p for p in key.strip().split("."))
    try:
        new = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"--set {override}: the value is not valid YAML") from error
    target: Any = value
    for i, part in enumerate(parts[:-1]):
        try:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[part]
        except (KeyError, IndexError, TypeError) as error:
            raise RequestError(f"--set {override}: the recipe has no {'.'.join(map(str, parts[: i + 1]))}") from error
    last = parts[-1]
    if isinstance(target, list) and isinstance(last, int) and last <= len(target):
        target[last : last + 1] = [new]
    elif isinstance(target, dict) and isinstance(last, str):
        target[last] = new
    else:
        raise RequestError(f"--set {override}: the recipe has no place {key}")
    for below in [p for p in places if p[: len(parts)] == parts]:
        del places[below]
    for n in range(1, len(parts)):
        places.setdefault(parts[:n], f"--set {override}")
    places[parts] = f"--set {override}"


def _explain(error: Any, places: dict[Path_, Place], name: str) -> str:
    """One pydantic error as `place: key: what is wrong`."""
    location = tuple(
        p
        for p in error["loc"]
        if not (isinstance(p, str) and p.startswith(("literal[", "constrained-", "list[", "str")))
    )
    where = next((places[location[:n]] for n in range(len(location), -1, -1) if location[:n] in places), name)
    key = ".".join(map(str, location)) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'{nearest(str(location[-1]), _known_keys(location[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: '{key}' is missing"
    got = (
        "" if isinstance(error["input"], dict | list) or error["type"] == "value_error" else f", not {error['input']!r}"
    )
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{where}: {key}: {message}{got}"


def _known_keys(location: Path_) -> list[str]:
    """The keys allowed at a place of the recipe."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        candidates += [a for c in candidates for a in getattr(c, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return [*model.model_fields, *(["extends"] if model is Recipe else [])]
