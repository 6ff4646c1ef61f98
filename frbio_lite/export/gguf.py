"""One GGUF file of a model, by llama.cpp's converter, read back and compared with the weights before it takes its place.

Only that converter is used: which pre-tokenizer a vocabulary needs, how rotary weights are permuted and what each architecture
stores is decided there, and the `gguf` package alone knows none of it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from safetensors import safe_open

from frbio_lite.artifacts import CARD, require_space
from frbio_lite.errors import RequestError
from frbio_lite.export.source import Model, directory_made
from frbio_lite.hub import TOKENIZER_FILES

Type = Literal["f16", "bf16", "f32", "q8_0"]
BYTES: dict[Type, float] = {"f16": 2, "bf16": 2, "f32": 4, "q8_0": 34 / 32}  # of a weight
SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
HOW_TO_GET = (
    "get it with `git clone --depth 1 https://github.com/ggml-org/llama.cpp`, "
    f"`pip install gguf sentencepiece` and `export {VARIABLE}=$PWD/llama.cpp`"
)
PREFIXES = ("model.language_model.", "language_model.")  # of the text model within one that also sees
NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ADDED = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)  # computed from the configuration


def find_converter() -> list[str] | None:
    """The command that runs llama.cpp's converter: from the directory in $LLAMA_CPP, or on the PATH; None where it is not.

    Raises RequestError when $LLAMA_CPP names a directory without it.
    """
    if folder := os.environ.get(VARIABLE):
        script = Path(folder).expanduser() / SCRIPT
        if not script.is_file():
            raise RequestError(f"{VARIABLE} is {folder}, which holds no {SCRIPT}: {HOW_TO_GET}")
        return [sys.executable, str(script.resolve())]
    found = shutil.which(SCRIPT)
    return [found] if found else None


def default_type(model: Model) -> Type:
    """16 bits as the weights are stored: bf16 for bfloat16, else f16."""
    stored = model.setting("dtype") or model.setting("torch_dtype")
    return "bf16" if stored == "bfloat16" else "f16"


def write_gguf(model: Model, place: Path, type: Type | None = None) -> Path:
    """Write `place`/NAME-TYPE.gguf and return its path.

    Raises RequestError without the converter or the `gguf` package, when the file is there already, for a model that names code
    of its own, an architecture or tokenizer that llama.cpp does not know, a full disk, and a result that is not the model.
    """
    converter = find_converter()
    if converter is None:
        raise RequestError(f"a GGUF file is made by llama.cpp's {SCRIPT}, which is not here: {HOW_TO_GET}")
    package = _package(converter)
    _refuse_own_code(model.directory)
    type = type or default_type(model)
    path = place / f"{model.name}-{type}.gguf"
    if path.is_symlink() or path.exists():
        raise RequestError(f"{path} exists: remove it or choose another --out")
    shapes = text_shapes(model.directory)
    partial = path.with_name(f"{path.name}.partial")
    with directory_made(place):
        require_space(place, int(sum(map(_elements, shapes.values())) * BYTES[type]), "the GGUF file")
        try:
            with _staged(model.directory) as source:
                options = ["--outtype", type, "--outfile", str(partial.absolute()), "--model-name", model.name]
                _run([*converter, str(source), *options], model)
            verify(package, partial, model, shapes)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _package(converter: list[str]) -> ModuleType:
    """The `gguf` package, which reads the file back; the converter's own copy where none is installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        beside = Path(converter[-1]).parent / "gguf-py"
    if not (beside / "gguf").is_dir():
        raise RequestError("the GGUF file is read back with the gguf package, which is not here: `pip install gguf`")
    sys.path.insert(0, str(beside))
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise RequestError(f"{beside} cannot be loaded ({error}): `pip install gguf`") from error
    finally:
        sys.path.remove(str(beside))


