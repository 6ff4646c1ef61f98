"""`frbio run`, all stages on a tiny base: nothing is done twice, nothing is lost, and an interruption changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from frbio_lite import pipeline, standalone
from frbio_lite.artifacts import read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.merging import Parameters, Profile
from frbio_lite.merging.run import Output, merge_to
from frbio_lite.recipe import Recipe, load_recipe

SMALL = [
    "corpus.sources.0.path=demo:medical:3", "corpus.sources.1.path=demo:general:3", "packing.sequence_length=64",
    "train.tokens=2560", "train.tokens_per_step=256", "train.lora.rank=4", "eval.limit=12", "eval.bootstrap=100",
    "merge.ratios=[0.5]",
]  # fmt: skip
HALF = {"method": "linear", "ratio": 0.5, "parameters": Parameters(), "profile": Profile()}
KINDS = {"corpus": "Documents", "packed": "PackedTokens", "train": "TrainedWeights", "ablation": "Ablation",
         "merge": "MergedModel", "eval/base": "EvalResult", "eval/adapted": "EvalResult",
         "eval/merged": "EvalResult", "report": "Report"}  # fmt: skip


@pytest.fixture(autouse=True)
def _any_shape_in_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 4-bit kernel that bitsandbytes takes on some processors knows multiples of 32 outputs and 64 inputs only."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


@pytest.fixture
def small(make_base: Callable[..., Path]) -> Callable[..., Recipe]:
    base = make_base(dtype=torch.bfloat16)
    return lambda *overrides: load_recipe("demo", [f"base.model={base}", *SMALL, *overrides])


def digests(out: Path) -> dict[str, str]:
    return {name: read_manifest(out / name, kind).digest for name, kind in KINDS.items()}  # type: ignore[arg-type]


def made(out: Path) -> dict[str, int]:
    return {name: (out / name / "manifest.json").stat().st_mtime_ns for name in KINDS}


def rows(out: Path, model: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((out / "eval" / model / "results.json").read_text(encoding="utf-8"))[
        "rows"
    ]
    return loaded


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_run_leaves_every_artifact_whole(method: str, small: Callable[..., Recipe], tmp_path: Path) -> None:
    out = pipeline.run(small(f"train.method={method}"), tmp_path / "run")
    assert set(digests(out)) == set(KINDS)
    assert not list(out.rglob("*.partial"))
    table = (out / "ablation" / "ablation.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "method,ratio,task,group,split,metric,value,low,high"
    assert len(table) == 1 + 3 * 4  # three ratios, four tasks
    assert {r["split"] for r in rows(out, "merged")} == {"test"}
    assert all(r["low"] <= r["value"] <= r["high"] for name in ("base", "adapted", "merged") for r in rows(out, name))
    model = AutoModelForCausalLM.from_pretrained(out / "merge")
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(out / "merge").eos_token == "<|end|>"
    assert "<html" in (out / "report" / "report.html").read_text(encoding="utf-8")
    choice = json.loads((out / "ablation" / "choice.json").read_text(encoding="utf-8"))
    assert read_manifest(out / "merge", "MergedModel").settings["ratio"] == choice["ratio"]
    told = ModelCard.load(out / "merge" / "README.md").data.eval_results or []
    primary = [r for r in rows(out, "merged") if r["primary"]]
    assert [(r.dataset_name, r.metric_value) for r in told] == [(r["task"], round(r["value"], 6)) for r in primary]


def test_a_second_run_does_nothing(small: Callable[..., Recipe], tmp_path: Path) -> None:
    out = pipeline.run(small(), tmp_path / "run")
    before = made(out)
    pipeline.run(small(), out)
    assert made(out) == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("eval.limit=8", {"ablation", "eval/base", "eval/adapted", "eval/merged", "report"}),
        ("train.optimizer.learning_rate=5e-4", {"train", "ablation", "merge", "eval/adapted", "eval/merged", "report"}),
        ("merge.ratios=[0.25]", {"ablation", "report"}),
        ("eval.retention_margin=5.0", {"report"}),
        (
            "packing.document_mask=false",
            {"packed", "train", "ablation", "merge", "eval/adapted", "eval/merged", "report"},
        ),
    ],
)
def test_a_change_reruns_what_depends_on_it(
    change: str, again: set[str], small: Callable[..., Recipe], tmp_path: Path
) -> None:
    rule = "merge.choose.retain={general: 1000.0}"  # the base is chosen whatever the figures: the merge depends on weights alone
    out = pipeline.run(small(rule), tmp_path / "run")
    before = made(out)
    pipeline.run(small(rule, change), out)
    assert {name for name, when in made(out).items() if when != before[name]} == again


def test_a_changed_source_file_is_noticed(make_base: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(
        "\n\n".join(f"Compte rendu {i} : la CRP est à {i} mg/L ce jour." for i in range(60)), encoding="utf-8"
    )
    overrides = [f"base.model={make_base()}", f"corpus.sources.0.path={file}", *SMALL[1:]]
    out = pipeline.run(load_recipe("local-text", overrides), tmp_path / "run", until="packed")
    old = read_manifest(out / "packed", "PackedTokens").digest
    pipeline.run(load_recipe("local-text", overrides), out, until="packed")
    assert read_manifest(out / "packed", "PackedTokens").digest == old
    file.write_text(
        file.read_text(encoding="utf-8") + "\n\nUn compte rendu de plus, avec 2,5 mg de midazolam.\n", encoding="utf-8"
    )
    pipeline.run(load_recipe("local-text", overrides), out, until="packed")
    assert read_manifest(out / "packed", "PackedTokens").digest != old


def test_same_seed_same_result_other_seed_another(small: Callable[..., Recipe], tmp_path: Path) -> None:
    a, b = (pipeline.run(small(), tmp_path / name) for name in ("a", "b"))
    same = [name for name in KINDS if name != "report"]  # the page holds times
    assert [digests(a)[n] for n in same] == [digests(b)[n] for n in same]
    c = pipeline.run(small("seed=18"), tmp_path / "c")
    assert all(digests(a)[n] != digests(c)[n] for n in ("corpus", "packed", "train"))


class Stopped(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int = 1) -> None:
    """Make the `call`-th call of a function of the pipeline fail."""
    module, name = place.rsplit(".", 1)
    target = pipeline if module == "pipeline" else getattr(pipeline, module)
    real, calls = getattr(target, name), 0

    def failing(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped
        return real(*given, **named)

    monkeypatch.setattr(target, name, failing)


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_an_interruption_after_any_stage_changes_nothing(
    method: str, small: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(f"train.method={method}", "train.checkpoint.every_minutes=1e-9")
    whole = pipeline.run(recipe, tmp_path / "whole")
    cut = tmp_path / "cut"
    places = [("corpus.build_corpus", 1), ("packing.pack", 1), ("pipeline.train", 1), ("pipeline.ablate", 1),
              ("merging.merge_models", 1), ("pipeline.score", 1), ("pipeline.score", 2),
              ("pipeline.write_report", 1)]  # fmt: skip
    for place, call in places:
        with monkeypatch.context() as patch:
            stop_at(patch, place, call)
            with pytest.raises(Stopped):
                pipeline.run(recipe, cut)
    pipeline.run(recipe, cut)
    same = [name for name in KINDS if name != "report"]
    assert [digests(whole)[n] for n in same] == [digests(cut)[n] for n in same]
    assert [rows(whole, m) for m in ("base", "adapted", "merged")] == [
        rows(cut, m) for m in ("base", "adapted", "merged")
    ]


def test_an_interruption_in_the_middle_of_training_changes_nothing(
    small: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small("train.checkpoint.every_minutes=1e-9")
    whole = pipeline.run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        from frbio_lite import training

        real, calls = training.update, 0

        def dies(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise Stopped
            return real(*given)

        patch.setattr(training, "update", dies)
        with pytest.raises(Stopped):
            pipeline.run(recipe, tmp_path / "cut")
    assert not (tmp_path / "cut" / "train").exists()
    cut = pipeline.run(recipe, tmp_path / "cut")
    assert read_manifest(cut / "train", "TrainedWeights").figures["resumed_at_step"] == 4
    a, b = (load_file(out / "train" / "model.safetensors") for out in (whole, cut))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert digests(whole)["ablation"] == digests(cut)["ablation"]


def test_until_and_fresh(small: Callable[..., Recipe], tmp_path: Path) -> None:
    out = pipeline.run(small(), tmp_path / "run", until="packed")
    assert (out / "packed").is_dir() and not (out / "train").exists()
    before = (out / "corpus" / "manifest.json").stat().st_mtime_ns
    pipeline.run(small(), out, until="corpus", fresh=True)
    assert (out / "corpus" / "manifest.json").stat().st_mtime_ns > before
    assert (out / "packed").is_dir()


def test_a_refused_fresh_run_loses_nothing(small: Callable[..., Recipe], tmp_path: Path) -> None:
    out = pipeline.run(small(), tmp_path / "run")
    before, recipe = made(out), (out / "recipe.yaml").read_text(encoding="utf-8")
    with pytest.raises(RequestError, match="license"):
        pipeline.run(small("corpus.licenses.allow=[etalab-2.0]"), out, fresh=True)
    assert made(out) == before
    assert (out / "recipe.yaml").read_text(encoding="utf-8") == recipe
    pipeline.run(small(), out, fresh=True)
    assert all(when > before[name] for name, when in made(out).items())


def test_no_verb_writes_over_another_stage(small: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = small()
    out = pipeline.run(recipe, tmp_path / "run")
    before = made(out)
    with pytest.raises(RequestError, match="exists and is not empty"):
        merge_to(Path(recipe.base.model), [out / "train"], Output(out / "train"), **HALF)
    with pytest.raises(RequestError, match="not a EvalResult artifact"):
        standalone.evaluate_model(
            str(out / "train"), None, recipe.eval, out / "train", split="test", corpus_directory=out / "corpus", data=None,
            offline=True,
        )  # fmt: skip
    assert made(out) == before


def test_a_file_of_few_documents_gets_no_interval(make_base: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(
        "\n\n".join(f"Compte rendu {i} : la CRP est à {i} mg/L ce jour." for i in range(3)), encoding="utf-8"
    )
    overrides = [f"base.model={make_base(dtype=torch.bfloat16)}", f"corpus.sources.0.path={file}", *SMALL[1:]]
    out = pipeline.run(load_recipe("local-text", overrides), tmp_path / "run")
    domain = next(r for r in rows(out, "adapted") if r["task"] == "heldout-domain")
    assert domain["items"] == 1 and domain["low"] is None and domain["high"] is None
    page = (out / "report" / "report.html").read_text(encoding="utf-8")
    assert "gained on heldout-domain" not in page


def test_two_runs_in_one_directory_are_refused(small: Callable[..., Recipe], tmp_path: Path) -> None:
    from frbio_lite.artifacts import locked

    with locked(tmp_path / "run"), pytest.raises(RequestError, match="another frbio process"):
        pipeline.run(small(), tmp_path / "run")


def test_an_adapter_of_another_base_is_refused(
    small: Callable[..., Recipe], make_base: Callable[..., Path], tmp_path: Path
) -> None:
    out = pipeline.run(small("train.method=lora"), tmp_path / "run", until="train")
    other = make_base(name="other", seed=9, dtype=torch.bfloat16)
    with pytest.raises(RequestError, match="base"):
        merge_to(other, [out / "train"], Output(tmp_path / "merged"), **HALF)
    assert not (tmp_path / "merged").exists()


def test_a_changed_task_is_scored_again(small: Callable[..., Recipe], tmp_path: Path) -> None:
    task = tmp_path / "mine.yaml"
    shipped = (
        "name: mine\ngroup: domain\nkind: multiple_choice\nmetric: accuracy\ndemo: medical\nid: id\nchoices: choices\n"
        "gold: answer\nsplits: {validation: validation, test: test}\nlicense: cc0-1.0\n"
    )
    task.write_text(shipped + 'prompt: "Question : {question}\\nRéponse :"\n', encoding="utf-8")
    recipe = small(f"eval.tasks=[{task}, demo-general]")
    out = pipeline.run(recipe, tmp_path / "run")
    before = made(out)
    task.write_text(shipped + 'prompt: "{question}"\n', encoding="utf-8")
    pipeline.run(recipe, out)
    changed = {name for name, when in made(out).items() if when != before[name]}
    assert changed >= {"ablation", "eval/base", "eval/adapted", "eval/merged", "report"}
    assert not changed & {"corpus", "packed", "train"}


def test_the_merge_is_made_as_the_recipe_says(small: Callable[..., Recipe], tmp_path: Path) -> None:
    """What is evaluated as merged is, bit for bit, the point that the ablation chose."""
    recipe = small(
        "train.method=lora", "merge.methods=[dare_linear, lora_scale]", "merge.density=0.3", "merge.screen=bits_per_byte",
        "merge.top=1", "merge.choose.retain={}", "merge.profile=[{filter: mlp, values: [0.5, 1]}]",
        "merge.stochastic_rounding=true",
    )  # fmt: skip
    out = pipeline.run(recipe, tmp_path / "run", until="merge")
    choice = json.loads((out / "ablation" / "choice.json").read_text(encoding="utf-8"))
    settings = read_manifest(out / "merge", "MergedModel").settings
    assert settings["density"] == 0.3 and settings["profile"] == [{"filter": "mlp", "values": [0.5, 1.0]}]
    assert settings["stochastic_rounding"] and settings["adapter_base"] == "bf16" and "adapter_base" not in choice
    assert (settings["method"], settings["ratio"]) == (choice["method"], choice["ratio"])
    assert "screened_out" in choice and (out / "ablation" / "pareto.svg").is_file()


@pytest.mark.parametrize("wins", ["bf16", "nf4-dequant"])
def test_the_merge_goes_into_the_base_that_was_measured(
    wins: str, small: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frbio_lite import ablation

    real, asked = ablation.evaluation.evaluate_prepared, []

    def biased(*given: Any) -> Any:
        """The directory of the winner is made to hold the better figure."""
        made = real(*given)
        if given[3].parent.name != "adapter-base":
            return made
        asked.append(given[3].name)
        return [replace(row, value=1.0 if given[3].name == wins else 2.0) for row in made]

    monkeypatch.setattr(ablation.evaluation, "evaluate_prepared", biased)
    recipe = small("train.method=qlora", "merge.choose.retain={}", "merge.methods=[linear]")
    out = pipeline.run(recipe, tmp_path / "run", until="merge")
    choice = json.loads((out / "ablation" / "choice.json").read_text(encoding="utf-8"))
    assert asked == ["live", "bf16", "nf4-dequant"]
    assert choice["adapter_base"]["chosen"] == wins and set(choice["adapter_base"]) == {"chosen", *asked}
    assert read_manifest(out / "merge", "MergedModel").settings["adapter_base"] == wins


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.method=full", "merge.methods=[lora_scale]"], "lora_scale scales an adapter"),
        (["train.method=lora", "merge.base=nf4-dequant"], "merge.base: nf4-dequant"),
        (["merge.screen=bits_per_byte", "eval.tasks=[demo-medical, demo-general]"], "no bits_per_byte task measures"),
        (["eval.tasks=[demo-general]"], "no task measures the group domain"),
        (
            ["train.method=qlora", "corpus.sources.0.role=replay", "eval.tasks=[demo-medical, demo-general]"],
            "merge.base: auto",
        ),
    ],
)
def test_merges_that_cannot_be_are_refused_before_any_work(
    overrides: list[str], said: str, small: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said):
        pipeline.run(small(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
