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
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from frbio_lite.errors import RequestError, nearest
from frbio_lite.recipe import Section

PLACEHOLDER = re.compile(r"\{([\w.]+)\}")
SLICE = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")

SplitName = Literal["validation", "test", "shots"]
Kind = Literal["multiple_choice", "multiple_answer", "generative", "bits_per_byte"]
Form = Literal["multiple_choice", "yes_no", "letter_sets", "generative", "bits_per_byte"]
Metric = Literal[
    "accuracy",  # the choice with the highest log-likelihood; divided by its characters, UTF-8 bytes or tokens:
    "accuracy_norm",
    "accuracy_bytes",
    "accuracy_tokens",
    "exact_set",  # the chosen answers are all the right ones and no others
    "jaccard",  # right answers chosen, over answers that are right or chosen
    "exact_match",  # of what was generated, after `extract`
    "f1",  # of words in common with the reference
    "rouge_l",
    "spearman",
    "bits_per_byte",
]
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "multiple_choice": ("accuracy", "accuracy_norm", "accuracy_bytes", "accuracy_tokens"),
    "multiple_answer": ("exact_set", "jaccard"),
    "generative": ("exact_match", "f1", "rouge_l", "spearman"),
    "bits_per_byte": ("bits_per_byte",),
}


# The keys that one kind of task alone reads; in another they would be given in vain.
READ_BY: dict[str, tuple[Kind, ...]] = {
    "choices": ("multiple_choice", "multiple_answer"),
    "fixed_choices": ("multiple_choice", "multiple_answer"),
    "continuation": ("multiple_choice", "multiple_answer"),
    "choice": ("multiple_choice",),
    "gap": ("multiple_choice",),
    "gold_first": ("multiple_choice", "multiple_answer"),
    "gold_labels": ("multiple_choice", "multiple_answer"),
    "gold_flags": ("multiple_choice", "multiple_answer"),
    "single_answer": ("multiple_choice",),
    "answers": ("multiple_answer",),
    "stop": ("generative",),
    "max_new_tokens": ("generative",),
    "extract": ("generative",),
    "example": ("generative",),
    **dict.fromkeys(
        ("prompt", "gold", "delimiter", "optional", "id", "cluster", "where", "rename", "splits"),
        ("multiple_choice", "multiple_answer", "generative"),
    ),
    **dict.fromkeys(
        ("edits", "strip", "filled", "instruction", "shots_by", "first_shots", "paper_shots"),
        ("multiple_choice", "multiple_answer", "generative"),
    ),
}
HUB_FILES = (".json", ".jsonl", ".parquet", ".csv")
OPTION = "option"  # in the prompt of a yes/no question, the choice that is asked about; in `choice`, the choice
Edit = tuple[str, str] | Literal["lower_first"]  # a regular expression and what replaces each match; see `edited`
PAPER_SHOTS = 5  # of arXiv 2604.06903, which shows 3 for tasks named med or glianorex and 4 for mathematics
YES_NO: dict[str, tuple[str, str]] = {"fr": ("Oui", "Non"), "en": ("Yes", "No")}


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
        ranges = {name: slice_of(value) for name, value in self if value is not None}
        for a, b in (("validation", "test"), ("shots", "test"), ("shots", "validation")):
            if a in ranges and b in ranges and _overlap(ranges[a], ranges[b]):
                raise ValueError(f"{a} ({getattr(self, a)}) and {b} ({getattr(self, b)}) share rows")
        return self


def slice_of(value: str) -> tuple[str, int, float]:
    """The name of a split and the rows of it: `test[300:]` is test from 300 to infinity."""
    found = SLICE.fullmatch(value)
    assert found is not None  # held by the validator of Splits
    return found["name"], int(found["start"] or 0), float(found["stop"] or "inf")


def _overlap(a: tuple[str, int, float], b: tuple[str, int, float]) -> bool:
    return a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])


