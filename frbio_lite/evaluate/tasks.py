"""Benchmarks: one YAML file each, in `tasks/`, or a file of the user's own with the same keys.

    load_tasks(["core-fr", "heldout-domain", "my-task.yaml"])

A task says where its items come from, how a row becomes a prompt with choices, and the one metric it reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from frbio_lite.errors import RequestError, nearest
from frbio_lite.recipe import Group, Section

PLACEHOLDER = re.compile(r"\{([\w.]+)\}")
SLICE = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")

SplitName = Literal["validation", "test", "shots"]
Metric = Literal["accuracy", "accuracy_norm", "bits_per_byte"]


class Splits(Section):
    """Which published rows serve as what: a split, or a part of one such as `test[300:]` (as `datasets` slices)."""

    validation: str | None = None
    test: str | None = None
    shots: str | None = None  # where few-shot examples come from

    @field_validator("*")
    @classmethod
    def _sliced(cls, value: str | None) -> str | None:
        if value is not None and not SLICE.fullmatch(value):
            raise ValueError(f"'{value}' is not a split such as test or test[300:]")
        return value

    @model_validator(mode="after")
    def _disjoint(self) -> Splits:
        """What is chosen on, or shown as an example, is never what is reported on."""
        ranges = {name: _rows_of(value) for name, value in self if value is not None}
        for a, b in (("validation", "test"), ("shots", "test"), ("shots", "validation")):
            if a in ranges and b in ranges and _overlap(ranges[a], ranges[b]):
                raise ValueError(f"{a} ({getattr(self, a)}) and {b} ({getattr(self, b)}) share rows")
        return self


def _rows_of(value: str) -> tuple[str, int, float]:
    found = SLICE.fullmatch(value)
    assert found is not None  # held by the validator above
    return found["name"], int(found["start"] or 0), float(found["stop"] or "inf")


def _overlap(a: tuple[str, int, float], b: tuple[str, int, float]) -> bool:
    return a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])


class Task(Section):
    """A benchmark. Its items come from `dataset` (Hub), `demo` (the embedded world) or `heldout` (the corpus)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    group: Group
    sets: tuple[str, ...] = ()  # collections that recipes may name instead of their tasks
    kind: Literal["multiple_choice", "bits_per_byte"]
    metric: Metric  # accuracy_norm: log-likelihoods divided by the choices' characters

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    demo: Literal["medical", "general"] | None = None
    heldout: Literal["domain", "replay"] | None = None
    splits: Splits = Splits()

    rename: dict[str, str] = Field(
        default_factory=dict
    )  # column as published elsewhere → as named here (nested columns are `outer.inner`)
    id: str | None = None  # the column that names an item; none: the row's number
    prompt: str | None = None  # `{column}` is replaced by the row's value
    choices: str | tuple[str, ...] | None = None  # one column holding a list, or a column per choice
    continuation: Literal["text", "letter"] = "text"  # what is scored after the prompt: the choice itself, or A, B, C…
    gold: str | None = None  # column: a letter, a number, or a list of one
    gold_first: Literal[0, 1] = 0  # the number of the first choice, when gold is a number
    single_answer: bool = False  # leave out the rows whose gold lists several answers
    optional: tuple[str, ...] = ()  # columns of the prompt that may be empty
    delimiter: str = " "  # between prompt and choice

    license: str
    items: Annotated[int, Field(gt=0)] | None = None  # published size of the test split
    note: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Task:
        origins = [key for key in ("dataset", "demo", "heldout") if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(
                "a task has one of `dataset`, `demo` and `heldout`"
                + (f", not {' and '.join(origins)}" if origins else "")
            )
        if (self.kind == "bits_per_byte") != (self.metric == "bits_per_byte"):
            raise ValueError(f"metric {self.metric} does not belong to kind {self.kind}")
        if (self.heldout is not None) != (self.kind == "bits_per_byte"):
            raise ValueError("`heldout` goes with kind bits_per_byte, `dataset` and `demo` with multiple_choice")
        if self.dataset is None and (self.config or self.revision):
            raise ValueError("`config` and `revision` belong to a Hub `dataset`")
        missing = [key for key in ("prompt", "choices", "gold") if not getattr(self, key)]
        if self.kind == "multiple_choice" and missing:
            raise ValueError(f"a multiple_choice task needs {', '.join(f'`{m}`' for m in missing)}")
        return self

    @field_validator("prompt")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        """Substitution is by column name alone: what else stands in braces would be left as it is, unseen."""
        rest = PLACEHOLDER.sub("", value or "")
        if "{" in rest or "}" in rest:
            raise ValueError("braces in a prompt hold the name of a column and nothing else, as in {question}")
        return value

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(PLACEHOLDER.findall(self.prompt or "")))


def fill(template: str, values: dict[str, str]) -> str:
    """`template` with each `{column}` replaced by its value, in one pass: braces inside values stay as they are."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], template)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Task]:
    folder = resources.files("frbio_lite.evaluate").joinpath("tasks")
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}
    tasks = [parse_task(text, name) for name, text in sorted(texts.items())]
    return {task.name: task for task in tasks}


def task_names() -> list[str]:
    """Names of the tasks that are installed with the package."""
    return sorted(_shipped())


def load_tasks(names: Iterable[str]) -> list[Task]:
    """The tasks of these names, sets or YAML files, in order, each once.

    Raises RequestError for what is unknown or malformed.
    """
    found: dict[str, Task] = {}
    for name in names:
        for task in _named(name):
            if found.setdefault(task.name, task) != task:
                raise RequestError(f"two different tasks are called '{task.name}': rename the one in {name}")
    return list(found.values())


def _named(name: str) -> list[Task]:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        try:
            return [parse_task(path.read_text(encoding="utf-8"), str(path))]
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"the task {path} cannot be read: {error}") from error
    shipped = _shipped()
    if name in shipped:
        return [shipped[name]]
    members = [task for task in shipped.values() if name in task.sets]
    if not members:
        known = [*shipped, *dict.fromkeys(s for task in shipped.values() for s in task.sets)]
        raise RequestError(
            f"no task or set is called '{name}'{nearest(name, known) or '; there are ' + ', '.join(known)}"
        )
    return members


def parse_task(text: str, where: str) -> Task:
    """The task a YAML text describes. Raises RequestError with all that is wrong, each with `where`:line."""
    try:
        value = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RequestError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict) or not isinstance(node, yaml.MappingNode):
        raise RequestError(f"{where}: a task is a mapping of keys, not {type(value).__name__}")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if str(key.value) in lines:
            raise RequestError(f"{where}:{key.start_mark.line + 1}: '{key.value}' is given twice")
        lines[str(key.value)] = key.start_mark.line + 1
    try:
        return Task.model_validate(value)
    except ValidationError as error:
        raise RequestError(" | ".join(_explain(e, where, lines) for e in error.errors())) from error


def _explain(error: Any, where: str, lines: dict[str, int]) -> str:
    location = [str(part) for part in error["loc"]]
    place = f"{where}:{lines[location[0]]}" if location and location[0] in lines else where
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = Splits.model_fields if location[0] == "splits" else Task.model_fields
        return f"{place}: unknown key '{key}'{nearest(location[-1], known)}"
    if error["type"] == "missing":
        return f"{place}: '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    return f"{place}: {key}: {message}" if key else f"{place}: {message}"
