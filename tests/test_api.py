"""The verbs as functions: the names, defaults and results of the command line."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from safetensors.torch import load_file

import frbio_lite
from frbio_lite import api
from frbio_lite.cli import main
from frbio_lite.errors import RequestError
from frbio_lite.recipe import load_recipe
from tests.merging.tiny_models import save_adapted

Make = Callable[..., Path]
VERBS = {"ablate": "ablate", "compare": "compare", "evaluate": "eval", "merge": "merge", "run": "run", "train": "train"}


def test_the_verbs_stay_functions_when_submodules_load() -> None:
    names = [m.name for m in pkgutil.iter_modules(frbio_lite.__path__) if not m.name.startswith("_")]
    assert not set(names) & set(frbio_lite.__all__)  # a submodule of the same name would replace the function
    for name in ("training", "merging", "evaluation", "ablation", "pipeline"):
        importlib.import_module(f"frbio_lite.{name}")
    for verb in frbio_lite.__all__:
        assert inspect.isfunction(getattr(frbio_lite, verb)), verb
    assert set(frbio_lite.__all__) <= set(dir(frbio_lite))
    with pytest.raises(AttributeError, match="no attribute evalute"):
        frbio_lite.evalute  # noqa: B018


def test_the_package_loads_without_torch() -> None:
    code = "import sys, frbio_lite; frbio_lite.run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("function", VERBS)
def test_options_and_defaults_are_those_of_the_command_line(function: str) -> None:
    """Every option of the verb is an argument with the same default; an argument of its own the function has none."""
    command = main.commands[VERBS[function]]
    taken = inspect.signature(getattr(frbio_lite, function)).parameters
    given = {p.name: p for p in command.params if p.name != "against"}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    for name, option in given.items():
        if name not in taken:
            assert open_ended, f"{name} is no argument"
            continue
        mine, theirs = taken[name].default, option.get_default(click.Context(command))
        theirs = None if str(theirs) == "Sentinel.UNSET" else theirs  # how click says that there is none
        if option.required or mine is inspect.Parameter.empty:
            assert option.required and mine is inspect.Parameter.empty, name
        elif mine is not None and not isinstance(mine, tuple):
            assert mine == theirs, name
        else:
            assert not theirs, name
    assert set(taken) - set(given) <= {"merging", "overrides", "workers", "strict"}


def test_merge_gives_what_the_command_line_writes(make_base: Make, tmp_path: Path) -> None:
    base = make_base()
    adapted = save_adapted(tmp_path / "adapted", base)
    made = frbio_lite.merge(base=base, model=adapted, ratio=0.3, method="linear", out=tmp_path / "a")
    assert made == tmp_path / "a"
    arguments = [
        "merge",
        "--base",
        base,
        "--model",
        adapted,
        "--ratio",
        0.3,
        "--method",
        "linear",
        "--out",
        tmp_path / "b",
    ]
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda d: api.merge(base=d, out=d / "x"), "the adapted side"),
        (lambda d: api.merge(model=d, out=d / "x"), "give the base"),
        (lambda d: api.merge(base=d, model=d, adapter=d, out=d / "x"), "the adapted side"),
        (lambda d: api.merge(config=d / "no.yaml", out=d / "x"), "no.yaml cannot be read"),
        (lambda d: api.merge(config=d / "no.yaml", base=d, out=d / "x"), "either --config, or --base"),
        (lambda d: api.merge(base=d, model=d, shard_size="many", out=d / "x"), "--shard-size many"),
        (lambda d: api.evaluate(model=d, tasks="frbio-fr-med", shots=-1, out=d / "x"), "shots"),
        (lambda d: api.ablate(base=d, model=d, tasks="frbio-fr-med", methods="slurp", out=d / "x"), "methods"),
        (lambda d: api.ablate(base=d, model=d, tasks="frbio-fr-med", tops=3, out=d / "x"), "tops"),
        (lambda d: api.compare([d]), "two or more"),
        (lambda d: api.run("demmo"), "did you mean 'demo'"),
        (lambda d: api.run("demo", overrides={"train.token": 3}), "train.token"),
        (lambda d: api.run(load_recipe("demo"), overrides={"seed": 3}), "overrides change a recipe"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(call: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        call(tmp_path)
    assert not (tmp_path / "x").exists()


def test_overrides_take_python_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from frbio_lite import pipeline

    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda recipe, out, **how: seen.append((recipe, out, how)) or out)
    changes = {
        "train.tokens": 64_000,
        "merge.ratios": [0.0, 0.5],
        "eval.limit": None,
        "corpus.sources.0.path": "demo:medical:3",
        "train.gradient_release": False,
    }
    assert frbio_lite.run("demo", overrides=changes) == Path("runs/demo")
    assert frbio_lite.train("demo", out=tmp_path, overrides=changes) == tmp_path / "train"
    (first, _, _), (second, _, how) = seen
    assert first == second and how["until"] == "train"
    assert (first.train.tokens, first.merge.ratios, first.eval.limit) == (
        64_000,
        [0.0, 0.5, 1.0],
        None,
    )  # the controls come with them
    assert first.corpus.sources[0].path == "demo:medical:3"


def test_evaluate_and_compare_return_what_lies_on_disk(make_base: Make, tmp_path: Path) -> None:
    from frbio_lite.evaluation.compare import Comparison

    place = {}
    for seed, name in enumerate(("first", "second")):
        place[name] = tmp_path / f"scores-{name}"
        base = make_base(name=name, seed=seed)
        rows = frbio_lite.evaluate(model=base, tasks=["frbio-fr-med"], limit=12, offline=True, out=place[name])
        written = json.loads((place[name] / "results.json").read_text(encoding="utf-8"))["rows"]
        assert [r.task for r in rows] == [r["task"] for r in written] and rows[0].items == 12
        assert 0.0 <= rows[0].value <= 1.0
    found = frbio_lite.compare(list(place.values()), margin=2.0, out=tmp_path / "compared")
    assert isinstance(found, Comparison) and found.margin == 2.0
    assert json.loads((tmp_path / "compared/compare.json").read_text(encoding="utf-8"))["verdict"] == found.verdict
