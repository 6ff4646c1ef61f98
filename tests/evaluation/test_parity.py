"""The same numbers as lm-evaluation-harness: its `hf` backend item by item, its few-shot sampling, whole tasks, and the
tasks that ship beside those it publishes."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from eval_models import POSITIONS, SENTENCES, make_model, make_tokenizer
from eval_tasks import quiz
from tokenizers.processors import TemplateProcessing

from frbio_lite.errors import RequestError
from frbio_lite.evaluation.items import Document, Generation, Question, load_items
from frbio_lite.evaluation.lines import generated_line
from frbio_lite.evaluation.parity import parity_shots
from frbio_lite.evaluation.prepared import Prompts, pairs, prepare_generations
from frbio_lite.evaluation.run import evaluate, prepare
from frbio_lite.evaluation.scoring import choice_requests, log_likelihoods, max_positions, truncated
from frbio_lite.evaluation.tasks import Task, load_tasks
from frbio_lite.model import load_model, load_tokenizer
from frbio_lite.recipe import Eval

CLOSE = 1e-4
ROOM = 1024  # positions of the model for whole tasks: examples fit
FIXTURES = Path(__file__).parent / "fixtures"

FORMS: dict[str, tuple[str, list[str]]] = {
    "letters": ("Question : quel organe filtre le sang ?\nA. le rein\nB. la rate\nRéponse :", [" A", " B", " C"]),
    "sentences": (
        "Question : où naît l'urine ?\nRéponse :",
        [" dans le rein, goutte à goutte.", " à Paris.", " le foie"],
    ),
    "empty context": ("", ["Paris est sur la Seine", "Lyon", "à", " le foie"]),
    "trailing space": ("Réponse : ", ["le foie", "l'estomac, puis le repas"]),
    "trailing line breaks": ("Réponse :\n\n  ", ["é", "le foie", "Question"]),
    "accents": ("Kaliémie à 6,8 mmol/L — où ?", [" œdème ≥ 3 µg/m²", " naît « là »", " 中文", " 🫀 cœur"]),
    "one begins another": ("Réponse :", [" le", " le foie", " le foie et le rein"]),
    "longer than the context": (" ".join(SENTENCES * 3), [" oui", " non, jamais de la vie", " le foie"]),
    "no space between": ("La kaliémie est à 6", [",8 mmol/L", "8", " mmol"]),
}


def first_shots(count: int, examples: Sequence[object], items: int | Sequence[object]) -> list[list[int]]:
    """lm-evaluation-harness's sampler `first_n`: the first examples, of the split that is scored those unlike the item."""
    if isinstance(items, int):
        found = [list(range(min(count, len(examples))))] * items
    else:
        found = [[place for place, example in enumerate(examples) if example != row][:count] for row in items]
    return found


def saved(folder: Path, positions: int, begin: bool) -> Path:
    """A tiny model with its tokenizer on disk; with `begin` the tokenizer puts a begin-of-text token before every text."""
    tokenizer = make_tokenizer()
    if begin:
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
        token = tokenizer.bos_token_id
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", token)]
        )
    make_model(seed=3, positions=positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ours(folder: Path, pairs: list[tuple[str, list[str]]]) -> list[list[float]]:
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    made = choice_requests(load_tokenizer(folder), [p for p, _ in pairs], [c for _, c in pairs])
    fitted = [truncated(r, max_positions(model)) for requests in made for r in requests]
    found = iter(log_likelihoods(model, fitted).tolist())
    return [[next(found) for _ in requests] for requests in made]


def peer(folder: Path) -> Any:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)


def assert_same(mine: list[list[float]], theirs: list[list[float]]) -> None:
    assert [len(a) for a in mine] == [len(b) for b in theirs]
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=CLOSE, rtol=0)
        assert np.argmax(a) == np.argmax(b)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [False, True], ids=["plain", "begin-of-text"])
