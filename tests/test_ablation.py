"""The ablation: its live weights are those that would be written, its choice follows the rule, it resumes."""

from __future__ import annotations

import csv
import json
import random
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from frbio_lite import ablation as module
from frbio_lite import evaluation, model, recipe
from frbio_lite.ablation import ablate
from frbio_lite.ablation.live import merger_of, rounding_of
from frbio_lite.ablation.plot import pareto_svg
from frbio_lite.ablation.rule import Candidate, candidate, choose, explain, front, parse_ratios, parse_retain, ranked
from frbio_lite.artifacts import writing
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import Row, Task, load_tasks
from frbio_lite.merging import merge_models, open_inputs
from tests.merging.tiny_models import save_adapted, save_adapter, save_base

SENTENCES = [
    "Le patient prend 10 µg de lévothyroxine.",
    "La rate filtre le sang.",
    "Paris est la capitale de la France.",
]
VOCABULARY = 300
# NF4 on a CPU needs multiples of 32 outputs and 64 inputs.
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 256}
CPU = torch.device("cpu")


def save_tokenizer(directory: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<eot>"], initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eot>").save_pretrained(directory)


def task(name: str, group: str) -> Task:
    return Task.model_validate(
        {
            "name": name,
            "group": group,
            "kind": "multiple_choice",
            "metric": "accuracy",
            "dataset": "owner/name",
            "prompt": "Question : {question}\nRéponse :",
            "choices": "choices",
            "gold": "answer",
            "license": "cc0-1.0",
            "splits": {"validation": "validation", "test": "test"},
            "id": "id",
        }
    )


TASKS = [task("organs", "domain"), task("towns", "general")]
HELDOUT = load_tasks(["heldout-domain", "heldout-general"])


