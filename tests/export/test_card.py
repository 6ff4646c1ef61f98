"""The model card: what it tells is what was recorded, and nothing that a name holds can break it."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from card_runs import FIGURES, make_run, write_evaluations
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frbio_lite.artifacts import is_current, read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.export.card import card, movement, update_card, write_card
from frbio_lite.export.facts import Merged
from frbio_lite.export.licenses import License, license_of
from frbio_lite.export.markdown import block, code, escape

QWEN = "Qwen/Qwen3-0.6B-Base"
HOSTILE = "a`b|c\n# d <script>alert(1)</script> [x](http://evil.example) --- {{ 7*7 }} ***e***"


def written(run: Path, base: Path | None = None) -> tuple[ModelCard, str]:
    """The card as the Hub's library reads it, and its text."""
    update_card(run, base)
    path = run / "merge" / "README.md"
    return ModelCard.load(path), path.read_text(encoding="utf-8")


def table_rows(text: str) -> list[list[str]]:
    """All table rows as cells, split at pipes that are not escaped."""
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in text.splitlines() if row.startswith("|")]


def test_a_runs_card_tells_what_was_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", f"base.model={QWEN}", "base.revision=abc123")
    loaded, text = written(run)
    data = loaded.data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ([QWEN], "merge", "apache-2.0")
    assert (data["language"], data["library_name"], data["pipeline_tag"]) == ("fr", "transformers", "text-generation")
    assert "license_name" not in data and "datasets" not in data
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in loaded.data.eval_results or []}
    assert results == {("anatomie", "accuracy"): 0.615, ("capitales", "bits_per_byte"): 0.885}
    assert (
        "| `anatomie` | domain | accuracy | 80 | 3 | 25.0 % (20.0–30.0) | 65.0 % (60.0–70.0) | 61.5 % (56.5–66.5) |"
        in text
    )
    assert "| domain | merged | +36.2 points (+24.0 to +47.5) | gained |" in text
    assert "| general | merged | -0.4 points | non-inferior |" in text and "counts as kept is 2.5" in text
    assert "| ratio | 0.5 (the share of the adapted model; 0 is the base, 1 the adapted model) |" in text
    assert "changed the weights by 1.23 %" in text and "0.487 times that change" in text and "1.25°" in text
    assert "| `demo:medical:30` | domain | 3 | 4,000 | cc-by-4.0 (2), etalab-2.0 (1) |" in text
    assert "secret-1.0" not in text  # of a document that was held out
    assert "| tokens | 600,064 |" in text and "| precision | bf16 |" in text and "0.003, cosine" in text
    assert "identifiers found by patterns: 7, masked" in text and "of the benchmarks: 2, dropped" in text
    assert "Not for clinical decisions" in text and "seed 17" in text and "knows no medicine" in text
    assert f"`{QWEN} at abc123`" in text and f"      model: {QWEN}\n" in text


def test_a_card_is_written_again_when_results_come_and_the_artifact_stays_what_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    _, text = written(run)
    assert "Not evaluated yet" in text and "model-index" not in text
    before, path = read_manifest(run / "merge", "MergedModel"), run / "merge" / "README.md"
    manifest_time = (run / "merge" / "manifest.json").stat().st_mtime_ns
    parents = {"base": "base-digest", "adapted": before.parents["train"], "merged": before.digest}
    write_evaluations(run, parents)
    loaded, text = written(run)
    assert len(loaded.data.eval_results or []) == 2 and "Not evaluated yet" not in text
    assert is_current(run / "merge", "MergedModel", "key") and "README.md" not in before.files
    assert (run / "merge" / "manifest.json").stat().st_mtime_ns == manifest_time
    card_time = path.stat().st_mtime_ns
    update_card(run)
    assert path.stat().st_mtime_ns == card_time  # nothing new, nothing written


def test_results_of_other_weights_are_not_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    train = read_manifest(run / "merge", "MergedModel").parents["train"]
    write_evaluations(run, {"base": "base-digest", "adapted": train, "merged": "another merge"})
    loaded, text = written(run)
    assert loaded.data.eval_results is None and "Not evaluated yet" in text and "gained" not in text


