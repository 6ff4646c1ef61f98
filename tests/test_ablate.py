"""The ablation: its live weights are those that would be written, its choice follows the rule, it resumes."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from frbio_lite import ablate as module
from frbio_lite import recipe
from frbio_lite.ablate import Candidate, ablate, choose, explain, parse_ratios, parse_retain, write_weights
from frbio_lite.errors import RequestError
from frbio_lite.evaluate import Row, Task
from frbio_lite.merge import merge_models, open_pair, output_dtype
from tests.merge.tiny_models import load, save_adapted, save_adapter, save_base

SENTENCES = [
    "Le patient prend 10 µg de lévothyroxine.",
    "La rate filtre le sang.",
    "Paris est la capitale de la France.",
]
VOCABULARY = 300


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


def save_items(directory: Path, count: int = 12) -> Path:
    rng = random.Random(3)
    for name in ("organs", "towns"):
        (directory / name).mkdir(parents=True)
        rows = [
            {
                "id": f"{name}-{i}",
                "question": rng.choice(SENTENCES) + str(i),
                "choices": ["oui", "non", "peut-être", "foie"],
                "answer": rng.randrange(4),
            }
            for i in range(count)
        ]
        (directory / name / "validation.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
        )
    return directory


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Any]:
    base = save_base(tmp_path / "base", vocab_size=VOCABULARY, dtype=torch.bfloat16, max_position_embeddings=256)
    save_tokenizer(base)
    adapter = save_adapter(tmp_path / "adapter", base)
    return {"base": base, "adapter": adapter, "data": save_items(tmp_path / "data"), "out": tmp_path / "ablation"}


def settings(**changes: Any) -> recipe.Merge:
    return recipe.Merge.model_validate({"methods": ["slerp", "linear"], "ratios": [0.25, 0.5], **changes})


EVAL = recipe.Eval(tasks=["organs", "towns"], bootstrap=100)


def run(world: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return ablate(
        world["base"],
        world["adapter"],
        settings(**changes),
        EVAL,
        TASKS,
        world["out"],
        data=world["data"],
        offline=True,
        seed=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


# ------------------------------------------------ live weights


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_live_weights_are_the_written_ones(tmp_path: Path, stored: torch.dtype, tied: bool, kind: str) -> None:
    base = save_base(tmp_path / "base", dtype=stored, tied=tied)
    adapted = save_adapter(tmp_path / "x", base) if kind == "adapter" else save_adapted(tmp_path / "x", base, size=0.5)
    pair, live = open_pair(base, adapted), load(base, torch.float32)
    for number, (method, ratio, dtype, loaded) in enumerate(
        [
            ("slerp", 0.3, "auto", torch.float32),
            ("linear", 1.0, "bfloat16", torch.float32),
            ("linear", 0.7, "float32", torch.bfloat16),
            ("slerp", 0.0, "float16", torch.float32),
            ("slerp", 0.45, "auto", torch.bfloat16),
            ("linear", 0.0, "auto", torch.float32),
        ]
    ):
        live = live.to(loaded)  # whatever it held before is replaced
        write_weights(live, pair, method, ratio, output_dtype(dtype))
        merge_models(base, adapted, method, ratio, dtype, tmp_path / str(number))
        written, held = load(tmp_path / str(number), loaded).state_dict(), live.state_dict()
        assert written.keys() == held.keys()
        for name in written:
            assert held[name].dtype == loaded and held[name].equal(written[name]), (method, ratio, name)
        assert (live.lm_head.weight is live.model.embed_tokens.weight) is tied


def test_a_parameter_without_a_tensor_is_named(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    live = load(base, torch.float32)
    live.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(RequestError, match=r"\(extra\)"):
        write_weights(live, open_pair(base, base), "linear", 0.5, None)


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
    folders = {p.name for p in world["out"].iterdir() if p.is_dir()}
    assert folders == {"slerp-0.0", "slerp-0.25", "slerp-0.5", "slerp-1.0", "linear-0.25", "linear-0.5"}
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


def test_scores_are_those_of_the_written_model(world: dict[str, Any]) -> None:
    from frbio_lite import evaluate, model

    run(world)
    merge_models(world["base"], world["adapter"], "slerp", 0.5, "auto", world["out"].parent / "written")
    written = model.load_model(world["out"].parent / "written", dtype=torch.float32, device=torch.device("cpu"))
    evaluate.evaluate(
        written,
        model.load_tokenizer(world["base"]),
        TASKS,
        "validation",
        EVAL,
        world["out"].parent / "alone",
        model_name="x",
        data=world["data"],
        offline=True,
        seed=1,
    )
    lines = [
        (d / "items.jsonl").read_text(encoding="utf-8")
        for d in (world["out"] / "slerp-0.5", world["out"].parent / "alone")
    ]
    assert lines[0] == lines[1]
    assert lines[0] != (world["out"] / "slerp-0.0" / "items.jsonl").read_text(encoding="utf-8")


def test_resume_scores_only_what_is_missing(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(world)
    whole = {n: (world["out"] / n).read_bytes() for n in ("ablation.csv", "choice.json")}
    (world["out"] / "linear-0.5" / "results.json").unlink()
    (world["out"] / "slerp-1.0" / "results.json").write_text('{"rows": [', encoding="utf-8")
    scored: list[Path] = []
    real = module.evaluate.evaluate_prepared

    def counted(*args: Any, **kwargs: Any) -> list[Row]:
        scored.append(args[3])
        return real(*args, **kwargs)

    monkeypatch.setattr(module.evaluate, "evaluate_prepared", counted)
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
            world["adapter"],
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
    world["adapter"] = save_base(tmp_path / "other", vocab_size=VOCABULARY, num_hidden_layers=1)
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
        made.append(module._candidate((method, ratio), gains, rule))
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


# ------------------------------------------------ the command line


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