def save_items(directory: Path, count: int = 12) -> Path:
    rng = random.Random(3)
    for name in ("organs", "towns"):
        (directory / name).mkdir(parents=True)
        for split in ("validation", "test"):
            rows = [
                {
                    "id": f"{name}-{split}-{i}",
                    "question": rng.choice(SENTENCES) + str(i),
                    "choices": ["oui", "non", "peut-être", "foie"],
                    "answer": rng.randrange(4),
                }
                for i in range(count)
            ]
            text = "".join(json.dumps(r) + "\n" for r in rows)
            (directory / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return directory


def save_corpus(directory: Path, count: int = 6) -> Path:
    rng = random.Random(5)
    rows = [
        {"id": f"{role}-{split}-{i}", "role": role, "split": split, "text": " ".join(rng.choices(SENTENCES, k=3))}
        for role in ("domain", "replay")
        for split in ("validation", "test")
        for i in range(count)
    ]
    with writing(directory, "Documents", "key", settings={}, parents={}, seed=0) as artifact:
        (artifact.path / "documents").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), artifact.path / "documents" / "0.parquet")
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every ablation reads and none changes."""
    place = tmp_path_factory.mktemp("inputs")
    base = save_base(place / "base", dtype=torch.bfloat16, **SHAPE)
    save_tokenizer(base)
    return {
        "base": base,
        "adapted": [save_adapter(place / "adapter", base)],
        "data": save_items(place / "data"),
        "corpus": save_corpus(place / "corpus"),
    }


@pytest.fixture
def world(inputs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {**inputs, "tasks": TASKS, "out": tmp_path / "ablation", "more": {}}


def settings(**changes: Any) -> recipe.Merge:
    return recipe.Merge.model_validate({"methods": ["slerp", "linear"], "ratios": [0.25, 0.5], **changes})


EVAL = recipe.Eval(tasks=["organs", "towns"], bootstrap=100)
SEED = 1
FREE: dict[str, Any] = {"maximise": "domain", "retain": {}}


def run(world: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return ablate(
        world["base"],
        world["adapted"],
        settings(**changes),
        EVAL,
        world["tasks"],
        world["out"],
        documents=world["corpus"],
        data=world["data"],
        offline=True,
        seed=SEED,
        dtype=torch.float32,
        device=CPU,
        **world["more"],
    )


def alone(
    world: dict[str, Any], scored: model.Model, place: Path, tasks: Sequence[Task], split: Any = "validation"
) -> str:
    """items.jsonl of a model that nothing but the harness has touched."""
    evaluation.evaluate(
        scored, model.load_tokenizer(world["base"]), tasks, split, EVAL, place, model_name="x",
        documents=world["corpus"], data=world["data"], offline=True, seed=SEED,
    )  # fmt: skip
    return (place / "items.jsonl").read_text(encoding="utf-8")


def on_disk(
    world: dict[str, Any], place: Path, method: str, ratio: float, base: Any = "bf16", **changes: Any
) -> model.Model:
    """The merge, written, and loaded again."""
    made = settings(**changes)
    merger = merger_of(open_inputs(world["base"], world["adapted"], adapter_base=base), method, made, SEED)
    merge_models(merger, place, ratio=ratio, rounding=rounding_of(made, SEED))
    return model.load_model(place, dtype=torch.float32, device=CPU)


def items(world: dict[str, Any], point: str) -> str:
    return (world["out"] / point / "items.jsonl").read_text(encoding="utf-8")


def read(world: dict[str, Any], name: str = "choice.json") -> Any:
    return json.loads((world["out"] / name).read_text(encoding="utf-8"))


def table(world: dict[str, Any]) -> list[dict[str, str]]:
    return list(csv.DictReader((world["out"] / "ablation.csv").open(encoding="utf-8")))


def folders(world: dict[str, Any]) -> set[str]:
    return {p.name for p in world["out"].iterdir() if p.is_dir()}


# ------------------------------------------------ the scores are those of written models


METHODS = ["linear", "slerp", "ties", "dare_linear"]
VARIED: dict[str, Any] = {"profile": [{"filter": "self_attn", "values": [0, 1]}, {"filter": "*", "values": [0.5]}]}


@pytest.mark.parametrize(
    ("kind", "tied", "changes"),
    [
        ("adapter", True, {"methods": METHODS}),
        ("full", True, {"methods": METHODS}),
        ("full", False, {"methods": METHODS, "density": 0.3}),
        ("adapter", False, {"methods": ["linear", "slerp"], **VARIED}),
        ("full", True, {"methods": ["ties", "linear"], **VARIED}),
        ("adapter", True, {"methods": ["linear"], "stochastic_rounding": True}),
        ("full", True, {"methods": ["slerp"], "dtype": "float16"}),
        ("both", True, {"methods": ["linear", "ties", "karcher"]}),
    ],
)
def test_scores_are_those_of_the_written_model(
    world: dict[str, Any], tmp_path: Path, kind: str, tied: bool, changes: dict[str, Any]
) -> None:
    if not tied:
        world["base"] = save_base(tmp_path / "untied", dtype=torch.bfloat16, tied=False, **SHAPE)
        save_tokenizer(world["base"])
    full = save_adapted(tmp_path / "full", world["base"], size=0.5)
    adapter = save_adapter(tmp_path / "lora", world["base"])
    world["adapted"] = {"adapter": [adapter], "full": [full], "both": [adapter, full]}[kind]
    run(world, ratios=[0.5], choose=FREE, **changes)
    seen = set()
    for method in changes["methods"]:
        for ratio in (0.0, 0.5, 1.0):
            if (world["out"] / f"{method}-{ratio}").is_dir():
                written = on_disk(world, tmp_path / f"{method}{ratio}", method, ratio, **changes)
                expected = alone(world, written, tmp_path / f"{method}{ratio}-alone", TASKS)
                assert items(world, f"{method}-{ratio}") == expected, (method, ratio)
                seen.add(expected)
    assert len(seen) == len(folders(world))  # and each ratio of each method is a model of its own
    assert not list(world["out"].rglob("*.safetensors"))


def test_an_adapter_that_parts_head_and_embedding(world: dict[str, Any], tmp_path: Path) -> None:
    world["adapted"] = [save_adapter(tmp_path / "head", world["base"], target_modules=["q_proj", "lm_head"])]
    run(world, methods=["linear"], ratios=[0.5], choose=FREE)
    for ratio in (0.0, 0.5):
        written = on_disk(world, tmp_path / f"w{ratio}", "linear", ratio)
        assert written.lm_head.weight is not written.model.embed_tokens.weight
        assert items(world, f"linear-{ratio}") == alone(world, written, tmp_path / f"a{ratio}", TASKS)


def test_ends_that_are_the_same_model_are_scored_once(world: dict[str, Any]) -> None:
    run(world, methods=["ties", "slerp", "linear"], ratios=[0.5], choose=FREE)
    assert folders(world) == {"ties-0.0", "ties-0.5", "ties-1.0", "slerp-0.5", "slerp-1.0", "linear-0.5"}
    world["out"] = world["out"].with_name("profile")
    run(world, methods=["slerp", "linear"], ratios=[0.5], choose=FREE, **VARIED)
    assert folders(world) == {"slerp-0.0", "slerp-0.5", "slerp-1.0", "linear-0.5", "linear-1.0"}


# ------------------------------------------------ the adapter itself, scaled


def live(world: dict[str, Any], nf4: bool, share: float | None, place: Path) -> model.Model:
    """The base with its adapter as PEFT loads it, with alpha times `share`; the base alone for None."""
    loaded = model.load_model(world["base"], dtype=torch.float32, device=CPU, nf4=nf4)
    if share is None:
        return loaded
    place.mkdir()
    for file in world["adapted"][0].iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    (place / "adapter_config.json").write_text(
        json.dumps({**config, "lora_alpha": config["lora_alpha"] * share}), encoding="utf-8"
    )
    return PeftModel.from_pretrained(loaded, str(place)).eval()


@pytest.mark.parametrize("nf4", [False, True])
def test_lora_scale_is_the_live_adapter_at_that_scaling(world: dict[str, Any], tmp_path: Path, nf4: bool) -> None:
    world["more"] = {"nf4": nf4}
    run(world, methods=["lora_scale"], ratios=[0.5], choose=FREE, base="bf16")
    for ratio, share in ((0.0, None), (0.5, 0.5), (1.0, 1.0)):
        expected = alone(world, live(world, nf4, share, tmp_path / f"{ratio}"), tmp_path / f"{ratio}-alone", TASKS)
        assert items(world, f"lora_scale-{ratio}") == expected, ratio
    assert read(world)["candidates"][0]["gains"] == {"domain": 0.0, "general": 0.0}


def test_lora_scale_follows_the_profile(world: dict[str, Any], tmp_path: Path) -> None:
    run(world, methods=["lora_scale"], ratios=[0.5], choose=FREE, profile=[{"filter": "*", "values": [0.5]}])
    expected = alone(world, live(world, False, 0.25, tmp_path / "a"), tmp_path / "a-alone", TASKS)
    assert items(world, "lora_scale-0.5") == expected


def test_lora_scale_beside_merges(world: dict[str, Any], tmp_path: Path) -> None:
    """In 16 bits its base is the base; in 4 bits it is another model, measured but never chosen."""
    run(world, methods=["lora_scale", "linear"], ratios=[0.5], choose=FREE)
    assert folders(world) == {"lora_scale-0.0", "lora_scale-0.5", "lora_scale-1.0", "linear-0.5", "linear-1.0"}
    base = alone(
        world, model.load_model(world["base"], dtype=torch.float32, device=CPU), tmp_path / "base-alone", TASKS
    )
    assert items(world, "lora_scale-0.0") == base
    world["out"], world["more"] = world["out"].with_name("nf4"), {"nf4": True}
    strict = {"maximise": "domain", "retain": {"general": 1000.0}}  # nothing qualifies: the base is the choice
    run(world, methods=["lora_scale", "linear"], ratios=[0.5], choose=strict, base="bf16")
    assert folders(world) == {f"{m}-{r}" for m in ("lora_scale", "linear") for r in (0.0, 0.5, 1.0)}
    assert items(world, "linear-0.0") == base != items(world, "lora_scale-0.0")
    choice = read(world)
    assert (choice["method"], choice["ratio"]) == ("linear", 0.0)
    rows = {(r["method"], r["ratio"], r["task"]): float(r["value"]) for r in table(world)}
    for c in choice["candidates"]:  # over the 16-bit base, all of them
        for t in TASKS:
            gain = 100 * (rows[c["method"], str(c["ratio"]), t.name] - rows["linear", "0.0", t.name])
            assert c["gains"][t.group] == pytest.approx(gain, abs=1e-9)
    assert not any(c["eligible"] for c in choice["candidates"] if c["method"] == "lora_scale" and c["ratio"] == 0.0)


def test_the_four_bit_base_is_never_chosen() -> None:
    plan = module.Plan(settings(methods=["lora_scale", "linear"]), models=1, nf4=True)
    rows = {
        p: [Row("organs", "domain", "validation", "accuracy", 0.9 if p == ("lora_scale", 0.0) else 0.5, 0.0, 1.0, 9, 0)]
        for p in plan.points
    }
    assert plan.base == ("linear", 0.0) and plan.is_control(("lora_scale", 0.0))
    candidates = [
        candidate(p, evaluation.gains(rows[p], rows[plan.base]), recipe.Choose(retain={})) for p in plan.points
    ]
    assert max(c.gains["domain"] for c in candidates) == pytest.approx(40.0)
    chosen = choose([c for c in candidates if not plan.is_control((c.method, c.ratio))], recipe.Choose(retain={}))
    assert (chosen.method, chosen.ratio) == ("linear", 0.0)


def test_a_choice_scored_in_4_bits_says_what_is_written(world: dict[str, Any]) -> None:
    plan = module.Plan(settings(methods=["lora_scale"], ratios=[1.0]), models=1, nf4=True)
    rows = {
        p: [Row(t.name, t.group, "validation", "accuracy", 0.5 + p[1] / 4, 0.0, 1.0, 9, 0) for t in TASKS]
        for p in plan.points
    }
    world["out"].mkdir()
    module._write_choice(plan, rows, [], {"chosen": "bf16"}, world["out"])
    choice = read(world)
    assert choice["method"] == "lora_scale" and choice["ratio"] == 1.0
    assert choice["why"].endswith("what is written is its merge into the stored weights.")


def test_what_lora_scale_cannot_scale_is_refused_first(world: dict[str, Any], tmp_path: Path) -> None:
    world["adapted"] = [save_adapter(tmp_path / "dora", world["base"], use_dora=True)]
    with pytest.raises(RequestError, match=r"lora_scale.*DoRA"):
        run(world, methods=["linear", "lora_scale"])
    world["adapted"] = [save_adapter(tmp_path / "saved", world["base"], modules_to_save=["norm"])]
    with pytest.raises(RequestError, match=r"lora_scale.*modules_to_save"):
        run(world, methods=["lora_scale"])
    full = save_adapted(tmp_path / "full", world["base"])
    for adapted, said in (([full], "whole model"), ([full, full], "1 adapted model")):
        world["adapted"] = adapted
        with pytest.raises(RequestError, match=f"lora_scale.*{said}"):
            run(world, methods=["lora_scale"])
    assert not world["out"].exists()


def test_two_models_are_never_held_at_once(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    real = module.model.load_model

    def load(*args: Any, **kwargs: Any) -> Any:
        assert [m for m in (ref() for ref in held) if m is not None] == []
        loaded = real(*args, **kwargs)
        held.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(module.model, "load_model", load)
    world["more"], world["tasks"] = {"nf4": True, "test": True}, [*TASKS, *HELDOUT]
    run(world, methods=["linear", "lora_scale"], ratios=[0.5], screen="bits_per_byte", top=1)
    assert len(held) >= 5  # live, merged, and both again on all tasks


# ------------------------------------------------ what an adapter of a 4-bit base is added to


@pytest.mark.parametrize("seed", [2, 3])
def test_the_better_base_is_measured_and_used(world: dict[str, Any], tmp_path: Path, seed: int) -> None:
    world["adapted"], world["more"] = [save_adapter(tmp_path / "q", world["base"], seed=seed)], {"nf4": True}
    run(world, methods=["linear"], ratios=[0.5], choose=FREE)
    models = {"live": live(world, True, 1.0, tmp_path / "live")}
    models |= {base: on_disk(world, tmp_path / base, "linear", 1.0, base) for base in ("bf16", "nf4-dequant")}
    bits = {}
    for name, scored in models.items():
        alone(world, scored, tmp_path / f"{name}-alone", HELDOUT[:1])
        bits[name] = json.loads((tmp_path / f"{name}-alone" / "results.json").read_text())["rows"][0]["value"]
    assert len(set(bits.values())) == 3
    chosen = min(("bf16", "nf4-dequant"), key=lambda name: bits[name])
    assert read(world)["adapter_base"] == {"chosen": chosen, **bits}
    written = on_disk(world, tmp_path / "half", "linear", 0.5, chosen)
    assert items(world, "linear-0.5") == alone(world, written, tmp_path / "half-alone", TASKS)


def test_a_base_that_is_named_is_not_measured(world: dict[str, Any], tmp_path: Path) -> None:
    world["more"] = {"nf4": True}
    run(world, methods=["linear"], ratios=[0.5], choose=FREE, base="nf4-dequant")
    assert read(world)["adapter_base"] == {"chosen": "nf4-dequant"} and "adapter-base" not in folders(world)
    written = on_disk(world, tmp_path / "half", "linear", 0.5, "nf4-dequant")
    assert items(world, "linear-0.5") == alone(world, written, tmp_path / "half-alone", TASKS)
    world["out"], world["more"] = world["out"].with_name("b"), {}
    run(world, methods=["linear"], ratios=[0.5], choose=FREE)
    assert "adapter_base" not in read(world)


def test_wrong_requests_about_4_bits(world: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--nf4"):
        run(world, base="nf4-dequant")
    world["more"] = {"nf4": True}
    with pytest.raises(RequestError, match="--corpus"):
        run({**world, "corpus": None})
    with pytest.raises(RequestError, match="full model"):
        run({**world, "adapted": [save_adapted(tmp_path / "full", world["base"])]})
    assert not world["out"].exists()


# ------------------------------------------------ the screen


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """(directory, tasks) of each evaluation from now on."""
    seen: list[tuple[str, list[str]]] = []
    real = module.evaluation.evaluate_prepared

    def counted(*args: Any, **kwargs: Any) -> list[Row]:
        seen.append((args[3].name, [t.name for t in args[1].tasks]))
        return real(*args, **kwargs)

    monkeypatch.setattr(module.evaluation, "evaluate_prepared", counted)
    return seen


SCREEN: dict[str, Any] = {
    "methods": ["slerp", "ties", "linear"],
    "ratios": [0.25, 0.5],
    "screen": "bits_per_byte",
    "top": 2,
    "choose": {"maximise": "domain", "retain": {"general": -50.0}},
}


def test_the_screen_scores_the_best_on_all_tasks_and_no_other(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world["tasks"] = [*TASKS, *HELDOUT]
    seen = spy(monkeypatch)
    figures = run(world, **SCREEN)
    places = ["slerp-0.0", "slerp-0.25", "slerp-0.5", "slerp-1.0", "ties-0.25", "ties-0.5", "ties-1.0", "linear-0.25",
              "linear-0.5"]  # fmt: skip
    cheap, every = [t.name for t in HELDOUT], [t.name for t in world["tasks"]]
    assert [s for s in seen if s[1] == cheap] == [(place, cheap) for place in places]
    bits = {(r["method"], float(r["ratio"]), r["task"]): float(r["value"]) for r in table(world) if r["task"] in cheap}

    def saved(point: tuple[str, float], name: str) -> float:
        base = bits["slerp", 0.0, name]
        return 100 * (base - bits[(*point, name)]) / base

    ends = [("slerp", 0.0), ("slerp", 1.0)]
    between = [p for p in ((n.rsplit("-")[0], float(n.rsplit("-")[1])) for n in places) if p not in ends]
    order = sorted(between, key=lambda p: (saved(p, "heldout-general") < -50.0, -saved(p, "heldout-domain")))
    kept = {*ends, *order[:2]}
    assert {place for place, names in seen if names == every} == {f"{m}-{r}" for m, r in kept}
    assert len(seen) == len(places) + len(kept)
    assert figures["items"] == len(places) * 12 + len(kept) * 24 and figures["ratios"] == len(places)
    choice = read(world)
    assert {(c["method"], c["ratio"]) for c in choice["candidates"]} == {
        *kept, *((m, r) for m in ("ties", "linear") for r in (0.0, 1.0) if (m, r) != ("ties", 1.0)),
    }  # fmt: skip
    assert [(c["method"], c["ratio"]) for c in choice["screened_out"]] == order[2:]
    assert choice["screened_out"][0]["gains"]["domain"] == pytest.approx(saved(order[2], "heldout-domain"))
    for method, ratio in kept:
        rows = read(world, f"{method}-{ratio}/results.json")["rows"]
        assert [r["task"] for r in rows] == every
    assert {r["task"] for r in table(world) if (r["method"], float(r["ratio"])) == order[-1]} == set(cheap)


def test_a_screened_ablation_resumes(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    world["tasks"] = [*TASKS, *HELDOUT]
    run(world, **SCREEN)
    whole = {n: (world["out"] / n).read_bytes() for n in ("ablation.csv", "choice.json", "pareto.svg")}
    seen = spy(monkeypatch)
    assert run(world, **SCREEN)["items"] == 0 and seen == []
    (world["out"] / "slerp-1.0" / "results.json").unlink()  # both passes of it again, from the items that are there
    run(world, **SCREEN)
    assert [place for place, _ in seen] == ["slerp-1.0"] * 2
    assert {n: (world["out"] / n).read_bytes() for n in whole} == whole


def test_a_screen_that_cannot_rank_is_refused_first(world: dict[str, Any]) -> None:
    world["tasks"] = [*TASKS, HELDOUT[1]]
    with pytest.raises(RequestError, match="no bits_per_byte task measures the group domain"):
        run(world, **SCREEN)
    assert not world["out"].exists()


def test_a_bound_that_the_screen_cannot_measure_holds_nobody_back() -> None:
    found = [candidate(("linear", r), {"domain": gain}, RULE) for r, gain in ((0.25, 1.0), (0.5, 3.0), (0.75, 3.0))]
    assert [c.ratio for c in ranked(found, RULE)] == [0.5, 0.75, 0.25]
    worse = candidate(("slerp", 0.1), {"domain": 9.0, "general": -1.5}, RULE)
    assert ranked([worse, *found], RULE)[-1] is worse


# ------------------------------------------------ the test items


@pytest.mark.parametrize("general", [-100.0, 1000.0])
def test_the_choice_is_reported_on_test_items(
    world: dict[str, Any], tmp_path: Path, general: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world["more"] = {"test": True}
    seen = spy(monkeypatch)
    run(world, choose={"maximise": "domain", "retain": {"general": general}})
    choice = read(world)
    assert general < 0 or choice["ratio"] == 0.0
    points = {"base": ("slerp", 0.0), "adapted": ("slerp", 1.0), "chosen": (choice["method"], choice["ratio"])}
    for name, (method, ratio) in points.items():
        written = on_disk(world, tmp_path / f"{name}-written", method, ratio)
        expected = alone(world, written, tmp_path / f"{name}-alone", TASKS, "test")
        assert (world["out"] / "test" / name / "items.jsonl").read_text(encoding="utf-8") == expected
        assert {r["split"] for r in read(world, f"test/{name}/results.json")["rows"]} == {"test"}
    tested = [place for place, _ in seen if place in points]
    assert len(tested) == len({ratio if ratio in (0.0, 1.0) else name for name, (_, ratio) in points.items()})
    assert {r["split"] for r in table(world)} == {"validation"}
    seen.clear()
    assert run(world, choose={"maximise": "domain", "retain": {"general": general}})["items"] == 0 and not seen


# ------------------------------------------------ the whole of it


def test_what_is_written(world: dict[str, Any]) -> None:
    figures = run(world, choose={"maximise": "domain", "retain": {"general": -100.0}})
    assert figures["ratios"] == 6 and figures["items"] == 6 * 24 and figures["seconds"] >= 0
    rows = list(csv.DictReader((world["out"] / "ablation.csv").open(encoding="utf-8")))
    assert list(rows[0]) == ["method", "ratio", "task", "group", "split", "metric", "value", "low", "high"]
    points = [(m, r) for m in ("slerp", "linear") for r in ("0.0", "0.25", "0.5", "1.0")]
    assert [(r["method"], r["ratio"], r["task"], r["group"]) for r in rows] == [
        (*point, t.name, t.group) for point in points for t in TASKS
    ]
    assert {r["split"] for r in rows} == {"validation"} and all(
        float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows
    )
    assert folders(world) == {"slerp-0.0", "slerp-0.25", "slerp-0.5", "slerp-1.0", "linear-0.25", "linear-0.5"}
    choice = json.loads((world["out"] / "choice.json").read_text(encoding="utf-8"))
    value = {(r["method"], float(r["ratio"]), r["task"]): float(r["value"]) for r in rows}
    assert [(c["method"], str(c["ratio"])) for c in choice["candidates"]] == points
    for c in choice["candidates"]:
        for t in TASKS:
            gain = 100 * (value[c["method"], c["ratio"], t.name] - value["slerp", 0.0, t.name])
            assert c["gains"][t.group] == pytest.approx(gain, abs=1e-9)
    best = max(c["gains"]["domain"] for c in choice["candidates"])
    chosen = next(c for c in choice["candidates"] if (c["method"], c["ratio"]) == (choice["method"], choice["ratio"]))
    assert chosen["gains"]["domain"] == best and chosen["eligible"]
    assert choice["rule"] == {"maximise": "domain", "retain": {"general": -100.0}} and choice["why"].endswith(".")
    assert not list(world["out"].rglob("*.safetensors"))


def test_resume_scores_only_what_is_missing(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    whole = {n: (world["out"] / n).read_bytes() for n in ("ablation.csv", "choice.json")}
    (world["out"] / "linear-0.5" / "results.json").unlink()
    (world["out"] / "slerp-1.0" / "results.json").write_text('{"rows": [', encoding="utf-8")
    scored: list[Path] = []
    real = module.evaluation.evaluate_prepared

    def counted(*args: Any, **kwargs: Any) -> list[Row]:
        scored.append(args[3])
        return real(*args, **kwargs)

    monkeypatch.setattr(module.evaluation, "evaluate_prepared", counted)
    figures = run(world)
    assert (
        [p.name for p in scored] == ["slerp-1.0", "linear-0.5"]
        and figures["items"] == 2 * 24
        and figures["ratios"] == 6
    )
    assert {n: (world["out"] / n).read_bytes() for n in whole} == whole

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to score, so no model is needed")

    monkeypatch.setattr(module.model, "load_model", never)
    assert run(world)["items"] == 0


def test_an_interrupted_ratio_is_scored_with_its_own_weights(
    world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call starts with a base that was just loaded, not with the ratio that the first one had reached."""
    run(world)
    expected = (world["out"] / "linear-0.25" / "items.jsonl").read_text(encoding="utf-8")
    for name in ("items.jsonl", "results.json"):
        (world["out"] / "linear-0.25" / name).unlink()
    run(world)
    assert (world["out"] / "linear-0.25" / "items.jsonl").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "rule", [{"maximise": "domain", "retain": {"general": -1.0}}, {"maximise": "general", "retain": {}}]
)
def test_a_rule_about_an_unmeasured_group_is_refused_first(world: dict[str, Any], rule: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no task measures the group general"):
        ablate(
            world["base"],
            world["adapted"],
            settings(choose=rule),
            EVAL,
            TASKS[:1],
            world["out"],
            data=world["data"],
            offline=True,
            seed=1,
        )
    assert not world["out"].exists()


def test_models_that_do_not_belong_together_are_refused_first(world: dict[str, Any], tmp_path: Path) -> None:
    world["adapted"] = [save_base(tmp_path / "other", num_hidden_layers=1, **SHAPE)]
    with pytest.raises(RequestError, match="num_hidden_layers"):
        run(world)
    assert not world["out"].exists()


# ------------------------------------------------ the rule

RULE = recipe.Choose(maximise="domain", retain={"general": -1.0})


def candidates(
    *points: tuple[float, float, float], method: str = "slerp", rule: recipe.Choose = RULE
) -> list[Candidate]:
    made = []
    for ratio, domain, general in ((0.0, 0.0, 0.0), *points):
        gains = {"domain": domain, "general": general}
        made.append(candidate((method, ratio), gains, rule))
    return made


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([(0.25, 3.0, -0.5), (0.5, 9.0, -1.0), (1.0, 12.0, -7.0)], 0.5),  # on the bound is kept
        ([(0.25, 3.0, -0.5), (0.5, 9.0, -1.01), (1.0, 12.0, -7.0)], 0.25),
        ([(0.25, 5.0, 0.0), (0.5, 5.0, 0.4), (1.0, 5.0, 1.0)], 0.25),  # of equals the smaller
        ([(0.25, 5.0, -3.0), (0.5, 8.0, -4.0)], 0.0),  # none keeps the bound
        ([(0.25, -2.0, 1.0), (1.0, -0.1, 0.0)], 0.0),  # none gains
        ([(0.5, 0.0, 0.0)], 0.0),  # gains nothing: the smaller is the base
        ([(1.0, 4.0, 2.0)], 1.0),
        ([], 0.0),
    ],
)
def test_choice(points: list[tuple[float, float, float]], chosen: float) -> None:
    found = candidates(*points)
    assert choose(found, RULE).ratio == chosen
    random.Random(1).shuffle(found)
    assert choose(found, RULE).ratio == chosen