def test_a_comparison_of_other_results_is_not_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found = json.loads((run / "eval" / "compare.json").read_text())
    found["results"]["base"] = "another"
    (run / "eval" / "compare.json").write_text(json.dumps(found))
    _, text = written(run)
    assert "| `anatomie` |" in text and "| gained |" not in text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("eval/compare.json", "{", "compare.json is damaged"),
        ("eval/compare.json", '{"results": [], "margin": 1}', "compare.json is damaged"),
        ("eval/merged/results.json", '{"rows": [{"task": "x"}]}', "results.json is damaged"),
        ("corpus/funnel.json", "[1]", "funnel.json is damaged"),
        ("corpus/documents/part-00000.parquet", "no", "part-00000.parquet cannot be read"),
        ("recipe.yaml", "a: [", "recipe.yaml is not valid YAML"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(RequestError, match=said):
        update_card(run)


def test_a_run_without_a_merge_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no merged model yet"):
        update_card(tmp_path)


def test_local_paths_stay_here(tmp_path: Path) -> None:
    private = tmp_path / "patients de Mme X"
    run = make_run(
        tmp_path / "run",
        f"base.model={private / 'my-base'}",
        f"corpus.sources.0.path={private / 'notes.txt'}",
        f"corpus.decontaminate.files=['{private / 'questions.jsonl'}']",
    )
    loaded, text = written(run)
    assert str(tmp_path) not in text and "patients" not in text
    assert "| `notes.txt` | domain | 3 |" in text and "- questions.jsonl" in text and "| base | `my-base` |" in text
    assert "base_model" not in loaded.data.to_dict()  # a directory is no model of the Hub


def test_a_directory_named_like_a_hub_model_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "base.model=Qwen/Qwen3-0.6B-Base")
    (tmp_path / QWEN).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    loaded, text = written(run, Path(QWEN))
    assert "base_model" not in loaded.data.to_dict() and loaded.data.license == "other"
    assert "| base | `Qwen3-0.6B-Base` |" in text and "model: Qwen3-0.6B-Base\n" in text


def test_hub_datasets_are_named_in_the_metadata(tmp_path: Path) -> None:
    sources = "[{dataset: HealthDataHub/PARCOMED, config: finetuning, license: cc-by-4.0}, {path: a.txt, license: own}]"
    run = make_run(
        tmp_path / "run",
        f"corpus.sources={sources}",
        "corpus.licenses.allow=[cc-by-4.0, own]",
        "eval.tasks=[heldout-domain]",
    )
    loaded, text = written(run)
    assert loaded.data.to_dict()["datasets"] == ["HealthDataHub/PARCOMED"]
    assert "| `HealthDataHub/PARCOMED:finetuning` | domain |" in text and "| `a.txt` |" in text


def base_card(directory: Path, text: str) -> Path:
    directory.mkdir()
    (directory / "README.md").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (QWEN, None, License("apache-2.0", None)),
        ("google/gemma-3-1b-pt", "no front matter", License("gemma", None)),
        ("someone/else", None, License("other", "unknown")),
        (None, "---\nlicense: MIT\n---\n# x", License("mit", None)),
        (QWEN, "---\r\nlicense: llama3.2\r\n---\r\n", License("llama3.2", None)),  # the card at hand counts
        (None, "---\nlicense: other\nlicense_name: house-1\nlicense_link: LICENSE\n---", License("other", "house-1", "LICENSE")),
        (None, "---\nlicense: other\n---\n", License("other", "unknown")),
        (None, "---\nlicense: [a, b]\n---\n", License("other", "unknown")),
        (None, "---\nlicense: 'x y\\nz'\n---\n", License("other", "unknown")),
        (None, "---\nlicense: !!python/object/apply:os.system [true]\n---\n", License("other", "unknown")),
        (None, "---\n- 1\n---\n", License("other", "unknown")),
    ],
)  # fmt: skip
def test_a_license_is_what_the_base_states_or_unknown(
    tmp_path: Path, name: str | None, text: str | None, expected: License
) -> None:
    assert license_of(name, base_card(tmp_path / "base", text) if text is not None else None) == expected


