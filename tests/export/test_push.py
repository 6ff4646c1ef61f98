"""`frbio export --push-to-hub`: what is shown is what goes, nothing of this machine with it, and only after a yes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from click.testing import CliRunner, Result
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from frbio_lite.cli import main
from frbio_lite.export.card import write_card
from frbio_lite.export.facts import Merged
from frbio_lite.export.licenses import License

Make = Callable[..., Path]


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/api"))


class Recorder:
    """Stands in for HfApi: keeps what is asked and uploaded; `held` is the visibility of a repository that exists."""

    held: bool | None = None
    refuses: Exception | None = None
    asked: list[tuple[Any, ...]] = []  # noqa: RUF012, set anew by the fixture
    files: dict[str, bytes] = {}  # noqa: RUF012
    endpoint = "https://hub.example"

    def repo_info(self, name: str) -> Any:
        type(self).asked.append(("info", name))
        if self.held is None:
            raise RepositoryNotFoundError("404 Client Error\nwith more lines", response=answer(404))
        return SimpleNamespace(private=self.held)

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
        type(self).asked.append(("create", name, private, exist_ok))
        if self.refuses:
            raise self.refuses

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        type(self).asked.append(("upload", repo_id))
        type(self).files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return SimpleNamespace(repo_url=f"https://hub.example/{repo_id}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    Recorder.held, Recorder.refuses, Recorder.asked, Recorder.files = None, None, [], {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")
    yield Recorder


@pytest.fixture
def model(make_base: Make) -> Path:
    directory = make_base()
    write_card(directory, Merged(("a/b", "c"), License("mit", None), {}, 0.5, {"method": "slerp"}))
    for name in ("manifest.json", "log.jsonl", "training_state.pt", ".env", "notes.txt"):
        (directory / name).write_text(f"secret {directory}")
    (directory / "tensors.csv").write_text("name\n")
    return directory


def push(model: Path, *more: str, name: str = "team/modele") -> Result:
    return CliRunner().invoke(main, ["export", str(model), "--push-to-hub", name, *more])


def refused(result: Result) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    said = [row for row in result.stderr.splitlines() if row.startswith("frbio: ")]
    assert len(said) == 1
    return said[0]


def test_what_is_shown_is_what_goes(model: Path, hub: type[Recorder]) -> None:
    result = push(model, "--yes")
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "https://hub.example/team/modele"
    assert hub.asked == [("info", "team/modele"), ("create", "team/modele", True, False), ("upload", "team/modele")]
    assert set(hub.files) == {"README.md", "config.json", "generation_config.json", "model.safetensors", "tensors.csv",
                              "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
    assert all(name in result.stdout for name in hub.files) and "manifest.json" not in result.stdout
    assert hub.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert not any(str(model).encode() in content or b"secret" in content for content in hub.files.values())
    assert "private, to be made" in result.stdout and "license: mit" in result.stdout
    assert b'name = "team/modele"  #' in hub.files["README.md"] and b'name = "."' not in hub.files["README.md"]
    assert 'name = "."' in (model / "README.md").read_text(encoding="utf-8")


def test_nothing_goes_without_a_yes(model: Path, hub: type[Recorder]) -> None:
    assert "pass --yes" in refused(push(model))
    assert [a[0] for a in hub.asked] == ["info"] and hub.files == {}


@pytest.mark.parametrize(("typed", "goes"), [("y\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_a_person_is_asked(
    model: Path, hub: type[Recorder], monkeypatch: pytest.MonkeyPatch, typed: str, goes: bool
) -> None:
    monkeypatch.setattr("frbio_lite.cli.export.somebody_is_here", lambda: True)
    result = CliRunner().invoke(main, ["export", str(model), "--push-to-hub", "team/modele"], input=typed)
    assert "Upload this? [y/N]" in result.stderr
    assert (("upload", "team/modele") in hub.asked) is goes and result.exit_code == (0 if goes else 130)


def test_a_repository_of_the_other_visibility_is_left_alone(model: Path, hub: type[Recorder]) -> None:
    hub.held = False
    assert "exists and is public: pass --public" in refused(push(model, "--yes"))
    hub.held = True
    assert "exists and is private: pass --private" in refused(push(model, "--yes", "--public"))
    assert hub.files == {}
    result = push(model, "--yes")
    assert (
        result.exit_code == 0 and ("create", "team/modele", True, True) in hub.asked and "which exists" in result.stdout
    )


def test_what_should_be_known_first_is_told(make_base: Make, hub: type[Recorder]) -> None:
    directory = make_base()
    assert "has no README.md" in refused(push(directory, "--yes"))
    write_card(directory, Merged(("b", "c"), License(), {}, 0.5, {"method": "slerp"}))
    result = push(directory, "--yes", "--public")
    assert result.exit_code == 0
    assert "its card has no results" in result.stderr and "the license of its base is not known" in result.stderr
    (directory / "README.md").write_text("---\nlicense: mit\nmodel-index: [{name: x}]\n---\n", encoding="utf-8")
    assert "note:" not in push(directory, "--yes").stderr


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "a b/c", "", "a/", "https://hub.example/a/b"])
def test_names_that_are_none(model: Path, hub: type[Recorder], name: str) -> None:
    assert "OWNER/NAME" in refused(push(model, "--yes", name=name))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (HfHubHTTPError("403 Forbidden", response=answer(403)), "hf auth login"),
        (HfHubHTTPError("401 Unauthorized", response=answer(401)), "hf auth login"),
        (HfHubHTTPError("507 storage\nmore", response=answer(507)), "refused team/modele (507): 507 storage"),
        (httpx.ConnectError("no route"), "the Hub is not reachable (ConnectError)"),
        (httpx.ReadTimeout("late"), "the Hub is not reachable (ReadTimeout)"),
    ],
)
def test_refusals_of_the_hub_are_one_line(model: Path, hub: type[Recorder], error: Exception, said: str) -> None:
    hub.refuses = error
    assert said in refused(push(model, "--yes"))
    assert hub.files == {}


def test_without_a_token(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "hf auth login" in refused(push(model, "--yes"))


def test_without_a_network_the_real_library_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_test")  # HF_HUB_OFFLINE is set for all tests
    assert "the Hub is not reachable" in refused(push(model, "--yes"))