def test_choice_without_bounds_and_with_an_unreachable_one() -> None:
    free = recipe.Choose(maximise="domain", retain={})
    points = [(0.5, 3.0, -50.0), (1.0, 2.0, 5.0)]
    assert choose(candidates(*points, rule=free), free).ratio == 0.5
    strict = recipe.Choose(maximise="domain", retain={"general": 10.0})  # the base itself gains 0
    assert choose(candidates(*points, rule=strict), strict).ratio == 0.0


def test_between_methods_the_smaller_ratio_then_the_earlier_method() -> None:
    both = candidates((0.5, 4.0, 0.0)) + candidates((0.5, 4.0, 0.0), method="linear")
    assert choose(both, RULE).method == "slerp"
    assert choose(candidates((0.5, 4.0, 0.0)) + candidates((0.25, 4.0, 0.0), method="linear"), RULE).method == "linear"


def test_the_sentence_carries_the_figures() -> None:
    def sentence(*points: tuple[float, float, float]) -> str:
        found = candidates(*points)
        return explain(choose(found, RULE), found, RULE)

    assert sentence((0.25, 3.04, -0.5), (1.0, 12.0, -7.0)) == (
        "slerp at 0.25 has the highest domain gain, +3.0 points (general -0.5), "
        "among the 1 of 2 merges that keep general at -1.0 points or more."
    )
    assert sentence((0.5, 8.0, -4.0)) == (
        "No merge keeps general at -1.0 points or more, so the base itself is kept; "
        "the best of 1 for domain, slerp at 0.5, has domain +8.0, general -4.0."
    )
    assert "gains domain points over the base, so the base itself is kept" in sentence((0.5, -8.0, 0.0))
    assert sentence() == "Only the base itself was scored."


