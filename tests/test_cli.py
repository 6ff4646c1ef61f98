"""The command line as its user meets it: help, exit statuses, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from frbio_lite.cli import main
from frbio_lite.recipe import shipped_recipes


def frbio(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments: str | Path) -> str:
    """The message of a wrong request: exit status 2, one line on stderr, no traceback, nothing on stdout."""
    result = frbio(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("frbio: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    return lines[0]


VERBS = [
    "plan",
    "run",
    "corpus",
    "train",
    "merge",
    "ablate",
    "eval",
    "compare",
    "tasks",
    "report",
    "export",
    "recipes",
    "doctor",
]


def test_the_verbs_are_those_of_the_design() -> None:
    assert list(main.commands) == VERBS


@pytest.mark.parametrize(
    "path",
    [[v] for v in VERBS]
    + [["recipes", v] for v in ("list", "show", "copy", "check")]
    + [["tasks", v] for v in ("list", "show", "check", "fetch")],
)
def test_every_verb_has_help_with_an_example(path: list[str]) -> None:
    result = frbio(*path, "--help")
    assert result.exit_code == 0
    if path not in (["recipes"], ["tasks"]):
        assert (
            f"frbio {' '.join(path)} " in result.output.replace("\n", " ")
            or f"frbio {' '.join(path)}\n" in result.output
        )
    assert "not implemented" not in result.output.lower()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["planifier"], "No such command 'planifier'"),
        (["run"], "Missing argument 'RECIPE'"),
        (["run", "demo", "--until", "lunch"], "'lunch' is not one of"),
        (["merge", "--base", "a", "--model", "b", "--out", "c", "--ratio", "half"], "'half' is not a valid float"),
        (["eval", "--modell", "demo"], "--modell"),
        (["recipes", "shew"], "No such command 'shew'"),
    ],
)
def test_mistyped_commands_are_one_line_too(arguments: list[str], said: str) -> None:
    message = refused(*arguments)
    assert said in message and "--help" in message


def test_without_a_verb_the_help_shows() -> None:
    result = frbio()
    assert result.exit_code == 2 and "frbio run demo" in result.stderr


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_pass_their_check(name: str) -> None:
    result = frbio("recipes", "check", name)
    assert result.exit_code == 0 and "valid" in result.output


def test_recipes_are_listed_shown_and_copied_once(tmp_path: Path) -> None:
    assert all(name in frbio("recipes", "list").output for name in shipped_recipes())
    copied = tmp_path / "mine.yaml"
    assert frbio("recipes", "copy", "demo", copied).exit_code == 0
    assert copied.read_text(encoding="utf-8") == frbio("recipes", "show", "demo").output
    copied.write_text("mine", encoding="utf-8")
    assert "exists" in refused("recipes", "copy", "demo", copied)
    assert copied.read_text(encoding="utf-8") == "mine"


def test_doctor_speaks_json() -> None:
    checks = json.loads(frbio("doctor", "--json").stdout)
    assert {"gpu", "precision", "triton", "bitsandbytes", "unsloth", "disk", "hub"} <= set(checks)
    assert all(isinstance(c["ok"], bool) and c["detail"] for c in checks.values())
    assert checks["gpu"]["ok"] == torch.cuda.is_available()


def test_check_names_file_line_and_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("extends: demo\nname: r\neval: {taks: [core-fr]}\n", encoding="utf-8")
    message = refused("recipes", "check", tmp_path / "r.yaml")
    assert "r.yaml:3" in message and "did you mean 'tasks'" in message


def test_check_knows_the_tasks() -> None:
    assert "did you mean 'demo-medical'" in refused("recipes", "check", "demo", "--set", "eval.tasks=[demo-medcal]")


@pytest.fixture
def text_run(make_base: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """`text_run(file bytes or None, *more --set)` → the message of a refused run of local-text on that file."""
    base = make_base(dtype=torch.bfloat16)

    def run(content: bytes | None, *overrides: str) -> str:
        file = tmp_path / "notes.txt"
        if content is not None:
            file.write_bytes(content)
        values = [f"corpus.sources.0.path={file}", f"base.model={base}", "packing.sequence_length=64", *overrides]
        out = tmp_path / "run"
        message = refused("run", "local-text", "--out", out, *(x for v in values for x in ("--set", v)))
        left = sorted(p.name for p in out.rglob("*") if p.is_file() and p.name not in {".lock", "recipe.yaml"})
        assert left == [], left  # neither an artifact nor a part of one
        return message

    return run


GOOD = "".join(
    f"Le patient numéro {i} reçoit 10 µg/kg de sufentanil, puis 2,5 mg de midazolam le jour {i * 7}.\n\n"
    for i in range(80)
).encode()


@pytest.mark.parametrize(
    ("content", "overrides", "said"),
    [
        (None, [], "notes.txt"),
        (b"", [], "empty"),
        (b"\x00\x01\x02PK\x00" * 40, [], "binary"),
        ("Fièvre à 39 °C, œdème".encode("latin-1", "ignore") * 9, [], "UTF-8"),
        (b"a\n\nb\n\nc\n", [], "no document"),
        (GOOD, ["corpus.sources.0.license=cc-by-nc-4.0"], "corpus.licenses.allow"),
        (GOOD, ["corpus.sources.0.license=null"], "license"),
        (GOOD, ["packing.sequence_length=512", "train.tokens_per_step=512"], "256 positions"),
        (GOOD, ["merge.ratios=[0, 1.2]"], "less than or equal to 1"),
        (GOOD, ["base.model=/no/such/model"], "/no/such/model"),
        (GOOD, ["base.model=someone/some-model"], "hf download someone/some-model"),
        (GOOD, ["train.precision=fp16"], "fp16 needs a GPU"),
        (GOOD, ["eval.tasks=[heldout-domain]"], "general"),
    ],
)
def test_bad_input_to_a_run_is_one_line_and_leaves_nothing(
    content: bytes | None, overrides: list[str], said: str, text_run: Callable[..., str]
) -> None:
    assert said in text_run(content, *overrides)


def test_a_pickle_is_refused(make_base: Callable[..., Path], text_run: Callable[..., str], tmp_path: Path) -> None:
    base = make_base(name="pickled")
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    message = text_run(GOOD, f"base.model={base}")
    assert "safetensors" in message and "pickle" in message


def test_no_space_is_said_before_any_work(text_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "no space left" in text_run(GOOD)


def test_a_full_disk_halfway_is_one_line(text_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("frbio_lite.pipeline.corpus.build_corpus", full)
    assert "no space left on disk" in text_run(GOOD)


def test_unexpected_failures_are_one_line_and_exit_1(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("the loss is nan at step 3\nand more")

    monkeypatch.setattr("frbio_lite.pipeline.corpus.build_corpus", broken)
    arguments = ["run", "demo", "--out", str(tmp_path / "run"), "--set", f"base.model={make_base()}"]
    result = frbio(*arguments)
    assert result.exit_code == 1
    assert "RuntimeError: the loss is nan at step 3 (frbio --debug shows where)" in result.stderr.splitlines()[-1]
    assert "Traceback" in frbio("--debug", *arguments).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["merge", "--base", "BASE", "--model", "BASE", "--ratio", "1.5", "--out", "OUT"], "0"),
        (["merge", "--base", "BASE", "--out", "OUT"], "--adapter"),
        (["merge", "--base", "BASE", "--adapter", "BASE", "--model", "BASE", "--out", "OUT"], "once"),
        (
            [
                "ablate",
                "--base",
                "BASE",
                "--model",
                "BASE",
                "--ratios",
                "0:1:0",
                "--tasks",
                "demo-medical,demo-general",
                "--out",
                "OUT",
            ],
            "0:1:0",
        ),
        (
            [
                "ablate",
                "--base",
                "BASE",
                "--model",
                "BASE",
                "--methods",
                "slurp",
                "--tasks",
                "demo-medical",
                "--out",
                "OUT",
            ],
            "linear",
        ),
        (
            [
                "ablate",
                "--base",
                "BASE",
                "--model",
                "BASE",
                "--retain",
                "general",
                "--tasks",
                "demo-medical",
                "--out",
                "OUT",
            ],
            "general",
        ),
        (["eval", "--model", "BASE", "--tasks", "demo-medcal", "--out", "OUT"], "demo-medical"),
        (["eval", "--model", "BASE", "--tasks", "heldout-domain", "--out", "OUT"], "corpus"),
        (["eval", "--model", "BASE", "--tasks", "belebele-fra", "--offline", "--out", "OUT"], "--data"),
        (["eval", "--model", "/none", "--tasks", "demo-medical", "--out", "OUT"], "/none"),
        (["report", "OUT", "--out", "OUT/page.html"], "OUT"),
    ],
)
def test_wrong_requests_are_refused_and_write_nothing(
    arguments: list[str], said: str, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    base, out = str(make_base()), str(tmp_path / "OUT")
    message = refused(*(a.replace("BASE", base).replace("OUT", out) for a in arguments))
    assert said in message
    assert not (tmp_path / "OUT").exists()


def test_output_that_is_somebodys_is_not_touched(make_base: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine", encoding="utf-8")
    base = make_base()
    assert "exists and is not empty" in refused("merge", "--base", base, "--model", base, "--out", tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_help_loads_nothing_slow() -> None:
    code = "import sys; from frbio_lite.cli import main; print([m for m in sys.modules if m in set(sys.argv[1:])])"
    slow = ["torch", "transformers", "numpy", "scipy", "datasets", "pyarrow", "rich"]
    done = subprocess.run([sys.executable, "-c", code, *slow], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "frbio_lite.cli", "recipes", "list"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in shipped_recipes())


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "frbio_lite.cli", "recipes", "show", "demo"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 1
    child.stderr.close()


@pytest.mark.parametrize("arguments", [["tasks", "list"], ["recipes", "list"], ["doctor"]])
def test_tables_fit_80_columns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = frbio(*arguments).stdout.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 80


def test_a_comparison_prints_and_writes_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    places = []
    for model, right in (("base", 15), ("adapted", 40), ("merged", 35)):
        row = {
            "task": "quiz",
            "group": "domain",
            "split": "test",
            "metric": "accuracy",
            "value": right / 50,
            "items": 50,
        }
        lines = [{"task": "quiz", "id": str(n), "prompt_hash": "h", "correct": n < right} for n in range(50)]
        places.append(tmp_path / model)
        places[-1].mkdir()
        (places[-1] / "results.json").write_text(json.dumps({"model": model, "rows": [row | {"shots": 0}]}))
        (places[-1] / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = frbio("compare", *places, "--out", tmp_path / "eval")
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "eval" / "compare.json").read_text(encoding="utf-8"))
    assert found["verdict"] in result.stdout and [t["verdict"] for t in found["tasks"]] == ["gained", "gained"]
    table = result.stdout.split("Compared with")[0].splitlines()
    assert max(map(len, table)) <= 80 and sum("quiz" in line for line in table) == 2
    assert refused("compare", places[0]).startswith("frbio: a comparison needs two or more results")
