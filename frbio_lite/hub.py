"""Models and adapters as directories: fetched from the Hub, identified by content, their small files read and copied.

Nothing here loads torch or transformers, so a verb that only moves weights starts quickly.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError, safe_open

from frbio_lite.artifacts import MANIFEST, canonical_hash, file_hash
from frbio_lite.errors import RequestError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",  # of images
    "processor_config.json",
)
FETCHED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "README.md",  # states the license
    *TOKENIZER_FILES,
)
IDENTIFYING = ("config.json", "adapter_config.json", "tokenizer.json")
# Models of text and images whose text part is adapted: what their files put before the names of the text model's tensors.
TEXT_PREFIXES = {"gemma3": "language_model."}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
COMMIT = re.compile("[0-9a-f]{40}")
PATIENCE = 10.0  # seconds that the Hub has for an answer

logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # its retries; what is wrong is said once, by us
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # that a kernel nobody asks for is missing


def fetch(name: str, revision: str | None = None) -> Path:
    """The directory of a model or adapter: `name` itself when it is one, else a snapshot of that Hub repository.

    Raises RequestError when it is not there, not reachable, or holds no safetensors.
    """
    directory = Path(name)
    if not directory.is_dir():
        if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise RequestError(
                f"no model directory {name}: pass an existing directory or a Hub id such as Qwen/Qwen3-0.6B-Base"
            )
        directory = _snapshot(name, revision)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = next((p.name for pattern in PICKLES for p in directory.glob(pattern)), None)
        detail = f"{pickled} is a pickle, which can execute code" if pickled else "it holds no *.safetensors"
        raise RequestError(
            f"{name} has no safetensors weights: {detail}; convert it with `save_pretrained(safe_serialization=True)`"
        )
    for file in files:
        try:
            with safe_open(file, framework="numpy"):  # reads the header and compares it with the file's size
                pass
        except (OSError, SafetensorError) as error:
            raise RequestError(f"{file} is damaged ({error}): download or copy it again") from error
    return directory


def _snapshot(name: str, revision: str | None) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if revision and COMMIT.fullmatch(revision):  # what a commit holds never changes: nobody has to be asked
        with suppress(OSError, HFValidationError):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(FETCHED), local_files_only=True))
    offline = why_offline()
    try:
        with _bars() as bar:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(FETCHED), tqdm_class=bar))
    except HFValidationError as error:
        raise RequestError(f"{name} cannot be the name of a Hub model: {first_line(error)}") from error
    except (OSError, httpx.HTTPError) as error:
        if refused := why_refused("model", name, revision):
            raise RequestError(refused) from error
        if not offline:
            raise RequestError(
                f"the download of {name} broke off ({first_line(error)}): the same command continues it"
            ) from error
        raise RequestError(
            f"{name} is not in the local cache and the Hub is not reachable ({offline}): where there is a network run "
            f"`hf download {name} --local-dir DIR`, bring DIR here and pass it as base.model"
        ) from error


@contextmanager
def _bars() -> Iterator[Any]:
    """The class for the library's bars: they do not stay, and none lives on (it closes two of its three never, and an open
    bar is drawn again after each line that we print)."""
    from huggingface_hub.utils.tqdm import tqdm

    made: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **{**named, "leave": False})  # type: ignore[no-untyped-call]
            made.append(self)

    try:
        yield Bar
    finally:
        for bar in made:
            bar.close()


@cache
def why_offline() -> str | None:
    """Why the Hub cannot be asked, or None when it can; found out once in a process.

    The libraries would try to reach it for half a minute for each thing. Where it does not answer they are put in the mode
    that HF_HUB_OFFLINE asks for, in which they use what they have and else say so at once.
    """
    import httpx
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        if get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code < 500:
            return None
    except httpx.HTTPError:
        pass
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it reads that constant when it loads
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return f"{constants.ENDPOINT} does not answer"


def why_refused(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str | None:
    """What the Hub has against handing out a repository, and what to do; None when it has nothing or cannot be asked."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        api.repo_info(name, repo_type=kind, revision=revision, timeout=PATIENCE)
        api.auth_check(name, repo_type=kind)
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return f"the {kind} {name} asks for its terms to be accepted: accept them on {page}, then run `hf auth login`"
    except RepositoryNotFoundError:
        return f"the Hub has no {kind} {name}, or hides it from you: check the name, or run `hf auth login`"
    except RevisionNotFoundError:
        return f"the Hub has no revision {revision} of the {kind} {name}: take one from its history, or none for the newest"
    except (OSError, httpx.HTTPError):
        return None
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name when it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


_ahead: dict[Path, Future[str]] = {}


def digest(directory: Path) -> str:
    """Hash of a model's or adapter's weights, configuration and vocabulary: the same wherever it came from."""
    ahead = _ahead.pop(directory.absolute(), None)
    return ahead.result() if ahead else _digest(directory)


def _digest(directory: Path) -> str:
    files = [p for p in directory.iterdir() if p.suffix == ".safetensors" or p.name in IDENTIFYING]
    return canonical_hash({p.name: _content(p) for p in files})


def digest_ahead(directories: Sequence[Path]) -> None:
    """Begin to compute what `digest` will be asked, in another thread: hashing does not hold the interpreter."""
    pool = ThreadPoolExecutor(1)
    for directory in directories:
        if directory.absolute() not in _ahead:
            _ahead[directory.absolute()] = pool.submit(_digest, directory)
    pool.shutdown(wait=False)


def _content(path: Path) -> str:
    """The hash of a file, read once per process."""
    resolved = path.resolve()
    status = resolved.stat()
    return _hashed(resolved, status.st_size, status.st_mtime_ns)


@lru_cache
def _hashed(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def load_config(directory: Path) -> Any:
    """The configuration of the model, or of its text part. Raises RequestError when it is missing, broken or of an
    architecture transformers lacks."""
    from transformers import AutoConfig  # slow to load, and rarely needed where only weights move

    try:
        return text_part(AutoConfig.from_pretrained(directory, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{directory} has no usable config.json: {str(error).splitlines()[0]}") from error


def text_part(config: Any) -> Any:
    """The configuration of the text model in one of TEXT_PREFIXES, any other configuration as it is."""
    return config.get_text_config() if config.model_type in TEXT_PREFIXES else config


def text_prefix(directory: Path) -> str:
    """What stands before the text model's tensor names in a model's files: nothing, but for a model of text and images."""
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return TEXT_PREFIXES.get(settings["model_type"], "")
    except (OSError, ValueError, KeyError, TypeError):  # whoever needs the file says what is wrong with it
        return ""


def is_adapter(directory: Path) -> bool:
    return (directory / "adapter_config.json").is_file()


def read_adapter_config(directory: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RequestError(f"{directory} has no readable adapter_config.json: {error}") from error


def check_parent(base: Path, adapted: Path) -> None:
    """Raise RequestError when weights that frbio_lite trained say that they were trained on another base."""
    path = adapted / MANIFEST
    if not path.is_file():
        return
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))["parents"].get("base")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is damaged: {error}") from error
    if recorded is not None and recorded != digest(base):
        raise RequestError(f"{adapted} was trained on another base than {base}: pass the base it was trained on")


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copy tokenizer and generation settings from one model directory to another."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def cache_directory() -> Path:
    """Where what is made once for all runs is kept: $FRBIO_CACHE, or frbio_lite in the user's cache directory."""
    if "FRBIO_CACHE" in os.environ:
        return Path(os.environ["FRBIO_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frbio_lite"
