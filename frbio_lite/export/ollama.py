"""A Modelfile, by which `ollama create` imports a model directory or a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frbio_lite.artifacts import write_text
from frbio_lite.errors import RequestError
from frbio_lite.export import chat
from frbio_lite.export.licenses import License, stated
from frbio_lite.export.source import Model, directory_made
from frbio_lite.progress import say

MODELFILE = "Modelfile"
HEADER = "# Written by frbio export"
# What `ollama create` converts from safetensors by its public source (convert/convert.go), of the architectures that this
# package trains or merges. Others it takes as GGUF only: of Qwen3 users report it up to version 0.13.5.
IMPORTED = (
    "LlamaForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
)
LARGEST_CONTEXT = 8192  # the memory for it is taken at once, so a model's own 128 thousand would not fit most cards
COMPLETION = "{{ .Prompt }}"  # a base model continues text


def obstacle(model: Model) -> str:
    """Why `ollama create` would not read this directory, or would read it wrongly; empty where it does."""
    if model.architecture not in IMPORTED:
        return f"Ollama does not import {model.architecture} from safetensors"
    if "rope_parameters" in model.config and "rope_theta" not in model.config:
        return "Ollama does not read rope_parameters, as transformers 5 writes them, and would take another rotary base"
    return ""


def check_modelfile(place: Path) -> None:
    """Raise RequestError when there is a Modelfile that is not ours."""
    path = place / MODELFILE
    if path.is_symlink() or path.exists():
        try:
            ours = path.read_text(encoding="utf-8").startswith(HEADER)
        except (OSError, UnicodeDecodeError):
            ours = False
        if not ours:
            raise RequestError(f"{path} exists and was not written by frbio export: choose another --out")


def write_modelfile(model: Model, place: Path, gguf: Path | None = None) -> Path:
    """Write `place`/Modelfile for the model's directory, or for its GGUF file; returns its path.

    Raises RequestError for a path that a Modelfile cannot hold, and where somebody else's Modelfile is.
    """
    check_modelfile(place)
    source = f"./{gguf.name}" if gguf and gguf.parent == place else str((gguf or model.directory).resolve())
    if not source.isprintable() or '"' in source:
        raise RequestError(f"{source!r} cannot stand in a Modelfile: move the model to a directory with a plain name")
    template, stops = _template(model)
    lines = [HEADER, f"FROM {source}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += _context(model)
    lines += ['LICENSE """', *_license(stated(model.directory)), '"""']
    with directory_made(place):
        write_text(place / MODELFILE, "\n".join(lines) + "\n")
    return place / MODELFILE


def _template(model: Model) -> tuple[str, list[str]]:
    """The prompt's template, and what ends an answer."""
    found = None
    if chat.has_template(model.directory):
        found = chat.known_format(model.directory)
        if found is None:
            say(
                "the tokenizer's chat template says more than turns, which is not translated: prompts are continued as text"
            )
    stops = [found.stop] if found else []
    stops += [token for token in _end_tokens(model.directory) if token not in stops]
    return (found.go if found else COMPLETION), stops


def _end_tokens(directory: Path) -> list[str]:
    """The end-of-text token as the tokenizer writes it, if it can stand in a Modelfile."""
    token: Any = _json(directory / "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return [token] if isinstance(token, str) and token.isprintable() and token and not set('"\\') & set(token) else []


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _context(model: Model) -> list[str]:
    longest = model.setting("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        return []
    if longest <= LARGEST_CONTEXT:
        return [f"PARAMETER num_ctx {longest}"]
    return [f"# the model reads up to {longest} tokens; more take more memory", f"PARAMETER num_ctx {LARGEST_CONTEXT}"]


def _license(license: License | None) -> list[str]:
    told = f"License of the base: {license or License()}"
    link = f" ({license.link})" if license and license.link and license.link.isprintable() else ""
    text = [
        told + link,
        "The model's README.md lists the licenses of the texts it was adapted to.",
        "Not for clinical decisions.",
    ]
    return [row.replace('"', "'") for row in text]