def test_the_front_is_what_nothing_beats() -> None:
    made = [
        Candidate("m", ratio, {"domain": domain, "general": general}, True)
        for ratio, domain, general in [
            (0.0, 0.0, 0.0),
            (0.1, 1.0, 0.0),  # beats the base
            (0.2, 3.0, -2.0),
            (0.3, 3.0, -2.0),  # its equal: neither beats the other
            (0.4, 3.0, -2.5),
            (0.5, 2.0, -2.1),
            (1.0, 9.0, -7.0),
        ]
    ]
    assert [c.ratio for c in front(made)] == [0.1, 0.2, 0.3, 1.0]
    assert front(made[:1]) == made[:1]
    alone = [Candidate("m", r, {"domain": g}, True) for r, g in ((0.0, 0.0), (0.5, 2.0), (1.0, 2.0))]
    assert [c.ratio for c in front(alone)] == [0.5, 1.0]


# ------------------------------------------------ the picture

SVG = "{http://www.w3.org/2000/svg}"


def marks(text: str, kind: str) -> list[str]:
    """What the points of one kind of line tell."""
    groups = ElementTree.fromstring(text).iter(f"{SVG}g")
    return [
        str(point.findtext(f"{SVG}title"))
        for line in groups
        if kind in (line.get("class") or "").split()
        for point in line.findall(f"{SVG}g")
    ]


