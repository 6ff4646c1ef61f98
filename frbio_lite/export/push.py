"""A merged model on the Hub: exactly the files that are listed first, after a yes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frbio_lite.artifacts import CARD
from frbio_lite.errors import RequestError
from frbio_lite.export.licenses import License, front_matter, stated
from frbio_lite.export.source import Model
from frbio_lite.hub import TOKENIZER_FILES

# A manifest and logs hold what concerns one machine alone: they stay.
UPLOADED = ("config.json", "generation_config.json", "tensors.csv", CARD, *TOKENIZER_FILES)
WEIGHTS = (".safetensors", ".safetensors.index.json")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
HERE = 'name = "."  #'  # in a card's example


@dataclass(frozen=True)
class Upload:
    """What would go to the Hub. `exists` is the visibility of a repository that is there already, or None."""

    repository: str
    private: bool
    exists: bool
    files: tuple[Path, ...]
    license: License
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def plan_upload(model: Model, repository: str, *, private: bool = True) -> Upload:
    """What an upload would do; asks the Hub whether the repository is there and how visible it is.

    Raises RequestError for a name that is none, without a token or network, for a repository of the other visibility, and for
    a model without a card.
    """
    if not REPOSITORY.fullmatch(repository):
        raise RequestError(f"--push-to-hub {repository}: write OWNER/NAME, such as my-team/{model.name}")
    files = tuple(p for p in sorted(model.directory.iterdir()) if p.is_file() and _goes(p.name))
    if not any(p.name == CARD for p in files):
        raise RequestError(
            f"{model.directory} has no {CARD}: merge it with frbio, or write a card that says what it is"
        )
    visible = _visibility(repository)
    if visible is not None and visible != private:
        held, other = ("private", "--private") if visible else ("public", "--public")
        raise RequestError(f"{repository} exists and is {held}: pass {other} if that is meant, or choose another name")
    license = stated(model.directory) or License()
    return Upload(
        repository, private, visible is not None, files, license, _warnings(model.directory, license, private)
    )


def push(upload: Upload) -> str:
    """Make the repository if it is missing and upload the files in one commit; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _asking(upload.repository), _staged(upload) as folder:
        api.create_repo(upload.repository, private=upload.private, exist_ok=upload.exists)
        done = api.upload_folder(
            repo_id=upload.repository, folder_path=folder, commit_message="Merged model, uploaded by frbio_lite"
        )
    return str(getattr(done, "repo_url", None) or f"{api.endpoint}/{upload.repository}")


def _goes(name: str) -> bool:
    return name in UPLOADED or name.endswith(WEIGHTS)


def _warnings(directory: Path, license: License, private: bool) -> tuple[str, ...]:
    found = []
    if not front_matter(directory).get("model-index"):
        found.append("its card has no results: `frbio run` evaluates a model and writes them there")
    if str(license) == License().name:
        who = "for you" if private else "before others use it"
        found.append(f"the license of its base is not known: find it out {who} and write it in {CARD}")
    return tuple(found)


def _visibility(repository: str) -> bool | None:
    """Whether the repository is private; None where there is none."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if not get_token():
        raise RequestError("there is no Hub token here: run `hf auth login` (a token that may write), or set HF_TOKEN")
    with _asking(repository):
        try:
            return bool(HfApi().repo_info(repository).private)
        except RepositoryNotFoundError:
            return None


@contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Say what to do when the Hub refuses or does not answer."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        status: Any = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise RequestError(
                f"the Hub does not let this token write to {repository}: run `hf auth login` with one that may"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise RequestError(f"the Hub refused {repository} ({status}): {first}") from error
    except (OfflineModeIsEnabled, httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise RequestError(
            f"the Hub is not reachable ({type(error).__name__}): try again where there is a network, without HF_HUB_OFFLINE"
        ) from error


@contextmanager
def _staged(upload: Upload) -> Iterator[Path]:
    """A directory of links to the files, the card in it with the repository's name in its example."""
    with tempfile.TemporaryDirectory(prefix="frbio-push-") as folder:
        for path in upload.files:
            if path.name == CARD:
                text = path.read_text(encoding="utf-8").replace(HERE, f'name = "{upload.repository}"  #')
                (Path(folder) / CARD).write_text(text, encoding="utf-8")
            else:
                (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)
