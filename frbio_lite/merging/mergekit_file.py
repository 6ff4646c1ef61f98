"""The model of a mergekit configuration file: read, and checked for all that can be known before the weights are opened.

What is not supported (layers left out, repeated or reordered, tokenizers made anew, LoRA within a reference) is refused
by name; nothing that a file says is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from frbio_lite.errors import RequestError, nearest
from frbio_lite.merging.mergekit_parameters import METHODS, MergekitMethod, Scope, Setting, read_setting
from frbio_lite.merging.stream import CONFIG_NAMES, OutputDtype

UNSUPPORTED = {
    "modules": "a model is merged as a whole: use models or slices",
    "tokenizer": "the base's tokenizer is kept; `tokenizer_source: base` brings other vocabularies to it",
    "chat_template": "the base's template is kept",
    "residual_weight": "layers are merged, not scaled",
}
FRANKENMERGE = "layers left out, repeated or reordered make a frankenmerge, which is not supported"
Location = tuple[str | int, ...]


class Reference(NamedTuple):
    """A model as a file names it: a directory or Hub id, and the revision after its @."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def _reference(value: Any) -> Reference:
    if isinstance(value, dict):
        return _reference_of_parts(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"a model is a directory or a Hub id, not {value!r}")
    if "+" in value:
        model, _, adapter = value.partition("+")
        raise ValueError(f"'{value}' adds a LoRA adapter: name {model} alone and pass --adapter {adapter}")
    name, _, revision = value.partition("@")
    if not name or "@" in revision or value.endswith("@"):
        raise ValueError(f"'{value}' is no model reference: write NAME or NAME@REVISION")
    return Reference(name, revision or None)


def _reference_of_parts(value: dict[str, Any]) -> Reference:
    """The long form, {model: NAME} or {model: {path, revision}}."""
    given = {key: part for key, part in value.items() if part is not None}
    if "lora" in given:
        raise ValueError("lora is not supported in a model reference: pass the adapter as --adapter")
    if "override_architecture" in given:
        raise ValueError("override_architecture is not supported: the architecture is read from config.json")
    inner = given.get("model")
    if set(given) == {"model"} and isinstance(inner, dict) and {"path"} <= set(inner) <= {"path", "revision"}:
        if not all(part is None or isinstance(part, str) for part in inner.values()):
            raise ValueError("path and revision of a model are texts")
        return Reference(inner["path"], inner.get("revision"))
    if set(given) != {"model"} or not isinstance(inner, str):
        raise ValueError("a model is NAME, NAME@REVISION or {model: {path, revision}}")
    return _reference(inner)


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    known: dict[str, str] = {name: dtype for dtype, name in CONFIG_NAMES.items()}
    name = str(value).removeprefix("torch.")
    if name not in known:
        raise ValueError(f"'{value}' is not supported{nearest(name, known)}: choose from {', '.join(known)}")
    return known[name]


def _method(value: Any) -> str:
    if value not in METHODS:
        raise ValueError(f"'{value}' is not supported{nearest(str(value), METHODS)}: choose from {', '.join(METHODS)}")
    return str(value)


def _tokenizer_source(value: Any) -> str | None:
    if value not in (None, "base"):
        raise ValueError(f"'{value}' is not supported: `base` keeps the base's tokenizer, as does leaving it out")
    return None if value is None else "base"


