"""The Tab key: what the shells' scripts ask, and what they are told, without torch and at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from frbio_lite import memory
from frbio_lite.cli import completion
from frbio_lite.evaluation import load_tasks, task_names
from frbio_lite.merging import METHODS
from frbio_lite.recipe import shipped_recipes

FRBIO = Path(sys.executable).parent / "frbio"
SECONDS = 0.9  # of processor time; about 0.35 on an idle machine, and a busy one counts more for the same work


def ask(shell: str, words: list[str], incomplete: str) -> list[str]:
    """What one press of Tab returns, as the shell's own script asks for it: types and values."""
    given = {"COMP_WORDS": "\n".join(["frbio", *words, incomplete]), "COMP_CWORD": str(len(words) + 1)}
    if shell == "fish":
        given = {"COMP_WORDS": " ".join(["frbio", *words, incomplete]), "COMP_CWORD": incomplete}
    environment = {**os.environ, **given, "_FRBIO_COMPLETE": f"{shell}_complete"}
    done = subprocess.run([FRBIO], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def offered(words: list[str], incomplete: str) -> list[str]:
    return [line.removeprefix("plain,") for line in ask("bash", words, incomplete) if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    environment = {**os.environ, "_FRBIO_COMPLETE": f"{shell}_source"}
    done = subprocess.run([FRBIO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "frbio" in done.stdout and f"_FRBIO_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_recipes_complete_in_each_shell(shell: str) -> None:
    answer = "\n".join(ask(shell, ["run"], "qwen3-0.6b-q"))
    assert "qwen3-0.6b-qlora-t4" in answer and "demo" not in answer


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_key_itself_in_bash() -> None:
    """The script that bash loads, called as bash calls it when Tab is pressed."""
    script = (
        f'eval "$(_FRBIO_COMPLETE=bash_source {FRBIO})"\n'
        f"COMP_WORDS=({FRBIO} run --until co) COMP_CWORD=3\n"
        f"_frbio_completion {FRBIO}\n"
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["corpus"], done.stderr


def test_verbs_and_options_complete() -> None:
    assert set(offered([], "re")) == {"report", "recipes"}
    assert "--until" in offered(["run"], "--u")


def test_tasks_and_sets_complete_in_a_list() -> None:
    model = ["eval", "--model", "demo", "--tasks"]
    assert offered(model, "core") == ["core-fr"]
    assert offered(model, "core-fr,medi") == [
        f"core-fr,{name}" for name in completion.task_and_set_names() if name.startswith("medi")
    ]
    assert "core-fr,core-fr" not in offered(model, "core-fr,core")
    assert "medical-fr" in offered(["tasks", "list"], "med")
    assert offered(["tasks", "fetch"], "no-such") == ["file,no-such"]


def test_methods_cards_and_models_complete() -> None:
    merge = ["merge", "--base", "demo", "--method"]
    assert set(offered(merge, "")) == set(completion.MERGE_METHODS)
    assert offered(["ablate", "--methods"], "slerp,model") == []
    assert offered(["plan", "demo", "--gpu"], "rtx-40") == ["RTX-4060-Ti-16GB", "RTX-4090-24GB"]
    assert offered(["eval", "--model"], "d") == ["demo"] and offered(["eval", "--model"], "runs/") == ["dir,runs/"]
    assert offered(["run"], "./mine") == ["file,./mine"]


def test_what_is_offered_is_what_there_is() -> None:
    assert set(completion.MERGE_METHODS) == {*METHODS, "lora_scale"}
    assert [memory.find_card(name) for name in completion.CARDS] == list(memory.CARDS)
    sets = {name for task in load_tasks(task_names()) for name in task.sets}
    assert set(completion.task_and_set_names()) == {*task_names(), *sets}
    assert set(offered(["plan"], "")) == set(shipped_recipes())


@pytest.mark.parametrize(
    "words",
    [["run"], ["eval", "--tasks"], ["merge", "--method"], ["plan", "demo", "--gpu"]],
    ids=lambda words: words[0],
)
def test_the_answer_comes_at_once_and_without_torch(words: list[str]) -> None:
    code = (
        "import resource, sys\n"
        "from frbio_lite.cli import main\n"
        "try: main(prog_name='frbio')\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime, [m for m in ('torch', 'numpy', 'rich', 'tqdm') if m in sys.modules])"
    )
    given = {"COMP_WORDS": "\n".join(["frbio", *words, ""]), "COMP_CWORD": str(len(words) + 1)}
    environment = {**os.environ, **given, "_FRBIO_COMPLETE": "bash_complete"}
    best = min(
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        .stdout.splitlines()[-1]
        .split(" ", 1)
        for _ in range(2)
    )
    assert best[1] == "[]" and float(best[0]) < SECONDS