def test_the_pareto_plot_shows_every_candidate_the_front_and_the_choice(world: dict[str, Any]) -> None:
    run(world, choose={"maximise": "domain", "retain": {"general": -100.0}})
    text, choice = (world["out"] / "pareto.svg").read_text(encoding="utf-8"), read(world)
    told = [
        f"{c['method']} {c['ratio']:g}: " + ", ".join(f"{g} {gain:+.2f}" for g, gain in c["gains"].items())
        for c in choice["candidates"]
    ]
    best = [told[i] for i, c in enumerate(choice["candidates"]) if c["front"]]
    assert sorted(marks(text, "domain")) == sorted(best) and 0 < len(best) < len(told)
    assert sorted(marks(text, "other")) == sorted(set(told) - set(best))
    chosen = f"{choice['method']} {choice['ratio']:g}"
    assert [m.split(":")[0] for m in marks(text, "general")] == [chosen]
    assert f"chosen: {chosen}" in text and "<style>" in text and "var(" not in text


def test_the_plot_with_a_bound_with_one_group_and_with_awkward_text() -> None:
    found = candidates((0.5, 4.0, -0.5), (1.0, 6.0, -3.0))
    text = pareto_svg(found, front(found), found[1], RULE)
    assert marks(text, "bound") == ["the rule: general at -1 points or more"] * 2
    far = recipe.Choose(retain={"general": -50.0})
    assert marks(pareto_svg(found, front(found), found[1], far), "bound") == []
    alone = [Candidate("<a&b>", r, {"domain": g}, True) for r, g in ((0.0, 0.0), (0.5, 2.0))]
    text = pareto_svg(alone, front(alone), alone[1], recipe.Choose(retain={}))
    assert marks(text, "general") == ["<a&b> 0.5: domain +2.00"] and "<a&b>" not in text
    ElementTree.fromstring(pareto_svg(alone[:1], alone[:1], alone[0], recipe.Choose(retain={})))