Model = Annotated[Reference, BeforeValidator(_reference)]
Dtype = Annotated[str | None, BeforeValidator(_dtype)]  # in the words of safetensors
Settings = dict[str, Annotated[Setting, BeforeValidator(read_setting)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    parameters: Settings | None = None


class ModelEntry(_Part):
    model: Model


class SourceEntry(_Part):
    model: Model
    layer_range: tuple[int, int]


class SliceEntry(_Part):
    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    base_model: Model | None = None


@dataclass(frozen=True)
class Part:
    """Layers [start, stop) of the merged model (None: all) with the models they are made of, as named in the file."""

    layers: tuple[int, int] | None
    models: dict[Reference, Settings]
    parameters: Settings


class MergekitConfig(_Part):
    """A whole file. `dtype` is the precision that mergekit computes in, here that of ranking; `written` that of the result."""

    merge_method: Annotated[str, BeforeValidator(_method)]
    entries: Annotated[list[ModelEntry], Field(min_length=1)] | None = Field(None, alias="models")
    slices: Annotated[list[SliceEntry], Field(min_length=1)] | None = None
    base_model: Model | None = None
    dtype: Dtype = None
    out_dtype: Dtype = None
    tokenizer_source: Annotated[str | None, BeforeValidator(_tokenizer_source)] = None
    _where: str = PrivateAttr("")

    @property
    def where(self) -> str:
        """The file it was read from, for messages."""
        return self._where

    @property
    def method(self) -> MergekitMethod:
        return METHODS[self.merge_method]

    @property
    def written(self) -> OutputDtype:
        """What tensors are rounded to, once; auto: as the base stores each."""
        return CONFIG_NAMES.get(self.out_dtype or self.dtype or "", "auto")

    @property
    def vocabulary(self) -> Literal["same", "base"]:
        return "base" if self.tokenizer_source == "base" else "same"

    @property
    def base(self) -> Reference | None:
        """The model named as the base, for the file or for its slices."""
        named = [s.base_model for s in self.slices or [] if s.base_model]
        return named[0] if named else self.base_model

    def models(self) -> list[Reference]:
        """All models, each once: the base first (the first one named, where the file names no base)."""
        named = [m for part in self.parts() for m in part.models]
        return list(dict.fromkeys([self.base, *named] if self.base else named))

    def parts(self) -> list[Part]:
        """The slices, or all layers as one; a base that `models` does not list is a model without own parameters."""
        if self.slices:
            return [
                Part(s.sources[0].layer_range, {m.model: m.parameters or {} for m in s.sources}, s.parameters or {})
                for s in self.slices
            ]
        listed = {m.model: m.parameters or {} for m in self.entries or []}
        return [Part(None, {**listed, **({self.base: {}} if self.base and self.base not in listed else {})}, {})]


def read_config(path: Path) -> MergekitConfig:
    """Read and check a configuration file. Raises RequestError with all that is wrong, each with file:line."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the configuration {path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RequestError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{path}: a configuration is a mapping of keys, not {type(value).__name__}")
    _require_distinct_keys(node, str(path), set())
    try:
        config = MergekitConfig.model_validate(_without_nulls(value))
        problems = list(_problems(config))
    except ValidationError as error:
        problems = [(e["loc"], _explain(e)) for e in error.errors()]
    if problems:
        raise RequestError(" | ".join(f"{path}{_line(node, loc)}: {message}" for loc, message in problems))
    config._where = str(path)
    return config


def _without_nulls(value: Any) -> Any:
    """Unsupported keys that are null say nothing."""
    if isinstance(value, dict):
        return {
            k: _without_nulls(v) if k == "slices" else v
            for k, v in value.items()
            if v is not None or k not in UNSUPPORTED
        }
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _require_distinct_keys(node: yaml.Node | None, where: str, seen: set[int]) -> None:
    """YAML lets a later key replace an earlier one silently."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, child in node.value:
            if str(key.value) in keys:
                raise RequestError(f"{where}:{key.start_mark.line + 1}: '{key.value}' is given twice")
            keys.add(str(key.value))
            _require_distinct_keys(child, where, seen)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _require_distinct_keys(child, where, seen)


def _line(node: yaml.Node | None, location: Location) -> str:
    """`:line` of the last part of a location that the file holds."""
    line = node.start_mark.line if node is not None else 0
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part], node.value[part]
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return f":{line + 1}"


def _explain(error: Any) -> str:
    location = error["loc"]
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        last = str(location[-1])
        if last in UNSUPPORTED:
            return f"'{key}' is not supported: {UNSUPPORTED[last]}"
        return f"unknown key '{key}'{nearest(last, _known_keys(location[:-1]))}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    plain = error["type"] == "value_error" or isinstance(error["input"], dict | list)
    return f"{key}: {message}" + ("" if plain else f", not {error['input']!r}")


def _known_keys(location: Location) -> list[str]:
    names = [p for p in location if isinstance(p, str)]
    model: type[BaseModel] = MergekitConfig
    if names:
        model = SourceEntry if names[-1] == "sources" else SliceEntry if names[-1] == "slices" else ModelEntry
    return [f.alias or name for name, f in model.model_fields.items()]


def _problems(config: MergekitConfig) -> Iterator[tuple[Location, str]]:
    """What is wrong with a file whose keys and types are right."""
    if (config.entries is None) == (config.slices is None):
        yield (), "a configuration has either `models` or `slices`"
        return
    yield from _parameter_problems(config, config.parameters, (), "merge")
    for i, model in enumerate(config.entries or []):
        yield from _parameter_problems(config, model.parameters, ("models", i), "model")
    for i, entry in enumerate(config.slices or []):
        yield from _parameter_problems(config, entry.parameters, ("slices", i), "merge")
        for j, source in enumerate(entry.sources):
            yield from _parameter_problems(config, source.parameters, ("slices", i, "sources", j), "model")
    yield from _slice_problems(config)
    yield from _model_problems(config)


def _parameter_problems(
    config: MergekitConfig, settings: Settings | None, location: Location, scope: Scope
) -> Iterator[tuple[Location, str]]:
    known = config.method.parameters
    for name, setting in (settings or {}).items():
        where = (*location, "parameters", name)
        if name not in known:
            takes = f"takes {', '.join(known)}"
            yield where, f"{config.merge_method} has no parameter '{name}'{nearest(name, known)}; it {takes}"
        elif scope == "model" and known[name].scope == "merge":
            yield (
                where,
                f"{name} is one for all models, and has no effect here: move it to the parameters of the file or slice",
            )
        else:
            for value in (v for _, values in setting.entries for v in values):
                try:
                    known[name].parse(value)
                except ValueError as error:
                    yield where, f"{name} {error}"


def _slice_problems(config: MergekitConfig) -> Iterator[tuple[Location, str]]:
    due = 0
    for i, entry in enumerate(config.slices or []):
        start, stop = entry.sources[0].layer_range
        for j, source in enumerate(entry.sources):
            if source.layer_range != (start, stop):
                other = list(source.layer_range)
                where = ("slices", i, "sources", j, "layer_range")
                yield where, f"layers {other} are to be merged with layers {[start, stop]}: {FRANKENMERGE}"
        where = ("slices", i, "sources", 0, "layer_range")
        if start != due or stop <= start:
            yield where, f"layers {[start, stop]} follow where layer {due} is next: {FRANKENMERGE}"
        due = stop


def _model_problems(config: MergekitConfig) -> Iterator[tuple[Location, str]]:
    models = config.models()
    yield from _repeated(("models",), [e.model for e in config.entries or []])
    for i, entry in enumerate(config.slices or []):
        named = [s.model for s in entry.sources]
        yield from _repeated(("slices", i), named)
        if (entry.base_model or config.base_model) != config.base:
            yield ("slices", i), "slices with another base_model are not supported"
        elif left := [str(m) for m in models if m not in named]:
            where = ("slices", i, "sources")
            yield where, f"{left[0]} is not among the sources: every slice merges all models, the base included"
    yield from _count_problems(config, len(models))


def _repeated(location: Location, models: list[Reference]) -> Iterator[tuple[Location, str]]:
    for model in sorted({m for m in models if models.count(m) > 1}, key=str):
        yield location, f"{model} is named twice"


def _count_problems(config: MergekitConfig, models: int) -> Iterator[tuple[Location, str]]:
    method, name = config.method, config.merge_method
    if method.base == "required" and config.base is None:
        yield (), f"{name} needs base_model"
        return
    beside = config.base is not None and method.base != "like others"
    count = models - 1 if beside else models
    if count < method.least or (method.most is not None and count > method.most):
        span = str(method.least) if method.least == method.most else f"{method.least} or more"
        yield ("models",), f"{name} merges {span} model(s){' beside base_model' if beside else ''}, not {count}"