def test_item_by_item(begin: bool, tmp_path: Path) -> None:
    folder, lm = saved(tmp_path / "model", POSITIONS, begin), peer(tmp_path / "model")
    from lm_eval.api.instance import Instance

    noise = random.Random()
    texts = ["".join(noise.choices("abcdeéèà ’µ\n", k=noise.randint(1, 90))).strip() or "a" for _ in range(20)]
    pairs = [*FORMS.values(), *((text, [" x", " " + "yé" * noise.randint(1, 9)]) for text in texts)]
    flat = [(prompt, choice) for prompt, choices in pairs for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(flat)]
    found = iter(lm.loglikelihood(asked, disable_tqdm=True))
    theirs = [[next(found)[0] for _ in choices] for _, choices in pairs]
    assert min(map(min, theirs)) < -1.0
    assert_same(ours(folder, pairs), theirs)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    words = " ".join(SENTENCES).split()
    made = []
    for n in range(count):
        options = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(4)]
        made.append(
            {"question": f"{n} {' '.join(rng.choices(words, k=8))} ?", "options": options, "answer": rng.randrange(4)}
        )
    return made


def prompt_of(form: str, row: dict[str, Any]) -> str:
    if form == "sentences":
        return f"Question : {row['question']}\nRéponse :"
    listed = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", row["options"], strict=True))
    return f"Question : {row['question']}\n{listed}Réponse :"


def write_task(folder: Path, form: str, shots: int, sampler: str, own_split: bool) -> str:
    """lm_eval's YAML of a local task of 30 items; its name."""
    name = f"quiz_{form}_{shots}_{sampler}_{'own' if own_split else 'other'}"
    listed = "A. {{options[0]}}\nB. {{options[1]}}\nC. {{options[2]}}\nD. {{options[3]}}\n" if form == "letters" else ""
    files = {"test": str(folder / "test.jsonl"), "train": str(folder / "train.jsonl")}
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "test" if own_split else "train",
        "num_fewshot": shots,
        "output_type": "multiple_choice",
        "doc_to_text": "Question : {{question}}\n" + listed + "Réponse :",
        "doc_to_choice": ["A", "B", "C", "D"] if form == "letters" else "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    if sampler != "default":
        task["fewshot_config"] = {"sampler": sampler}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return name


def pairs_of(
    form: str, test: list[dict[str, Any]], examples: list[dict[str, Any]], shown: list[list[int]]
) -> list[tuple[str, list[str]]]:
    """Our prompts and continuations, given which examples precede each item."""

    def answers(row: dict[str, Any]) -> list[str]:
        return [f" {answer}" for answer in ("ABCD" if form == "letters" else row["options"])]

    def solved(row: dict[str, Any]) -> str:
        return f"{prompt_of(form, row)}{answers(row)[row['answer']]}\n\n"

    before = ["".join(solved(examples[place]) for place in places) for places in shown]
    return [(head + prompt_of(form, row), answers(row)) for head, row in zip(before, test, strict=True)]


