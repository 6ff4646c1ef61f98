"""Models, corpora and benchmarks from the Hub as a user meets them: commands against a stand-in on this machine.

What is served is random or written for the tests, under the names, revisions and columns of what the recipes name. Only sizes
are overridden. Nothing here reaches a network.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from forked import Done, Frbio
from hub_content import COMMIT, FINEWEB, PARCOMED, add_core_tasks, add_corpus, add_recipe_model
from hub_server import HubServer

pytestmark = pytest.mark.slow

RECIPE, GATED, BASE = "qwen3-0.6b-qlora-t4", "gemma-3-1b-qlora-12gb", "Qwen/Qwen3-0.6B-Base"
SMALL = [
    "train.tokens=4096", "train.tokens_per_step=1024", "packing.sequence_length=256", "merge.ratios=[0, 0.5, 1]",
    "corpus.sources.0.limit=150", "corpus.sources.1.limit=150", "corpus.validation_fraction=0.05",
    "corpus.test_fraction=0.05", "eval.bootstrap=100", "eval.shots=1",
]  # fmt: skip
AT_ONCE = 20.0  # seconds, imports aside; the libraries alone ask for 23 and more before they give up
LATER = "b" * 40  # a commit that is none


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(place: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        add_recipe_model(server, place, RECIPE)
        add_recipe_model(server, place, GATED, gated=True)
        add_corpus(server, place)
        add_core_tasks(server, place)
        yield server


@pytest.fixture(scope="module")
def frbio(hub: HubServer, place: Path) -> Iterator[Frbio]:
    with Frbio({**hub.environment(place / "home"), "FRBIO_CACHE": str(place / "cache")}) as commands:
        yield commands


@pytest.fixture(autouse=True)
def mended(hub: HubServer) -> Iterator[None]:
    hub.asked.clear()
    yield
    hub.mend()
    for repository in hub.repositories.values():
        repository.gated = "gemma" in repository.folder.name


@pytest.fixture(scope="module")
def whole(frbio: Frbio, place: Path, hub: HubServer) -> tuple[Path, list[str]]:
    """(run directory, what was asked) of the first run of a GPU recipe from the Hub."""
    hub.asked.clear()
    done = frbio("run", RECIPE, *sets(*SMALL, "eval.limit=3"), "--out", "whole", cwd=place)
    assert done.status == 0, done.stderr
    assert "examples/s" not in done.stderr and "Traceback" not in done.stderr  # no bar where there is no terminal
    return place / "whole", list(hub.asked)


def refused(done: Done, *words: str) -> str:
    """The message of a request that is turned down at once: one line, status 2, no traceback."""
    assert done.status == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("frbio: ")]
    assert len(lines) == 1 and done.stderr.splitlines()[-1] == lines[0] and "Traceback" not in done.stderr, done.stderr
    assert done.seconds < AT_ONCE, f"{done.seconds:.0f} s"
    for word in words:
        assert word in lines[0]
    return lines[0]


def test_a_gpu_recipe_runs_from_the_hub(whole: tuple[Path, list[str]]) -> None:
    """QLoRA of the pinned model on the streamed corpus, merged, scored on core-fr; what was read is on record."""
    out, asked = whole
    pinned = [a for a in asked if f"/{BASE}/" in a and "/resolve/" in a]
    assert pinned and not any("/resolve/main/" in a for a in pinned)
    assert len([a for a in asked if a.startswith("GET") and a.endswith("/model.safetensors")]) == 1
    read = json.loads((out / "corpus" / "manifest.json").read_text(encoding="utf-8"))["figures"]["sources"]
    assert {name.partition(":")[0]: source["revision"] for name, source in read.items()} == {
        PARCOMED: COMMIT,
        FINEWEB: COMMIT,
    }
    kept = (out / "recipe.yaml").read_text(encoding="utf-8")
    assert BASE in kept and pinned[0].split("/resolve/")[1].split("/")[0] in kept
    rows = json.loads((out / "eval" / "merged" / "results.json").read_text(encoding="utf-8"))["rows"]
    assert {"belebele-fra", "frbio-fr-med", "frenchmedmcqa", "global-mmlu-lite-fr", "mediqal-mcqu"} <= {
        row["task"] for row in rows
    }
    assert (out / "train" / "adapter_model.safetensors").is_file() and (out / "report" / "report.html").is_file()


def test_collections_that_the_licenses_exclude_are_left_out(whole: tuple[Path, list[str]]) -> None:
    """A third of what the stand-in of PARCOMED holds is for research only."""
    steps = json.loads((whole[0] / "corpus" / "funnel.json").read_text(encoding="utf-8"))["steps"]
    left = {s["step"]: s["by_source"][f"{PARCOMED}:finetuning"]["documents"] for s in steps[:2]}
    assert left == {"read": 150, "licensed": 100}


def test_the_same_command_again_asks_nobody(whole: tuple[Path, list[str]], frbio: Frbio, hub: HubServer) -> None:
    done = frbio("run", RECIPE, *sets(*SMALL, "eval.limit=3"), "--out", "whole", cwd=whole[0].parent)
    assert done.status == 0 and hub.asked == [] and "done in" not in done.stderr


def test_without_the_hub_a_run_goes_on_from_what_was_fetched(
    whole: tuple[Path, list[str]], frbio: Frbio, hub: HubServer
) -> None:
    """Other items of the tasks are scored: model and tasks come from the cache, those in an archive too."""
    arguments = ["run", RECIPE, *sets(*SMALL, "eval.limit=2"), "--out", "whole"]
    with hub.away():
        done = frbio(*arguments, cwd=whole[0].parent)
    assert done.status == 0, done.stderr
    assert "eval merged: done" in done.stderr and "train: done" not in done.stderr


def test_offline_by_the_variable_it_works_from_the_cache(whole: tuple[Path, list[str]], hub: HubServer) -> None:
    """The installed command itself, with all its imports."""
    place = whole[0].parent
    environment = {**os.environ, **hub.environment(place / "home", HF_HUB_OFFLINE="1"), "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "frbio", "run", RECIPE, *sets(*SMALL, "eval.limit=1"), "--out", "whole"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "eval merged: done" in done.stderr and hub.asked == []


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        (GATED, [], ["google/gemma-3-1b-pt asks for its terms", "/google/gemma-3-1b-pt, then run `hf auth login`"]),
        (RECIPE, ["base.model=nobody/nothing"], ["no model nobody/nothing", "hf auth login"]),
        (RECIPE, ["base.model=nobody/nothing", "base.revision=null"], ["no model nobody/nothing"]),
        (RECIPE, ["base.model=nobody/no--thing"], ["nobody/no--thing cannot be the name of a Hub model"]),
        (RECIPE, [f"base.revision={LATER}"], [f"no revision {LATER} of the model {BASE}"]),
        (RECIPE, ["base.revision=v9"], [f"no revision v9 of the model {BASE}"]),
        (RECIPE, ["corpus.sources.0.dataset=nobody/notes"], ["no dataset nobody/notes", "hf auth login"]),
        (RECIPE, [f"corpus.sources.0.revision={LATER}"], [f"no revision {LATER} of the dataset {PARCOMED}"]),
        (RECIPE, ["corpus.sources.0.config=finetunning"], ["did you mean 'finetuning'"]),
        (RECIPE, ["corpus.sources.1.config=fra_Latin"], ["did you mean 'fra_Latn'"]),
        (RECIPE, ["corpus.sources.0.text=inputs"], ["no column 'inputs'; did you mean 'input'"]),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    recipe: str, overrides: list[str], said: list[str], frbio: Frbio, place: Path
) -> None:
    overrides = [*SMALL, "corpus.decontaminate=null", *overrides]
    done = frbio("run", recipe, *sets(*overrides), "--out", "refused", "--until", "packed", cwd=place)
    message = refused(done, *said)
    assert "without a network" not in message
    assert not list((place / "refused").rglob("manifest.json"))


def test_gated_data_is_one_line(frbio: Frbio, hub: HubServer, place: Path) -> None:
    hub.repositories["dataset", PARCOMED].gated = True
    until = ["--out", "refused", "--until", "corpus"]
    done = frbio("run", RECIPE, *sets(*SMALL, "corpus.decontaminate=null"), *until, cwd=place)
    refused(done, f"dataset {PARCOMED} asks for its terms", f"/datasets/{PARCOMED}, then run `hf auth login`")
    hub.add("dataset", "maximegmd/glianorex", hub.repositories["dataset", FINEWEB].folder, COMMIT, gated=True)
    done = frbio("tasks", "fetch", "glianorex-fr", "--to", "x", cwd=place)
    refused(done, "task glianorex-fr: the dataset maximegmd/glianorex asks for its terms")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", RECIPE, "--set", "base.model=nobody/elsewhere"], "hf download nobody/elsewhere --local-dir DIR"),
        (["run", RECIPE, *sets("base.model=nobody/elsewhere", "base.revision=null")], "hf download nobody/elsewhere"),
        (["run", RECIPE, "--until", "corpus", "--set", "corpus.decontaminate=null"], "--repo-type dataset"),
        (
            ["run", RECIPE, "--until", "corpus", *sets("corpus.decontaminate=null", f"corpus.sources.0.revision={COMMIT}")],
            f"hf download {PARCOMED} --repo-type dataset --local-dir PARCOMED` and use `path: PARCOMED`",
        ),
        (["tasks", "fetch", "glianorex-fr", "--to", "x"], "--data DIR with a copy in DIR/glianorex-fr/validation.jsonl"),
        (["tasks", "fetch", "pubmedqa-fr", "--to", "x"], "data.zip is not in the local cache"),
    ],
)  # fmt: skip
def test_a_hub_that_is_away_is_one_line_soon(
    arguments: list[str], said: str, whole: tuple[Path, list[str]], frbio: Frbio, hub: HubServer, place: Path
) -> None:
    arguments += ["--out", "nowhere"] if arguments[0] == "run" else []
    with hub.away():
        done = frbio(*arguments, cwd=place)
    refused(done, said, f"{hub.url} does not answer")


@pytest.mark.parametrize("how", [503, "hang"])
def test_a_hub_that_is_ill_is_as_one_that_is_away(
    how: int | str, whole: tuple[Path, list[str]], frbio: Frbio, hub: HubServer, place: Path
) -> None:
    """A hanging one costs the time that it has for its answer, once."""
    hub.fail("", how)
    done = frbio("tasks", "fetch", "glianorex-fr", "paws-x-fr", "--to", "x", cwd=place)
    refused(done, "glianorex cannot be loaded from the Hub", f"{hub.url} does not answer")
    assert len(hub.asked) == 1


@pytest.fixture
def empty_cache(place: Path) -> Iterator[None]:
    """Meanwhile nothing has ever been fetched."""
    home, aside = place / "home", place / "home-aside"
    if home.exists():
        home.rename(aside)
    yield
    if aside.exists():
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)


def test_tasks_are_fetched_and_then_scored_without_the_hub(
    empty_cache: None, frbio: Frbio, hub: HubServer, place: Path
) -> None:
    """A fetch that breaks off in the middle keeps what it has; the copies serve a machine that never had a cache."""
    hub.fail("/datasets/CohereLabs/Global-MMLU-Lite/resolve/.*parquet", 404)
    done = frbio("tasks", "fetch", "core-fr", "--to", "copies", cwd=place)
    refused(done, "task global-mmlu-lite-fr: CohereLabs/Global-MMLU-Lite cannot be loaded from the Hub")
    hub.mend()
    done = frbio("tasks", "fetch", "core-fr", "--to", "copies", cwd=place)
    assert done.status == 0, done.stderr
    status = {tuple(line.split()[:3]) for line in done.stdout.splitlines()}
    assert ("frenchmedmcqa", "test", "kept") in status and ("global-mmlu-lite-fr", "test", "copied") in status
    record = json.loads((place / "copies" / "frenchmedmcqa" / "source.json").read_text(encoding="utf-8"))
    assert record["test"]["commit"] == record["test"]["from"]["revision"]
    model = hub.repositories["model", BASE].folder
    arguments = ["eval", "--model", model, "--tasks", "core-fr", "--data", "copies", "--offline", "--shots", "1"]
    shutil.rmtree(place / "home")
    with hub.away():
        done = frbio(*arguments, "--limit", "2", "--out", "copied", cwd=place)
    assert done.status == 0, done.stderr
    scored = {line.split()[0] for line in done.stdout.splitlines() if "accuracy" in line}
    assert {"belebele-fra", "frenchmedmcqa", "global-mmlu-lite-fr", "mediqal-mcqu"} <= scored


def merged(frbio: Frbio, place: Path, name: str, **how: float) -> Done:
    """`frbio merge` of a Hub model with itself: the cheapest command that downloads one."""
    return frbio(
        "merge", "--base", name, "--model", name, "--ratio", "0.5", "--out", name.replace("/", "-"), cwd=place, **how
    )


@pytest.fixture
def fresh(hub: HubServer, request: pytest.FixtureRequest) -> str:
    """The name of a model that no cache holds yet."""
    name = f"someone/{request.node.name}"
    hub.add("model", name, hub.repositories["model", BASE].folder, COMMIT)
    return name


def whole_copy(hub: HubServer, place: Path, name: str) -> bool:
    """Whether the cache holds the model's weights as they are served."""
    (cached,) = (place / "home" / "hub" / f"models--{name.replace('/', '--')}" / "snapshots").glob(
        "*/model.safetensors"
    )
    return cached.read_bytes() == (hub.repositories["model", name].folder / "model.safetensors").read_bytes()