class Task(Section):
    """A benchmark. Its items come from `dataset` (Hub), a `file`, the package's own `questions`, `demo` (the embedded
    world) or `heldout` (the corpus)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    group: Literal["domain", "general", "control"]  # a control is reported, and no rule or verdict counts it
    language: Literal["fr", "en"] = "fr"
    sets: tuple[str, ...] = ()  # collections that recipes may name instead of their tasks
    kind: Kind
    metric: Metric  # the one that counts for groups, gains and verdicts
    also: tuple[Metric, ...] = ()  # reported beside it

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    # a file of the `dataset` where its splits do not load: data.json, data.zip::inner.json; `{split}` in it is replaced
    hub_file: str | None = None
    file: str | None = None  # a .jsonl, .json or .parquet beside the task's YAML; `{split}` in it is replaced
    questions: Literal["medical", "general"] | None = None
    demo: Literal["medical", "general"] | None = None
    heldout: Literal["domain", "replay"] | None = None
    splits: Splits = Splits()

    rename: dict[str, str] = Field(
        default_factory=dict
    )  # column as published elsewhere → as named here (nested columns are `outer.inner`)
    # only rows whose column holds (one of) this; `fr*` is what begins with fr
    where: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    id: str | None = None  # the column that names an item; none: the row's number
    cluster: str | None = None  # the column whose equal values make items depend on each other: a case, a passage
    prompt: str | None = None  # `{column}` is replaced by the row's value
    choices: str | tuple[str, ...] | None = None  # one column holding a list, or a column per choice
    fixed_choices: tuple[str, ...] = ()  # instead of `choices`: the same for all items, such as Vrai, Faux
    # what is scored after the prompt: the choice itself, or A, B, C…; or, of the prompt with each choice in its `gap`,
    # what follows the gap
    continuation: Literal["text", "letter", "rest"] = "text"
    choice: str | None = None  # what is scored of a choice where it is more than its text: a template with {option}
    gap: str | None = None  # the mark in a column of `prompt` or `choice` that each choice takes the place of
    gold: str | None = None  # column: a letter, a number, a list of them; the reference text of a generative task
    gold_first: Literal[0, 1] = 0  # the number of the first choice, when gold is a number
    gold_labels: tuple[str, ...] = ()  # when gold is a word: those of the choices in their order
    gold_flags: bool = False  # gold is a list with a 1 for each right choice and a 0 for each wrong one
    single_answer: bool = False  # leave out the rows whose gold lists several answers
    # multiple_answer: one question per choice, or all sets of letters
    answers: Literal["yes_no", "letter_sets"] = "letter_sets"
    optional: tuple[str, ...] = ()  # columns of the prompt that may be empty; a line of nothing else is then left out
    filled: tuple[str, ...] = ()  # leave out the rows in which one of these columns is empty
    edits: dict[str, tuple[Edit, ...]] = Field(default_factory=dict)  # changes of a column's text, in this order
    strip: bool = True  # drop the white space around every text; false: as published
    instruction: str | None = None  # stands before the examples, and nothing between (the harness's `description`)
    example: str | None = None  # generative: a worked example, where it is more than the prompt and the gold
    shots_by: str | None = None  # show only examples that have the item's value of this column
    first_shots: bool = False  # `parity` too shows the first examples, as lm-evaluation-harness does for this task
    paper_shots: Annotated[int, Field(ge=0)] = PAPER_SHOTS  # what `shots: paper` means here
    delimiter: str = " "  # between prompt and choice
    stop: tuple[str, ...] = ("\n",)  # generative: where the answer ends
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    # generative: a regular expression whose last match (its group, if it has one) is the answer
    extract: str | None = None

    source: str = ""  # where the wording of the prompt comes from
    license: str
    items: Annotated[int, Field(gt=0)] | None = None  # published size of the test split
    note: str = ""

    _folder: Path | None = PrivateAttr(default=None)  # where the task's YAML lies, which `file` is relative to

    @model_validator(mode="after")
    def _complete(self) -> Task:
        known = ("dataset", "file", "questions", "demo", "heldout")
        origins = [key for key in known if getattr(self, key) is not None]
        if len(origins) != 1:
            raise ValueError(
                f"a task has one of {', '.join(f'`{k}`' for k in known)}"
                + (f", not {' and '.join(origins)}" if origins else "")
            )
        for metric in (self.metric, *self.also):
            if metric not in METRICS[self.kind]:
                raise ValueError(
                    f"metric {metric} does not belong to kind {self.kind}: {', '.join(METRICS[self.kind])} do"
                )
        if len({self.metric, *self.also}) != 1 + len(self.also):
            raise ValueError("`metric` and `also` name each metric once")
        if (self.heldout is not None) != (self.kind == "bits_per_byte"):
            raise ValueError("`heldout` goes with kind bits_per_byte, and bits_per_byte with `heldout`")
        if self.dataset is None and (self.config or self.revision or self.hub_file):
            raise ValueError("`config`, `revision` and `hub_file` belong to a Hub `dataset`")
        if self.hub_file is not None and (self.config or not self.hub_file.endswith(HUB_FILES)):
            raise ValueError(f"`hub_file` ends in one of {', '.join(HUB_FILES)}, and has no `config`")
        if unread := [key for key in READ_BY if key in self.model_fields_set and self.kind not in READ_BY[key]]:
            raise ValueError(f"a {self.kind} task does not read {', '.join(f'`{key}`' for key in unread)}")
        if self.kind != "bits_per_byte":
            self._check_questions()
        return self

    def _check_questions(self) -> None:
        # with `choice` the prompt may be empty: all is in what is scored
        needed = [] if self.prompt is not None and self.choice else ["prompt"]
        needed += ["gold"] + (["choices"] if self.kind != "generative" and not self.fixed_choices else [])
        if missing := [key for key in needed if not getattr(self, key)]:
            raise ValueError(f"a {self.kind} task needs {', '.join(f'`{m}`' for m in missing)}")
        if self.choices and self.fixed_choices:
            raise ValueError("a task has `choices` or `fixed_choices`, not both")
        if len(self.fixed_choices) == 1 or len(set(self.fixed_choices)) < len(self.fixed_choices):
            raise ValueError("`fixed_choices` are two or more, all different")
        if self.gold_labels and self.fixed_choices and len(self.gold_labels) != len(self.fixed_choices):
            raise ValueError(f"{len(self.gold_labels)} `gold_labels` for {len(self.fixed_choices)} `fixed_choices`")
        if len({"gold_first", "gold_labels", "gold_flags"} & self.model_fields_set) > 1:
            raise ValueError("`gold_first`, `gold_labels` and `gold_flags` are three ways to write gold: use one")
        if unused := sorted(set(self.optional) - set(self.prompt_columns)):
            raise ValueError(f"`optional` names {', '.join(unused)}, which the prompt does not hold")
        if unused := sorted(self.edits.keys() - self._edited_columns()):
            raise ValueError(f"`edits` names {', '.join(unused)}, whose text is shown nowhere")
        if self.kind == "multiple_answer":
            self._check_answers()
        elif self.kind == "multiple_choice":
            self._check_gap()

    def _edited_columns(self) -> set[str]:
        """The columns that are read as texts."""
        columns = {c for t in (self.prompt, self.choice, self.example, self.instruction) for c in columns_of(t)}
        columns |= {self.choices} if isinstance(self.choices, str) else set(self.choices or ())
        gold = self.gold if self.kind == "generative" else None
        return columns | {column for column in (self.id, self.shots_by, gold) if column is not None}

    def _check_gap(self) -> None:
        """What is scored is a choice, a letter, a template of a choice, or what follows the gap: one of these."""
        if self.choice is not None and self.continuation != "text":
            raise ValueError(f"`choice` is a text to score, and `continuation: {self.continuation}` another: use one")
        if self.choice is not None and not self.gap and OPTION not in PLACEHOLDER.findall(self.choice):
            raise ValueError(f"`choice` holds no {{{OPTION}}}, so all choices would read the same")
        if self.continuation == "rest" and not self.gap:
            raise ValueError("`continuation: rest` scores what follows the `gap`: say which mark that is, such as _")
        if self.gap is not None and not (self.gap and (self.choice or self.continuation == "rest")):
            raise ValueError("`gap` is a mark in the text, and goes with `choice` or with `continuation: rest`")

    def _check_answers(self) -> None:
        if self.answers == "yes_no":
            if OPTION not in self.prompt_columns:
                raise ValueError(f"`answers: yes_no` asks about each choice: write it as {{{OPTION}}} in the prompt")
            if "continuation" in self.model_fields_set:
                raise ValueError("`answers: yes_no` scores Oui and Non: `continuation` is not read")
        elif self.continuation != "letter":
            raise ValueError("`answers: letter_sets` scores sets of letters: write `continuation: letter`")

    @field_validator("extract")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression: {error}") from error
        return value

    @field_validator("edits")
    @classmethod
    def _edits(cls, value: dict[str, tuple[Edit, ...]]) -> dict[str, tuple[Edit, ...]]:
        for edit in (edit for edits in value.values() for edit in edits if isinstance(edit, tuple)):
            try:
                re.sub(*edit, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"'{edit[0]}' to '{edit[1]}' is not a replacement: {error}") from error
        return value

    @field_validator("prompt", "choice", "example", "instruction")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        """Substitution is by column name alone: what else stands in braces would be left as it is, unseen."""
        rest = PLACEHOLDER.sub("", value or "")
        if "{" in rest or "}" in rest:
            raise ValueError("braces in a prompt hold the name of a column and nothing else, as in {question}")
        return value

    @property
    def form(self) -> Form:
        """How its items are asked and scored: its kind, and for several answers which of the two ways."""
        if self.kind == "multiple_answer":
            return self.answers
        return self.kind

    def path(self, split: SplitName) -> Path:
        """Where the rows of a `file` task lie."""
        name, _, _ = slice_of(getattr(self.splits, split))
        return (self._folder or Path()) / str(self.file).replace("{split}", name)

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        return columns_of(self.prompt)

    def shot_count(self, asked: int | Literal["paper"]) -> int:
        """How many examples precede an item when so many are asked for; `paper`: as many as arXiv 2604.06903 shows.

        What has no examples shows none then, and where a number is asked for fails when they are loaded.
        """
        if self.kind == "bits_per_byte":
            return 0
        if asked != "paper":
            return asked
        return self.paper_shots if self.splits.shots is not None else 0


def columns_of(template: str | None) -> tuple[str, ...]:
    """The columns that a template shows, each once."""
    return tuple(dict.fromkeys(PLACEHOLDER.findall(template or "")))


def edited(text: str, edits: tuple[Edit, ...]) -> str:
    """`text` after each edit in turn: matches replaced (Python's `re.sub`), or the first letter made small."""
    for edit in edits:
        text = text[:1].lower() + text[1:] if edit == "lower_first" else re.sub(edit[0], edit[1], text)
    return text


def fill(template: str, values: dict[str, str]) -> str:
    """`template` with each `{column}` replaced by its value, in one pass: braces inside values stay as they are."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], template)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Task]:
    folder = resources.files("frbio_lite.evaluation").joinpath("tasks")
    texts = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name.endswith(".yaml")}
    tasks = [parse_task(text, name, Path(str(folder))) for name, text in sorted(texts.items())]
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
            return [parse_task(path.read_text(encoding="utf-8"), str(path), path.parent)]
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


def parse_task(text: str, where: str, folder: Path | None = None) -> Task:
    """The task a YAML text describes; `folder` is where its `file` is looked for, by default the working directory.

    Raises RequestError with all that is wrong, each with `where`:line.
    """
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
        task = Task.model_validate(value)
    except ValidationError as error:
        raise RequestError(" | ".join(_explain(e, where, lines) for e in error.errors())) from error
    if task.file is not None:  # elsewhere the same text is the same task wherever it lies
        task._folder = folder
    return task


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