@pytest.mark.slow
def test_whole_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 items: letters and sentences; no shots, the first three, three of its seeded draw, from another split and its own."""
    folder = saved(tmp_path / "model", ROOM, begin=False)
    lm = peer(folder)
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    test, train = rows(30, 1), rows(12, 2)
    test[4] = test[9]  # a copy: both are left out where they are examples of each other
    for name, made in (("test", test), ("train", train)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    cases = [(form, shots, sampler, own) for form in ("letters", "sentences") for shots, sampler, own in (
        (0, "default", False), (3, "first_n", False), (3, "default", False), (3, "default", True), (3, "first_n", True),
    )]  # fmt: skip
    names = [write_task(tmp_path, *case) for case in cases]
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    told = simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, fewshot_random_seed=77)
    assert told is not None
    for name, (form, shots, sampler, own) in zip(names, cases, strict=True):
        samples = sorted(told["samples"][name], key=lambda sample: sample["doc_id"])
        examples, items = (test, test) if own else (train, len(test))
        shown = (
            parity_shots(shots, examples, items, 77) if sampler == "default" else first_shots(shots, examples, items)
        )
        pairs = pairs_of(form, test, examples, shown)
        for sample, (prompt, choices) in zip(samples, pairs, strict=True):
            assert [tuple(pair) for pair in sample["arguments"]] == [(prompt, choice) for choice in choices], name
        theirs = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
        mine = ours(folder, pairs)
        assert_same(mine, theirs)
        right = [np.argmax(scores) == row["answer"] for scores, row in zip(mine, test, strict=True)]
        assert told["results"][name]["acc,none"] == pytest.approx(np.mean(right))


# Of each task that lm-evaluation-harness publishes too: its file, and which of our fixtures make up each of its splits.
# `fewshot` where it would show the scored item itself among its examples, and ours come from rows of their own.
OWN = ("shots", "test")
VALID, VALIDATION = ({name: ("shots",), "test": ("test",)} for name in ("valid", "validation"))
TRAIN, FEWSHOT, DEV = ({name: ("shots",), "test": ("test",)} for name in ("train", "fewshot", "dev"))
HARNESS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "belebele-eng": ("belebele/belebele_eng_Latn", {"test": OWN}),
    "belebele-fra": ("belebele/belebele_fra_Latn", {"test": OWN}),
    "french-bench-arc-challenge": ("french_bench/french_bench_arc_challenge", TRAIN | {"validation": ("validation",)}),
    "french-bench-boolqa": ("french_bench/french_bench_boolqa", VALID),
    "french-bench-grammar": ("french_bench/french_bench_grammar", {"Grammar": OWN}),
    "french-bench-reading-comp": ("french_bench/french_bench_reading_comp", {"Reading": OWN}),
    "french-bench-topic-based-nli": ("french_bench/french_bench_topic_based_nli", VALID),
    "french-bench-vocab": ("french_bench/french_bench_vocab", {"Vocabulary": OWN}),
    "glianorex-en": ("glianorex/glianorex_en", FEWSHOT),
    "glianorex-fr": ("glianorex/glianorex_fr", FEWSHOT),
    "global-mmlu-lite-en": ("global_mmlu/default/en/global_mmlu_en_*", DEV),
    "global-mmlu-lite-en-medical": ("global_mmlu/default/en/global_mmlu_en_medical", DEV),
    "global-mmlu-lite-fr": ("global_mmlu/default/fr/global_mmlu_fr_*", DEV),
    "global-mmlu-lite-fr-medical": ("global_mmlu/default/fr/global_mmlu_fr_medical", DEV),
    "include-fr": ("include/default/French/include_base_44_french_*", FEWSHOT),
    "mgsm-fr": ("mgsm/direct/mgsm_direct_fr", TRAIN),
    "mmlu-prox-en": ("mmlu_prox/en/mmlu_prox_en_*", VALIDATION),
    "mmlu-prox-en-health": ("mmlu_prox/en/mmlu_prox_en_health", VALIDATION),
    "mmlu-prox-fr": ("mmlu_prox/fr/mmlu_prox_fr_*", VALIDATION),
    "mmlu-prox-fr-health": ("mmlu_prox/fr/mmlu_prox_fr_health", VALIDATION),
    "paws-x-fr": ("paws-x/paws_fr", TRAIN | {"validation": ("validation",)}),
    "truthfulqa-fr-mc1": ("okapi/truthfulqa_multilingual/truthfulqa_fr_mc1", {"val": ("test",), "fewshot": ("shots",)}),
    "xnli-fr": ("french_bench/french_bench_xnli", VALIDATION),
    "xwinograd-fr": ("xwinograd/xwinograd_fr", FEWSHOT),
}
SUBJECTS = {  # the tasks that make up one of ours, those of the fixtures
    "global-mmlu-lite-en": ("business", "other", "stem"),
    "global-mmlu-lite-fr": ("social_sciences",),
    "include-fr": ("driving_license", "social_science"),
    "mmlu-prox-en": ("biology", "computer_science"),
    "mmlu-prox-fr": ("biology", "computer_science"),
}
NO_SHOTS = {"global-mmlu-lite-en", "global-mmlu-lite-fr", "include-fr"}  # ours shows examples of all subjects
WORDED = {"mgsm-fr", "mmlu-prox-en", "mmlu-prox-en-health", "mmlu-prox-fr", "mmlu-prox-fr-health"}


def fixture_rows(name: str, split: str) -> list[dict[str, Any]]:
    text = (FIXTURES / name / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def harness_tasks(name: str, shots: int, folder: Path) -> tuple[list[Any], int]:
    """lm_eval's own tasks, reading our fixtures, and how many of the first rows are not scored by ours."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    file, splits = HARNESS[name]
    names = [file.replace("*", subject) for subject in SUBJECTS.get(name, ("",))]
    rows = {part: fixture_rows(name, part) for part in ("shots", "validation", "test")}
    schema = pa.Table.from_pylist([row for part in rows.values() for row in part]).schema
    for split, parts in splits.items():
        mine = pa.Table.from_pylist([row for part in parts for row in rows[part]], schema)
        pq.write_table(mine, folder / f"{name}-{split}.parquet")
    made = []
    for number, each in enumerate(names):
        task: dict[str, Any] = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / f"{each}.yaml"),
            "task": f"{name}-{number}-{shots}",
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(folder / f"{name}-{split}.parquet") for split in splits}},
            "num_fewshot": shots,
        }
        if "fewshot" in splits:
            task["fewshot_split"] = "fewshot"
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        (found,) = manager.load([task["task"]])["tasks"].values()
        found.set_fewshot_seed(1234)  # what `simple_evaluate` sets by default
        found.build_all_requests()
        made.append(found)
    return made, len(rows["shots"]) if OWN in splits.values() else 0