def _refuse_own_code(directory: Path) -> None:
    """The converter would let a tokenizer run code that it names; nothing here may."""
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        try:
            settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"{path} cannot be read: {error}") from error
        if isinstance(settings, dict) and "auto_map" in settings:
            raise RequestError(
                f"{path} names code of its own (auto_map), which is not run: remove that entry if it is not needed"
            )


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A directory of links to the files that make the model, and to no other: the converter sees no code and no manifest."""
    names = {"config.json", "generation_config.json", CARD, *TOKENIZER_FILES}
    with tempfile.TemporaryDirectory(prefix="frbio-gguf-") as folder:
        for path in sorted(directory.iterdir()):
            if path.name in names or path.name.endswith((".safetensors", ".safetensors.index.json")):
                (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)


def _run(command: list[str], model: Model) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        return
    said = done.stderr + done.stdout
    last = next((row.strip() for row in reversed(said.splitlines()) if row.strip()), "it said nothing")
    if "No space left" in said:
        raise RequestError("no space left on disk for the GGUF file: free some or choose another --out")
    if "pre-tokenizer was not recognized" in said:
        raise RequestError(
            f"llama.cpp does not know the tokenizer of {model.directory}, and a GGUF file without its rules would split text "
            "otherwise: serve the directory itself with transformers or vLLM"
        )
    if "is not supported" in last:
        raise RequestError(f"llama.cpp's converter does not know {model.architecture}: a newer one may; {HOW_TO_GET}")
    if "ModuleNotFoundError" in last or "ImportError" in last:
        raise RequestError(f"llama.cpp's converter lacks a package ({last}): install it, for example with pip")
    raise RuntimeError(f"llama.cpp's converter failed: {last}")


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def text_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of the text model by name, with their shapes, from the headers of the safetensors."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                if not name.startswith(NOT_TEXT):
                    found[name] = tuple(tensors.get_slice(name).get_shape())
    return found


def verify(package: ModuleType, path: Path, model: Model, shapes: dict[str, tuple[int, ...]]) -> None:
    """Read a GGUF file back: its sizes are the configuration's, its tensors those of the weights, each in its shape.

    Raises RuntimeError where they differ.
    """
    try:
        reader = package.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise RuntimeError(f"the GGUF file cannot be read back: {error}") from error
    architecture, tokens = _field(reader, "general.architecture"), _field(reader, "tokenizer.ggml.tokens")
    layers = model.setting("num_hidden_layers")
    for key, value in (("block_count", layers), ("embedding_length", model.setting("hidden_size"))):
        held = _field(reader, f"{architecture}.{key}")
        if held != value:
            raise RuntimeError(f"the GGUF file says {architecture}.{key} {held}, and config.json {value}")
    wanted = _renamed(package, architecture, layers, shapes)
    found = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    free = {*ADDED, *((HEAD,) if model.setting("tie_word_embeddings") else ())}  # a tied head is written or left out
    missing, extra = sorted(wanted.keys() - found.keys() - free), sorted(found.keys() - wanted.keys() - free)
    if missing or extra:
        raise RuntimeError(
            f"the GGUF file {f'lacks {missing[0]}' if missing else f'holds {extra[0]}, which the model lacks'}"
        )
    for name in sorted(wanted.keys() & found.keys()):
        rows = (
            len(tokens or ()) if name in (EMBEDDING, HEAD) else wanted[name][0]
        )  # rows that no token uses are left out
        if found[name] != (rows, *wanted[name][1:]) or rows > wanted[name][0]:
            raise RuntimeError(f"{name} is {list(found[name])} in the GGUF file and {list(wanted[name])} in the model")


def _renamed(
    package: ModuleType, architecture: str, layers: int, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes by the names that the GGUF format gives their tensors."""
    kinds = {name: kind for kind, name in package.MODEL_ARCH_NAMES.items()}
    names = package.get_tensor_name_map(kinds[architecture], layers)
    renamed = {}
    for name, shape in shapes.items():
        short = next((name[len(p) :] for p in PREFIXES if name.startswith(p)), name)
        spellings = (names.get_name(n, try_suffixes=(".weight", ".bias")) for n in (name, short, f"model.{short}"))
        mapped = next(filter(None, spellings), None)
        if mapped is None:
            raise RuntimeError(f"the GGUF format has no place for {name}")
        renamed[mapped] = shape
    return renamed


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field is not None else None