# ------------------------------------------------ the command line


def frbio(world: dict[str, Any], *arguments: object) -> Any:
    from frbio_lite.cli import main

    given = [
        "ablate",
        "--base",
        world["base"],
        "--out",
        world["out"],
        "--tasks",
        "demo-medical,demo-general,heldout-domain",
    ]
    given += ["--limit", 5, "--ratios", "0.5", *arguments]
    return CliRunner().invoke(main, [str(a) for a in given], catch_exceptions=False)


def test_the_command_passes_all_its_options(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from frbio_lite import standalone

    given: dict[str, Any] = {}

    def record(*positional: Any, **named: Any) -> dict[str, Any]:
        given.update(named, positional=positional)
        return {}

    monkeypatch.setattr(standalone, "ablate", record)
    adapter, corpus = world["adapted"][0], world["corpus"]
    frbio(
        world, "--adapter", adapter, "--corpus", corpus, "--nf4", "--adapter-base", "auto", "--choose", "max-general",
        "--retain", "domain>=2", "--screen", "bits_per_byte", "--top", 2, "--methods", "della,breadcrumbs,lora_scale",
        "--profile", "mlp=0,1", "--profile", "*=0.5", "--density", 0.4, "--gamma", 0.02, "--epsilon", 0.1,
        "--stochastic-rounding", "--dtype", "bfloat16", "--seed", 5, "--no-test",
    )  # fmt: skip
    assert given["positional"][:2] == (world["base"], [adapter])
    assert given["positional"][2] == recipe.Merge(
        methods=["della", "breadcrumbs", "lora_scale"], ratios=[0.5],
        choose=recipe.Choose(maximise="general", retain={"domain": 2.0}), screen="bits_per_byte", top=2,
        dtype="bfloat16", stochastic_rounding=True, base="auto", density=0.4, gamma=0.02, epsilon=0.1,
        profile=[recipe.ProfileEntry(filter="mlp", values=[0.0, 1.0]), recipe.ProfileEntry(filter="*", values=[0.5])],
    )  # fmt: skip
    assert (given["seed"], given["nf4"], given["test"], given["documents"]) == (5, True, False, corpus)


def test_the_command_prints_what_was_chosen_and_its_test_scores(world: dict[str, Any], tmp_path: Path) -> None:
    models_given = [save_adapted(tmp_path / str(seed), world["base"], seed=seed, size=0.5) for seed in (4, 5)]
    options = ["--methods", "linear,ties", "--retain", "", "--corpus", world["corpus"]]
    said = frbio(world, "--model", models_given[0], "--model", models_given[1], *options).output
    choice = read(world)
    lines = [line for line in said.splitlines() if "chosen" in line and choice["method"] in line.split()[:1]]
    assert len(lines) == 1 and f"{choice['ratio']:g}" in lines[0].split()
    assert said.count("Pareto front") == sum(c["front"] for c in choice["candidates"])
    assert choice["why"] in said.replace("\n", " ") or choice["why"] in said
    for name in ("base", "adapted", "chosen"):
        for row in read(world, f"test/{name}/results.json")["rows"]:
            assert f"{row['value']:.3f}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "slurp"], "linear"),
        (["--methods", "model_stock"], "two or more adapted models"),
        (["--density", "0.4"], "density"),
        (["--top", "2"], "screen"),
        (["--nf4"], "--corpus"),
        (["--adapter-base", "nf4-dequant"], "--nf4"),
        (["--profile", "mlp"], "PART=VALUES"),
        (["--choose", "domain"], "max-domain"),
        (["--model", "BASE"], "--adapter"),
        (["--stochastic-rounding", "--dtype", "float16"], "bfloat16"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(world: dict[str, Any], arguments: list[str], said: str) -> None:
    given = [str(world["base"]) if a == "BASE" else a for a in arguments]
    result = frbio(world, "--adapter", world["adapted"][0], *given)
    lines = result.output.strip().splitlines()
    assert (
        result.exit_code == 2 and said in lines[-1] and len([line for line in lines if line.startswith("frbio: ")]) == 1
    )
    assert not world["out"].exists()


@pytest.mark.parametrize(
    ("text", "ratios"),
    [
        ("0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("0:1:0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0,0.25,1", [0.0, 0.25, 1.0]),
        ("0.3", [0.3]),
        (" 0.5 , 0.25,0.5", [0.25, 0.5]),
        ("0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("0.2:0.2:0.1", [0.2]),
        ("0.1:0.7:0.2", [0.1, 0.3, 0.5, 0.7]),
    ],
)
def test_ratios(text: str, ratios: list[float]) -> None:
    assert parse_ratios(text) == ratios  # exactly: 0.3 is not 0.30000000000000004


@pytest.mark.parametrize(
    "text",
    [
        "0:1:0",
        "1:0:0.1",
        "0:1:-0.1",
        "0:1.1:0.1",
        "-0.1:1:0.1",
        "0,2",
        "-0.5",
        "nan",
        "0:1:nan",
        "0:inf:0.1",
        "",
        "0,,1",
        "0:1",
        "0:1:0.1:2",
        "half",
        "0:1:1e-9",
        "1.0000001",
    ],
)
def test_ratios_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^ratios"):
        parse_ratios(text)


def test_retain() -> None:
    assert parse_retain("general>=-1.0") == {"general": -1.0}
    assert parse_retain(" general >= -1.5 , domain>=0") == {"general": -1.5, "domain": 0.0}
    assert parse_retain("") == {}
    for text in ("general", "general>-1", "general>=", ">=1", "general>=x", "general>=nan", "general>=1,general>=2"):
        with pytest.raises(RequestError, match=r"^retain"):
            parse_retain(text)