def harness_items(tasks: list[Any], skipped: int) -> list[tuple[Any, list[Any]]]:
    """Its rows by what is asked, each with its requests."""
    found: list[tuple[Any, list[Any]]] = []
    for task in tasks:
        by_row: dict[int, list[Any]] = {}
        for instance in task.instances:
            by_row.setdefault(instance.doc_id, []).append(instance)
        found += [(task, by_row[row]) for row in sorted(by_row) if row >= skipped]
    return sorted(found, key=lambda each: each[1][0].args[0] + str(each[1][0].args[1]))


def our_items(task: Task, how: Eval, tokenizer: Any) -> list[tuple[Question | Generation, list[tuple[str, str]]]]:
    """Our items by what is asked, each with that: prompts, and what is scored after them, or "" for words to generate."""
    items = [i for i in load_items(task, "test", data=FIXTURES, offline=True) if not isinstance(i, Document)]
    prompts = Prompts(task, how, tokenizer, items, FIXTURES, True)
    asked: list[tuple[Question | Generation, list[tuple[str, str]]]] = []
    for item in items:
        if isinstance(item, Generation):
            asked.append((item, [(prompts.whole(item.prompt, item.id), "")]))
        else:
            asked.append((item, [(prompt, one) for prompt, texts in pairs(task, item, prompts) for one in texts]))
    return sorted(asked, key=lambda each: "".join(each[1][0]))


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 2])
def test_published_tasks_ask_the_same(shots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and choices letter by letter, log-likelihoods and what is right, of every task that both have."""
    lm = peer(folder := saved(tmp_path / "model", ROOM, begin=False))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    scored = 0
    for name in HARNESS:
        if shots and name in NO_SHOTS:
            continue
        (task,) = load_tasks([name])
        count = min(shots, 1) if name == "belebele-fra" else shots  # its fixture has one example
        how = Eval(tasks=[name], shots=count, parity=bool(count), bootstrap=100)
        theirs, mine = harness_items(*harness_tasks(name, count, tmp_path)), our_items(task, how, tokenizer)
        assert len(theirs) == len(mine) >= 2, name
        for (_, instances), (_, asked) in zip(theirs, mine, strict=True):
            arguments = [instance.args[:2] for instance in instances]
            if name in WORDED:
                assert [(prompt, "") for prompt, _ in arguments] == asked, name
                until = arguments[0][1]
                assert (tuple(until["until"]), until.get("max_gen_toks", 256)) == (task.stop, task.max_new_tokens)
            else:
                assert arguments == asked, name
        if name in WORDED:
            continue
        answers = iter(lm.loglikelihood([one for _, instances in theirs for one in instances], disable_tqdm=True))
        resps = [[next(answers) for _ in instances] for _, instances in theirs]
        out = tmp_path / f"{name}-out"
        evaluate(model, tokenizer, [task], "test", how, out, model_name="m", data=FIXTURES, offline=True, seed=1)
        by_id = {line["id"]: line for line in map(json.loads, (out / "items.jsonl").read_text().splitlines())}
        lines = [by_id[item.id] for item, _ in mine]
        assert_same([line["log_likelihoods"] for line in lines], [[float(one[0]) for one in each] for each in resps])
        for line, (their, instances), resp in zip(lines, theirs, resps, strict=True):
            metrics = their.process_results(instances[0].doc, resp)
            assert metrics["acc"] == line["correct"], name
            if "accuracy_norm" in task.also and "acc_norm" in metrics:
                assert metrics["acc_norm"] == line["scores"]["accuracy_norm"], name
            scored += 1
    assert scored >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in HARNESS if name.startswith("mmlu-prox")))
def test_published_tasks_read_the_same_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of a generated text counts as the answer, and whether it is right."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    (task,) = load_tasks([name])
    phrase = "La réponse est" if task.language == "fr" else "The answer is"
    tokenizer = make_tokenizer()
    theirs = harness_items(*harness_tasks(name, 0, tmp_path))
    how = Eval(tasks=[name])
    mine = [item for item, _ in our_items(task, how, tokenizer) if isinstance(item, Generation)]
    prompts = Prompts(task, how, tokenizer, mine, FIXTURES, True)
    right = 0
    for (their, (instance,)), item, prepared in zip(
        theirs, mine, prepare_generations(task, mine, prompts), strict=True
    ):
        gold = item.reference
        for answer in (
            f" Donc…\n{phrase} ({gold}).",
            f"{phrase} {gold}",
            f"{phrase} (J). Non : {phrase} ({gold}).",
            f"{phrase} ({gold}). Non : {phrase} (J).",
            f"{phrase} : {gold}",
            phrase.lower() + f" ({gold})",
            f"({gold})",
            gold,
            f"{phrase} (Z) ou {phrase} ({gold}",
            "",
        ):
            instance.resps, instance.filtered_resps = [answer], {}
            their._instances = [instance]
            their.apply_filters()
            (found,) = instance.filtered_resps.values()
            expected = their.process_results(instance.doc, [found])["exact_match"]
            line = generated_line(prepared, prepared.requests[0], answer)
            assert line["correct"] == expected, answer
            right += line["correct"]
    assert right >= 4 * len(mine)


@pytest.mark.parametrize("seed", [0, 1234])
def test_shots_of_another_split(seed: int) -> None:
    shown = parity_shots(3, range(10), 200, seed)
    assert all(len(set(places)) == 3 and set(places) <= set(range(10)) for places in shown)
    assert len({tuple(places) for places in shown}) > 100  # drawn anew for each
    assert shown[:50] == parity_shots(3, range(10), 50, seed)  # an item's do not depend on those after it
    assert shown != parity_shots(3, range(10), 200, seed + 1)


def test_shots_of_the_split_itself_leave_the_item_out() -> None:
    texts = ["a", "b", "a", "c", "a", "d"]
    for _ in range(20):
        seed = random.randrange(2**30)
        for text, places in zip(texts, parity_shots(3, texts, texts, seed), strict=True):
            assert len(set(places)) == 3 and all(texts[place] != text for place in places)


def test_too_few_examples() -> None:
    assert parity_shots(0, [], 2) == [[], []]
    with pytest.raises(RequestError, match="2 examples where 3 are to be drawn"):
        parity_shots(3, "ab", 5)
    with pytest.raises(RequestError, match="3 examples where 4 are to be drawn"):
        parity_shots(3, "abc", "abc")
    with pytest.raises(RequestError, match="1 examples that differ from the item where 2 are needed"):
        parity_shots(2, "aab", "a")


def test_an_evaluation_shows_each_item_the_examples_drawn_for_its_place(tmp_path: Path) -> None:
    def rows(split: str, count: int) -> list[dict[str, Any]]:
        return [
            {"question": f"{split} {n} ?", "options": ["le foie", "le rein"], "answer": n % 2} for n in range(count)
        ]

    place = tmp_path / "quiz"
    place.mkdir()
    written = {"test": rows("test", 9), "shots": rows("exemple", 7)}
    for split, found in written.items():
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    answers = [f"Q : {row['question']}\nR : {row['options'][row['answer']]}\n\n" for row in written["shots"]]
    how = Eval(tasks=["quiz"], shots=3, parity=True, limit=6)
    prepared = prepare([quiz()], make_tokenizer(), "test", how, data=tmp_path, offline=True)
    tokenizer = make_tokenizer()
    for n, (item, places) in enumerate(zip(prepared.items, parity_shots(3, written["shots"], 6), strict=True)):
        text = tokenizer.decode(item.requests[0].tokens)
        assert text == "".join(answers[p] for p in places) + f"Q : test {n} ?\nR : le foie"
    own = quiz(splits={"test": "test"})
    how = Eval(tasks=["quiz"], shots=3, parity=True, shots_from_test=True)
    for item in prepare([own], make_tokenizer(), "test", how, data=tmp_path, offline=True).items:
        assert tokenizer.decode(item.requests[0].tokens).count(f"test {item.id} ?") == 1  # never among its own examples
    with pytest.raises(RequestError, match=r"task quiz has 7 examples where 8 shots are asked for"):
        prepare([quiz()], tokenizer, "test", Eval(tasks=["quiz"], shots=8, parity=True), data=tmp_path, offline=True)
    with pytest.raises(ValueError, match="parity says how examples are drawn"):
        Eval(tasks=["quiz"], parity=True)
