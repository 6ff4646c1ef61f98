"""A tokenizer's chat template in the language of Ollama's templates, where that can be checked.

The template is rendered with sample conversations and compared with each format that is known here. One that says more than
turns (tools, dates, thoughts) fits none of them, and is not guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frbio_lite.errors import RequestError

Turns = Sequence[tuple[str, str]]
SAMPLES: tuple[Turns, ...] = (
    (("user", "Où naît le nerf phrénique ?"),),
    (("system", "Réponds en français."), ("user", "Bonjour.")),
    (("user", "Bonjour."), ("assistant", "Bonjour, que puis-je faire ?"), ("user", "Rien.")),
)


@dataclass(frozen=True)
class Format:
    """How turns are written: `turn` in Python's format language, `go` the whole in Ollama's; `stop` ends an answer."""

    turn: str
    answer: str
    stop: str

    def render(self, turns: Turns) -> str:
        return "".join(self.turn.format(role=role, content=content) for role, content in turns) + self.answer

    @property
    def go(self) -> str:
        turn = self.turn.format(role="{{ .Role }}", content="{{ .Content }}")
        return "{{ range .Messages }}" + turn + "{{ end }}" + self.answer


FORMATS = (
    Format("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),  # ChatML
    Format(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),  # Llama 3
)


def has_template(directory: Path) -> bool:
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def known_format(directory: Path) -> Format | None:
    """The format of the tokenizer's chat template; None where it is none of FORMATS. Raises RequestError for no tokenizer."""
    from transformers import AutoTokenizer  # its templates run in jinja2's sandbox

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{directory} has no usable tokenizer: {str(error).splitlines()[0]}") from error
    try:
        written = [_rendered(tokenizer, turns) for turns in SAMPLES]
    except Exception:  # a template may raise anything, its own messages about roles included
        return None
    return next((f for f in FORMATS if written == [f.render(turns) for turns in SAMPLES]), None)


def _rendered(tokenizer: Any, turns: Turns) -> str:
    """As the tokenizer would write it, without the begin-of-text token, which a server adds by itself."""
    messages = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(tokenizer.bos_token or "")
