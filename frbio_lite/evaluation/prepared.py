"""Items as tokens: what a model is asked, with examples before it, plain or in the tokenizer's chat template.

Plain, each example is its prompt, the task's delimiter and its answer, and a blank line follows; the task's instruction
stands before the first. In a chat template the instruction is the system's turn, each example is a turn of the user and a
turn of the assistant, and the answer follows the template's opening of the assistant's turn at once, without the
delimiter (as in lm-evaluation-harness with `fewshot_as_multiturn`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import jinja2

from frbio_lite import recipe
from frbio_lite.artifacts import canonical_hash
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.items import LETTERS, Document, Generation, Item, Question, load_items
from frbio_lite.evaluation.parity import parity_shots
from frbio_lite.evaluation.scoring import Request, choice_requests, encode, prefix_token
from frbio_lite.evaluation.tasks import YES_NO, SplitName, Task, columns_of
from frbio_lite.evaluation.texts import number
from frbio_lite.model import Tokenizer, leading_tokens

MOST_IN_SETS = 8  # choices of which all sets are scored: 255
AT_ONCE = 16  # items that are tokenised together
Key = tuple[str, str]  # task, with ~CONTROL behind it if any, and item
Pair = tuple[str, list[str]]  # a prompt and what may follow it
Asked = Question | Generation


@dataclass(frozen=True)
class PreparedItem:
    """An item as tokens. `prompt_hash` covers all that the score depends on beside the model.

    `requests`: one per choice; per set of letters; yes and no for each choice; for a document one that holds all its
    tokens; for a text to generate its prompt, of which nothing is scored. Of a control they are those of its `parts`.
    """

    task: Task
    id: str
    prompt_hash: str
    requests: tuple[Request, ...]
    golds: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    cluster: str | None = None
    reference: str = ""  # what is to be generated
    bytes: int = 0  # UTF-8 bytes of the document
    control: str = ""
    parts: tuple[PreparedItem, ...] = ()
    text: str = ""  # the question's own words and its options, for a person to read
    options: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return f"{self.task.name}~{self.control}" if self.control else self.task.name, self.id


@dataclass(frozen=True)
class Contamination:
    """What the corpus stage found of the benchmarks it looked for: by task the documents that hold its questions, and the
    hashes of the questions found; None where a corpus of an older version tells the documents alone. `items` are those
    that were prepared and whose question was found."""

    documents: dict[str, int]
    questions: dict[str, frozenset[str]] | None
    items: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class Prepared:
    """Tokenised items of some tasks and one split, for models that share the tokenizer."""

    split: Literal["validation", "test"]
    tasks: tuple[Task, ...]
    shots: int | Literal["paper"]
    items: tuple[PreparedItem, ...]  # those of controls after the others
    tokenizer: Tokenizer
    from_test: frozenset[str] = frozenset()  # tasks whose examples are test items
    controls: tuple[recipe.Control, ...] = ()
    contamination: Contamination | None = None

    def shots_of(self, task: Task) -> int:
        """How many examples precede the items of a task."""
        return task.shot_count(self.shots)


@dataclass(frozen=True)
class Example:
    """A solved item: what is asked and answered, and both as one text, which ends in a blank line."""

    id: str
    part: str
    prompt: str
    answer: str
    plain: str


class Prompts:
    """Puts examples before the prompts of one task. Raises RequestError when there are too few of them.

    `items` are those that will be asked, in published order: what `settings.parity` shows an item depends on its place.
    `delimiter` stands between a prompt and its answer.
    """

    def __init__(
        self,
        task: Task,
        settings: recipe.Eval,
        tokenizer: Tokenizer,
        items: Sequence[Item],
        data: Path | None,
        offline: bool,
    ) -> None:
        self.count, self.tokenizer, self.chat = task.shot_count(settings.shots), tokenizer, settings.chat_template
        if self.chat and not getattr(tokenizer, "chat_template", None):
            raise RequestError("the tokenizer has no chat template, and chat_template asks for one: leave it out")
        self.delimiter = "" if self.chat else task.delimiter
        self.from_test = bool(self.count) and task.splits.shots is None and settings.shots_from_test
        asked = [item for item in items if not isinstance(item, Document)]
        self.parts = {item.id: item.part for item in asked}
        self.instructions = {item.id: item.instruction for item in asked}
        # of a prompt that belongs to no item
        self.instruction = "" if columns_of(task.instruction) else task.instruction or ""
        self.examples: list[Example] = []
        self.drawn: dict[str, list[int]] | None = None  # for each item its examples; None: the first ones
        if not self.count:
            return
        rows = self._load(task, data, offline, all_=settings.parity or task.shots_by is not None)
        self.examples = [_example(task, row, n) for n, row in enumerate(rows)]
        if settings.parity and not task.first_shots:
            self.drawn = self._draw(task, asked, rows)

    def _load(self, task: Task, data: Path | None, offline: bool, all_: bool) -> list[Asked]:
        """The first rows that serve as examples; of test items one more, for the item that is left out of its own.

        `all_` of them where they are drawn, or chosen by a column.
        """
        split: SplitName = "test" if self.from_test else "shots"
        limit = None if all_ else self.count + self.from_test
        rows = load_items(task, split, data=data, offline=offline, limit=limit)
        found = [row for row in rows if not isinstance(row, Document)]
        for part in dict.fromkeys(self.parts.values()):
            usable = sum(row.part == part for row in found) - self.from_test
            if usable < self.count:
                whose = f" with {task.shots_by} '{part}'" if part else ""
                raise RequestError(
                    f"task {task.name} has {usable} examples{whose} where {self.count} shots are asked for: "
                    f"use --shots {usable} or fewer"
                )
        return found

    def _draw(self, task: Task, items: Sequence[Asked], rows: Sequence[Asked]) -> dict[str, list[int]]:
        """Which of `rows` lm-evaluation-harness shows before each item: of each part as of a task of its own."""
        drawn: dict[str, list[int]] = {}
        for part in dict.fromkeys(self.parts.values()):
            mine = [item for item in items if item.part == part]
            places = [place for place, row in enumerate(rows) if row.part == part]
            content = [replace(rows[place], id="") for place in places]
            own = [replace(item, id="") for item in mine] if self.from_test else len(mine)
            try:
                shown = parity_shots(self.count, content, own)
            except RequestError as error:
                raise RequestError(f"task {task.name}: {error}") from error
            drawn |= {item.id: [places[n] for n in found] for item, found in zip(mine, shown, strict=True)}
        return drawn

    def shown(self, id_: str) -> list[Example]:
        """The examples before this item, which is never among them."""
        if self.drawn is not None:
            return [self.examples[place] for place in self.drawn.get(id_, [])]
        part = self.parts.get(id_)
        others = [e for e in self.examples if part in (None, e.part) and not (self.from_test and e.id == id_)]
        return others[: self.count]

    def whole(self, prompt: str, id_: str) -> str:
        """The text a model reads before it answers."""
        instruction = self.instructions.get(id_, self.instruction)
        if not self.chat:
            return instruction + "".join(example.plain for example in self.shown(id_)) + prompt
        messages = [{"role": "system", "content": instruction}] if instruction else []
        for example in self.shown(id_):
            messages += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
        messages.append({"role": "user", "content": prompt})
        try:
            text: Any = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise RequestError(f"the tokenizer's chat template cannot write the prompt: {error}") from error
        # the template may write the begin-of-text token, which `choice_requests` puts before every text
        return str(text).removeprefix(self.tokenizer.bos_token or "") if leading_tokens(self.tokenizer) else str(text)


def _example(task: Task, item: Asked, number: int) -> Example:
    """The item solved. Of yes/no tasks one choice is shown, in turn a right and a wrong one.

    Raises RequestError where a worked example is to be shown and the row holds none.
    """
    if isinstance(item, Generation) and task.example is not None:
        if not item.worked:
            empty = ", ".join(c for c in columns_of(task.example) if c not in task.prompt_columns)
            raise RequestError(f"task {task.name}, item {item.id}: it serves as an example, and {empty} is empty")
        pairs_of_letters = enumerate(zip(item.worked, item.prompt, strict=False))
        shared = next((n for n, (a, b) in pairs_of_letters if a != b), min(len(item.worked), len(item.prompt)))
        answer = item.worked[shared:].strip()
        return Example(item.id, item.part, item.prompt, answer, f"{item.worked}\n\n")
    prompt, answer = _solved(task, item, number)
    return Example(item.id, item.part, prompt, answer, f"{prompt}{task.delimiter}{answer}\n\n")


def _solved(task: Task, item: Asked, number: int) -> tuple[str, str]:
    if isinstance(item, Generation):
        return item.prompt, item.reference
    if task.form == "letter_sets":
        return item.prompt, _letters(item.golds)
    if task.form == "yes_no":
        wrong = [n for n in range(len(item.choices)) if n not in item.golds]
        shown = wrong[0] if number % 2 and wrong else item.golds[0]
        return item.asks[shown], YES_NO[task.language][shown not in item.golds]
    if task.continuation == "rest":
        return item.asks[item.gold], item.rest
    return item.prompt, item.choices[item.gold]


def letter_sets(count: int) -> list[tuple[int, ...]]:
    """All sets of one or more of `count` choices, the small ones first: 31 of five."""
    return [chosen for size in range(1, count + 1) for chosen in combinations(range(count), size)]


def _letters(chosen: Sequence[int]) -> str:
    return ", ".join(LETTERS[n] for n in chosen)


def pairs(task: Task, question: Question, prompts: Prompts) -> list[Pair]:
    """What is scored of a question: prompts, each with what may follow."""
    before = prompts.delimiter
    if task.form == "yes_no":
        words = [before + word for word in YES_NO[task.language]]
        return [(prompts.whole(ask, question.id), words) for ask in question.asks]
    if task.continuation == "rest":
        return [(prompts.whole(ask, question.id), [before + question.rest]) for ask in question.asks]
    answers = list(question.choices)
    if task.form == "letter_sets":
        if len(answers) > MOST_IN_SETS:
            raise RequestError(
                f"task {task.name}, item {question.id}: {len(answers)} choices have too many sets of letters "
                f"({MOST_IN_SETS} choices at most): use `answers: yes_no`"
            )
        answers = [_letters(chosen) for chosen in letter_sets(len(answers))]
    return [(prompts.whole(question.prompt, question.id), [before + answer for answer in answers])]


def requests_of(task: Task, tokenizer: Tokenizer, asked: Sequence[Sequence[Pair]]) -> list[tuple[Request, ...]]:
    """The requests of each item, given its pairs.

    A few are tokenised at a time, and equal tokens are one object: what the tokenizer makes takes over 100 bytes a token,
    and 3,000 questions with 31 sets of letters have 70 million tokens.
    """
    found: list[tuple[Request, ...]] = []
    known: dict[int, int] = {}
    for start in range(0, len(asked), AT_ONCE):
        portion = asked[start : start + AT_ONCE]
        flat = [pair for item in portion for pair in item]
        try:
            made = choice_requests(tokenizer, [prompt for prompt, _ in flat], [answers for _, answers in flat])
        except RequestError as error:
            raise RequestError(f"task {task.name}: {error}") from error
        kept = ([Request([known.setdefault(t, t) for t in r.tokens], r.scored) for r in requests] for requests in made)
        found += [tuple(request for _ in item for request in next(kept)) for item in portion]
    return found


def prepare_questions(task: Task, items: Sequence[Question], prompts: Prompts) -> Iterator[PreparedItem]:
    """Questions of any kind with choices, with their requests."""
    asked = [pairs(task, question, prompts) for question in items]
    made = requests_of(task, prompts.tokenizer, asked)
    for question, pair, requests in zip(items, asked, made, strict=True):
        content = [task.form, task.metric, task.also, pair, question.choices, question.golds, question.cluster]
        yield PreparedItem(
            task=task,
            id=question.id,
            prompt_hash=canonical_hash(content),
            requests=requests,
            golds=question.golds,
            choices=question.choices,
            cluster=question.cluster,
            text=question.text,
            options=question.options,
        )


def prepare_generations(task: Task, items: Sequence[Generation], prompts: Prompts) -> Iterator[PreparedItem]:
    """Texts to generate. Raises RequestError when a correlation is asked for and a reference is not a number."""
    texts = [prompts.whole(item.prompt, item.id) for item in items]
    lead, prefix = leading_tokens(prompts.tokenizer), prefix_token(prompts.tokenizer)
    asked = (task.metric, *task.also)
    for item, text, tokens in zip(items, texts, encode(prompts.tokenizer, texts), strict=True):
        if "spearman" in asked and number(item.reference, task.language) is None:
            raise RequestError(
                f"task {task.name}, item {item.id}: column '{task.gold}' is {item.reference!r}, and spearman needs numbers"
            )
        how = [task.stop, task.max_new_tokens, task.extract, task.language]
        content = [task.form, asked, text, item.reference, item.cluster, *how]
        yield PreparedItem(
            task=task,
            id=item.id,
            prompt_hash=canonical_hash(content),
            requests=(Request([*lead, *tokens] or [prefix], 0),),
            cluster=item.cluster,
            reference=item.reference,
            text=item.text,
        )


def prepare_documents(task: Task, items: Sequence[Document], tokenizer: Tokenizer) -> Iterator[PreparedItem]:
    """Held-out documents, each in one piece."""
    prefix = prefix_token(tokenizer)
    for document, tokens in zip(items, encode(tokenizer, [d.text for d in items]), strict=True):
        request = Request([prefix, *tokens], len(tokens))
        yield PreparedItem(
            task, document.id, canonical_hash([task.kind, document.text]), (request,), bytes=len(document.text.encode())
        )
