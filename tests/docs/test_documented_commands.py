"""Every command and every YAML block of the texts, run in the order of the text, in a workspace of its own.

A command of frbio is run as it stands, in a process of its own, with the overrides of SMALL, which change sizes alone; models and
data sets come from a stand-in Hub on this machine. What cannot run here, because it installs or takes too long, is in
ELSEWHERE with how it is covered. A command that is in neither is a failure: a new one has to run.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from forked import Done, Frbio
from hub_content import add_core_tasks, add_corpus, add_recipe_model
from hub_server import HubServer

import frbio_lite
from frbio_lite.cli import main
from frbio_lite.demo.world import documents
from frbio_lite.recipe import load_recipe

pytestmark = pytest.mark.slow

ROOT = Path(frbio_lite.__file__).parent.parent
FIRST = [ROOT / "README.md", ROOT / "recipes" / "README.md"]
FOLDERS = ("benchmarks", "frbio_lite", "recipes")
TEXTS = [*FIRST, *sorted({*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))} - {*FIRST})]
SHELLS = ("sh", "bash")
PLAIN = ("cat", "mkdir")  # run by bash as they stand
OPERATORS = re.compile(r"[|;&<>`]|\$\(")

TEXT_FILES = {"FILE": "medical", "notes.txt": "medical", "FRASIMED.txt": "medical", "ECDC.txt": "general"}
DEMO_RUN = "runs/demo"  # what `make demo` leaves; made once, small, before the first command

CORPUS = ["corpus.sources.0.limit=150", "corpus.sources.1.limit=150"]
TINY = ["train.tokens=8192", "train.tokens_per_step=1024", "merge.ratios=[0, 0.5, 1]", "eval.bootstrap=100"]
SMALL: list[tuple[str, list[str]]] = [  # a command that begins like this gets these words more
    ("frbio run demo", [*TINY, "eval.limit=10"]),
    ("frbio run local-text", TINY),
    ("frbio run qwen3", [*TINY, *CORPUS, "packing.sequence_length=256", "eval.limit=3", "eval.shots=1"]),
    ("frbio ablate", ["--limit", "4"]),
    ("frbio eval", ["--limit", "8"]),
]
SAME_IN_PYTHON = ('run("demo", out="runs/demo")', 'run("demo", out="runs/demo", overrides=SMALL)')


def named(value: object) -> str:
    """A text as test ids and messages name it."""
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


@dataclass(frozen=True)
class Command:
    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{named(self.file)}:{self.line}: {self.text.splitlines()[0]}"


def blocks(file: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(line of its first line, text) of the fenced blocks of these languages."""
    text = file.read_text(encoding="utf-8")
    for found in re.finditer(r"(?ms)^```(\w+)\n(.*?)^```$", text):
        if found[1] in languages:
            yield text[: found.start(2)].count("\n") + 1, found[2]