def test_on_a_terminal_the_bars_of_a_download_do_not_stay(fresh: str, hub: HubServer, place: Path) -> None:
    """They are drawn, and gone when our own lines come."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [Path(sys.executable).parent / "frbio", "merge", "--base", fresh, "--model", fresh, "--out", "shown"]
    environment = {**os.environ, **hub.environment(place / "home"), "TERM": "xterm"}
    child = subprocess.Popen(command, cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert child.wait() == 0
    before, _, after = shown.decode().partition("merge: ")
    assert "Fetching" in before and "\x1b" not in after and "complete" not in after, after


def test_a_download_that_is_cut_goes_on_by_itself(fresh: str, frbio: Frbio, hub: HubServer, place: Path) -> None:
    hub.fail(f"{fresh}/.*safetensors", "cut", times=1)
    done = merged(frbio, place, fresh)
    assert done.status == 0, done.stderr
    assert whole_copy(hub, place, fresh) and sum(a.startswith("GET") and "safetensors" in a for a in hub.asked) == 2


def test_a_download_that_keeps_breaking_off_goes_on_with_the_same_command(
    fresh: str, frbio: Frbio, hub: HubServer, place: Path
) -> None:
    hub.fail(f"{fresh}/.*safetensors", "cut")
    refused(merged(frbio, place, fresh), f"download of {fresh} broke off", "the same command continues it")
    hub.mend()
    assert merged(frbio, place, fresh).status == 0 and whole_copy(hub, place, fresh)


def test_a_download_whose_command_was_killed_is_done_anew(
    fresh: str, frbio: Frbio, hub: HubServer, place: Path
) -> None:
    hub.fail(f"{fresh}/.*safetensors", "stall")
    assert merged(frbio, place, fresh, kill_after=3.0).status == -9
    assert any("safetensors" in a for a in hub.asked) and not (place / fresh.replace("/", "-")).exists()
    hub.mend()
    assert merged(frbio, place, fresh).status == 0 and whole_copy(hub, place, fresh)


def test_a_stream_that_is_cut_loses_no_document(frbio: Frbio, hub: HubServer, place: Path) -> None:
    """The corpus of a recipe with the connection gone in the middle of a file is the one without."""
    counts = []
    for out in ("unbroken", "cut"):
        if out == "cut":
            hub.fail("fra_Latn/001_00000.parquet", "cut", times=1)
        overrides = [*SMALL, "corpus.decontaminate=null"]
        done = frbio("run", RECIPE, *sets(*overrides), "--until", "corpus", "--out", out, cwd=place)
        assert done.status == 0, done.stderr
        counts.append((place / out / "corpus" / "funnel.json").read_text(encoding="utf-8"))
    assert counts[0] == counts[1] and hub.faults[0].left == 0


def test_the_way_without_a_network_that_the_errors_name(hub: HubServer, frbio: Frbio, place: Path) -> None:
    """`hf download` where there is a network; the directories then stand for model and dataset where there is none."""
    environment = {**os.environ, **hub.environment(place / "elsewhere")}
    for what in ([BASE], [PARCOMED, "--repo-type", "dataset"], [FINEWEB, "--repo-type", "dataset"]):
        folder = place / what[0].rpartition("/")[2]
        command = [Path(sys.executable).parent / "hf", "download", *what, "--local-dir", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    carried = [
        "{path: PARCOMED, text: input, license: cc-by-4.0}",
        "{path: FineWeb2-HQ, role: replay, license: odc-by}",
    ]
    sources = f"corpus.sources=[{', '.join(carried)}]"
    overrides = [*(v for v in SMALL if "sources" not in v), "corpus.decontaminate=null", "base.model=Qwen3-0.6B-Base"]
    asked = len(hub.asked)
    with hub.away():
        done = frbio("run", RECIPE, *sets(sources, *overrides), "--until", "packed", "--out", "carried", cwd=place)
    assert done.status == 0, done.stderr
    assert len(hub.asked) == asked and (place / "carried" / "packed" / "manifest.json").is_file()