def test_an_unknown_license_stands_as_such_in_the_card(tmp_path: Path) -> None:
    loaded, text = written(make_run(tmp_path / "run"))
    assert (loaded.data.license, loaded.data.license_name) == ("other", "unknown")
    assert "| license of the base | unknown |" in text
    licensed = base_card(tmp_path / "base", "---\nlicense: etalab-2.0\n---\n")
    assert written(tmp_path / "run", licensed)[0].data.license == "etalab-2.0"


def merged(**changes: Any) -> Merged:
    known: dict[str, Any] = {"models": (QWEN, "adapted"), "base_license": License("apache-2.0", None), "figures": FIGURES,
                             "ratio": 0.5, "notes": {"method": "slerp"}, **changes}  # fmt: skip
    return Merged(**known)


def test_a_merge_alone_tells_what_it_knows(tmp_path: Path) -> None:
    write_card(tmp_path, merged())
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| method | slerp |" in text and f"`{QWEN}` merged with `adapted`" in text
    assert "## Results" not in text and "## Data" not in text and "## Training" not in text and "language:" not in text
    assert "evaluate it before any use" in text and "\n\n\n" not in text


def test_every_part_of_a_hostile_configuration_stays_in_its_block(tmp_path: Path) -> None:
    hostile = "---\nmodels: x\n```\n# title\n<b>\n\x1b[31m\r\n{{ 7*7 }}\n- y"
    text = card(merged(ratio=None, configuration=hostile), None, directory=tmp_path, versions={})
    body = text.split("---", 2)[2]
    for row in ("---", "```", "# title", "<b>", "{{ 7*7 }}"):
        assert f"\n    {row}\n" in body
    assert body.count("\n```") == 2 and "\x1b" not in body and "| ratio |" not in body


def test_hostile_names_in_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluated=False)
    manifest = read_manifest(run / "merge", "MergedModel")
    parents = {"base": "base-digest", "adapted": manifest.parents["train"], "merged": manifest.digest}
    write_evaluations(run, parents, tasks=(HOSTILE, "---\nlicense: mit"))
    loaded, _ = written(run)
    assert loaded.data.license == "other"  # the name of a task did not become metadata
    assert {r.dataset_name for r in loaded.data.eval_results or []} == {" ".join(HOSTILE.split()), "--- license: mit"}
    widths = [len(row) for row in table_rows(loaded.text)]
    assert set(widths) <= {2, 4, 5, 8} and widths.count(8) == 4
    assert "49" not in re.findall(r"\d+", loaded.text.split("## Results")[1].split("##")[0])


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_text(tmp_path: Path, name: str) -> None:
    text = card(merged(models=(name or "x", name or "y")), None, directory=tmp_path, versions={"torch": name})
    loaded = ModelCard(text)
    assert loaded.data.license == "apache-2.0" and loaded.text.lstrip().startswith("# ")
    assert all(len(row) == 2 for row in table_rows(loaded.text))
    assert text.encode() and text.count("\n# ") == 1


@given(st.text(max_size=80))
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    for shown in (escape(text), code(text)):
        assert "\n" not in shown and "\r" not in shown and re.search(r"(?<!\\)\|", shown) is None
    assert re.search(r"(?<!\\)(?:\\\\)*[<\[*_`]", escape(text)) is None
    assert all(row.startswith("    ") or not row for row in block(text).split("\n"))


def test_links_are_not_made_of_names() -> None:
    assert escape("see https://evil.example and www.evil.example") == r"see https\://evil.example and www\.evil.example"


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, "was not measured"),
        ({"relative_change": 0.0}, "changed no weight"),
        ({"relative_change": 0.5, "effective_ratio": None}, "by 50 % of their length."),
        (
            {"relative_change": 2e-4, "effective_ratio": 0.25, "slerp_is_linear_share": 1.0},
            "100 % of the changed tensors",
        ),
    ],
)
def test_how_far_the_weights_moved(figures: dict[str, Any], said: str) -> None:
    assert said in movement(figures)


def test_the_cards_example_runs_where_the_model_lies(
    make_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = make_base()
    write_card(model, merged())
    example = re.search(r"```python\n(.*?)```", (model / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1], encoding="utf-8")
    monkeypatch.chdir(model)
    runpy.run_path(str(tmp_path / "example.py"))
    assert capsys.readouterr().out.startswith("La fièvre est")