def prose(file: Path) -> list[str]:
    """The pieces of code in running text and tables, on one line each."""
    text = re.sub(r"(?ms)^```.*?^```$", "", file.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def commands(file: Path) -> list[Command]:
    """The commands of a text's shell blocks; one goes on after a backslash, and to the end of a here-document."""
    found: list[Command] = []
    for start, block in blocks(file, *SHELLS):
        lines = iter(enumerate(block.splitlines(), start))
        for number, line in lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            text = line
            while text.endswith("\\"):
                text += "\n" + next(lines)[1]
            if here := re.search(r"<<-?\s*'?(\w+)'?", text):
                while not text.endswith(f"\n{here[1]}"):
                    text += "\n" + next(lines)[1]
            found.append(Command(file, number, text))
    return found


@dataclass(frozen=True)
class Place:
    """Where the commands run: `workspace`, laid out like a clone in which `make demo` was run."""

    workspace: Path
    frbio: Frbio
    environment: dict[str, str]

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-e", "-c", text]
        return subprocess.run(command, cwd=self.workspace, env=self.environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The base of the demonstration is trained once, for a minute, unless FRBIO_CACHE says where one is kept."""
    workspace = tmp_path_factory.mktemp("clone")
    for name, part in TEXT_FILES.items():
        path = workspace / name
        path.with_suffix(path.suffix or ".txt").write_text(_texts(part), encoding="utf-8")
    shutil.copytree(ROOT / "tests" / "evaluation", workspace / "tests" / "evaluation")
    (workspace / ".venv").mkdir()
    (workspace / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    with HubServer() as hub:
        add_recipe_model(hub, workspace / "hub", "qwen3-0.6b-qlora-t4")
        add_corpus(hub, workspace / "hub")
        add_core_tasks(hub, workspace / "hub")
        environment = {"FRBIO_CACHE": str(workspace / "cache"), **os.environ, **hub.environment(workspace / "home")}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        with Frbio(environment) as frbio:
            made = frbio("run", "demo", *small("frbio run demo"), "--out", DEMO_RUN, cwd=workspace)
            assert made.status == 0, made.stderr
            yield Place(workspace, frbio, environment)


def _texts(part: str) -> str:
    """Documents of the embedded world, separated by blank lines."""
    rows = [dict(row)["text"] for row in documents("medical" if part == "medical" else "general", 3, 6)]
    return "\n\n".join(" ".join(str(text).split()) for text in rows[:200]) + "\n"


def small(text: str) -> list[str]:
    """What a command that begins like `text` gets besides, for its size alone."""
    more = next((more for begins, more in SMALL if text.startswith(begins)), [])
    if more and more[0].startswith("--"):
        return more
    return [word for value in more for word in ("--set", value)]


def _dry_run(command: Command, place: Place) -> None:
    """make knows the target, and what it would do for the demonstration is the run that the workspace holds."""
    words = shlex.split(command.text, comments=True)
    done = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if words[1] == "demo":
        assert f"frbio run demo --out {DEMO_RUN}" in done.stdout


def _installs(command: Command, place: Place) -> None:
    """pip would understand it, and the extras exist."""
    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    words = [w for w in shlex.split(command.text, comments=True)[2:] if w not in ("-e", "-q", "--upgrade")]
    for word in words:
        asked = Requirement(re.sub(r"^\.", setup["metadata"]["name"], word))
        if asked.name == setup["metadata"]["name"]:
            assert asked.extras <= set(setup["options.extras_require"]), word
    assert words


def _helps(command: Command, place: Place) -> None:
    """The script starts, and its help knows the options that the text gives it."""
    words = shlex.split(command.text, comments=True)
    script = next(word for word in words if word.endswith(".py"))
    done = place.frbio.python(script, "--help", cwd=ROOT)
    assert done.status == 0, done.stderr
    for option in (word for word in words[words.index(script) :] if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", done.stdout), f"{option} is not in the help of {script}"


def _collects(command: Command, place: Place) -> None:
    """pytest finds tests there."""
    words = shlex.split(command.text, comments=True)[1:]
    done = place.frbio.python(*words, "--collect-only", "-p", "no:cacheprovider", cwd=ROOT)
    assert done.status == 0 and "::test_" in done.stdout, done.stdout + done.stderr


def _is_a_tool(command: Command, place: Place) -> None:
    """The extra `dev`, which make installs, brings it, and its configuration is there."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert Path(shlex.split(command.text, comments=True)[0]).name in setup["options.extras_require"]["dev"].split()
    assert (ROOT / ".pre-commit-config.yaml").is_file()


ELSEWHERE: list[tuple[str, Callable[[Command, Place], None], str]] = [
    (r"make [\w-]+", _dry_run, "installs from the network, or runs all tests or benchmarks"),
    (r"pip install .+", _installs, "installs from the network"),
    (r"(nice -n \d+ )?(\.venv/bin/)?python benchmarks/\S+\.py.*", _helps, "takes minutes"),
    (r"\.venv/bin/python -m pytest .+", _collects, "these tests run as tests"),
    (r"\.venv/bin/pre-commit install", _is_a_tool, "writes into the clone's git directory"),
]


def _run(command: Command, place: Place) -> Done | subprocess.CompletedProcess[str]:
    text = command.text
    for name in TEXT_FILES:
        if "." not in name:
            text = re.sub(rf"\b{name}\b", f"{name}.txt", text)
    if text.split()[0] in PLAIN:
        return place.bash(text)
    if text.startswith(".venv/bin/frbio ") and not OPERATORS.search(re.sub(r"'[^']*'|\"[^\"]*\"|\s#.*", "", text)):
        words = shlex.split(text, comments=True)
        return place.frbio(*words[1:], *small(" ".join(["frbio", *words[1:]])), cwd=place.workspace)
    if text.startswith(".venv/bin/python ") and text.split()[1].endswith(".py"):
        return place.frbio.python(*shlex.split(text, comments=True)[1:], cwd=place.workspace)
    pytest.fail(f"{command}: run it here, or say in ELSEWHERE how it is covered")


COMMANDS = [command for file in TEXTS for command in commands(file)]


def check(command: Command, place: Place) -> None:
    """Run it, or do what ELSEWHERE says; an AssertionError or pytest's failure says what is wrong."""
    for pattern, covered, _ in ELSEWHERE:
        if re.fullmatch(pattern, re.sub(r"\s+#.*", "", command.text)):
            covered(command, place)
            return
    done = _run(command, place)
    status = done.status if isinstance(done, Done) else done.returncode
    assert status == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr


@pytest.mark.parametrize("file", [file for file in TEXTS if commands(file)], ids=named)
def test_the_commands_of_a_text_run(file: Path, place: Place) -> None:
    """In their order, since one may use what an earlier one made."""
    failed = []
    for command in commands(file):
        try:
            check(command, place)
        except (AssertionError, pytest.fail.Exception) as error:
            failed.append(f"{command}\n{error}")
    assert not failed, "\n\n".join(failed)


def test_a_command_that_is_in_no_category_fails(place: Place, tmp_path: Path) -> None:
    text = tmp_path / "text.md"
    text.write_text(
        "# A\n```sh\n# a comment\ncurl \\\n  x    # b\ncat > f <<'E'\nfrbio\nE\nmkdir d\n```\n", encoding="utf-8"
    )
    found = commands(text)
    assert [(c.line, c.text) for c in found] == [
        (4, "curl \\\n  x    # b"),
        (6, "cat > f <<'E'\nfrbio\nE"),
        (9, "mkdir d"),
    ]
    with pytest.raises(pytest.fail.Exception, match="run it here, or say in ELSEWHERE"):
        _run(Command(ROOT / "README.md", 1, found[0].text), place)
    with pytest.raises(AssertionError):
        check(Command(ROOT / "README.md", 1, ".venv/bin/frbio recipes show no-such"), place)
    with pytest.raises(AssertionError):
        _helps(Command(ROOT / "README.md", 1, "python benchmarks/optim/updates.py --no-such"), place)


def test_there_are_commands_of_every_kind() -> None:
    """Else the way in which they are found is broken."""
    assert len(COMMANDS) > 30 and {ROOT / "README.md", ROOT / "CONTRIBUTING.md"} <= {c.file for c in COMMANDS}
    for pattern, _, _ in ELSEWHERE:
        assert any(re.fullmatch(pattern, re.sub(r"\s+#.*", "", c.text)) for c in COMMANDS), f"nothing is {pattern}"
    for begins, _ in SMALL[1:]:
        assert any(f".venv/bin/{begins}" in c.text for c in COMMANDS), f"nothing begins with {begins}"


PYTHON = [(file, line, text) for file in TEXTS for line, text in blocks(file, "python")]


@pytest.mark.parametrize(("file", "line", "text"), PYTHON, ids=[f"{named(f)}:{n}" for f, n, _ in PYTHON])
def test_documented_python_runs(file: Path, line: int, text: str, place: Place) -> None:
    values = dict(value.split("=", 1) for value in small("frbio run demo") if "=" in value)
    script = place.workspace / "documented.py"
    head = f"import yaml\nSMALL = {{k: yaml.safe_load(v) for k, v in {values!r}.items()}}\n"
    script.write_text(head + text.replace(*SAME_IN_PYTHON), encoding="utf-8")
    done = place.frbio.python(script, cwd=place.workspace)
    assert done.status == 0 and "Traceback" not in done.stderr, f"{file}:{line}\n{done.stderr}"
    if "print(" in text:
        assert done.stdout.strip()


NAMED = [(file, code) for file in TEXTS for code in prose(file)]


def test_commands_in_running_text_exist() -> None:
    """Their verbs, and the options that they show; values in capitals are the reader's."""
    shown = [(f, c.removeprefix(".venv/bin/").split()) for f, c in NAMED if re.match(r"(\.venv/bin/)?frbio [a-z]", c)]
    assert len(shown) > 20
    for file, words in shown:
        verb: click.Command = main
        rest = words[1:]
        while isinstance(verb, click.Group) and rest:
            assert rest[0] in verb.commands, f"{file}: {' '.join(words)}"
            verb, rest = verb.commands[rest[0]], rest[1:]
        known = {option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known, f"{file}: {' '.join(words)}"


def test_commands_of_the_hub_exist(place: Place) -> None:
    """`hf`, which comes with huggingface_hub, has the verbs and options that the texts name."""
    shown = sorted({code.removeprefix(".venv/bin/") for _, code in NAMED if re.match(r"(\.venv/bin/)?hf [a-z]", code)})
    assert shown
    for code in shown:
        verbs = [word for word in code.split() if re.fullmatch("hf|[a-z]+", word)]
        done = place.bash(f".venv/bin/{' '.join(verbs)} --help")
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in code.split() if word.startswith("--")), code


def test_settings_in_running_text_are_taken() -> None:
    found = [(f, value) for f, c in NAMED for value in re.findall(r"--set ([\w.]+=[^\s…]+)", c) if "KEY" not in value]
    assert len(found) >= 3
    for file, value in found:
        assert load_recipe("qwen3-0.6b-qlora-t4", [value]), f"{file}: {value}"


YAML = [(file, line, text) for file in TEXTS for line, text in blocks(file, "yaml")]


@pytest.mark.parametrize(("file", "line", "text"), YAML, ids=[f"{named(f)}:{n}" for f, n, _ in YAML])
def test_documented_yaml_is_valid(file: Path, line: int, text: str, place: Place) -> None:
    """A recipe, a part of one (completed by the recipe that takes any text), or a task: its own verb finds nothing wrong."""
    found = yaml.safe_load(text)
    path = place.workspace / f"{file.parent.name}-{line}.yaml"
    if "kind" in found:
        path.write_text(text, encoding="utf-8")
        done = place.frbio("tasks", "check", path, cwd=place.workspace)
    else:
        path.write_text(text if "extends" in found else f"extends: local-text\nname: part\n{text}", encoding="utf-8")
        done = place.frbio("recipes", "check", path, cwd=place.workspace)
    assert done.status == 0, f"{file}:{line}: {done.stderr}"


def test_the_blocks_are_of_known_languages() -> None:
    """A block without a language, or of another one, would run nowhere."""
    for file in TEXTS:
        fences = re.findall(r"(?m)^```(.*)$", file.read_text(encoding="utf-8"))
        assert len(fences) % 2 == 0, file
        assert {*fences[::2]} <= {*SHELLS, "python", "yaml"} and not any(fences[1::2]), f"{file}: {fences}"
