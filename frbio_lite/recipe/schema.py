"""What a recipe holds: its sections, their defaults and what they must be."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from frbio_lite.artifacts import canonical_hash

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Group = Literal["domain", "general"]
Method = Literal[
    "linear",
    "slerp",
    "nuslerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "breadcrumbs",
    "karcher",
    "lora_scale",
]  # those of `merge.METHODS` that need no second adapted model; named here as well, since recipes load without torch
CleaningRule = Literal[
    "repair_mojibake",
    "remove_controls",
    "remove_invisible",
    "join_hyphenated",
    "compose",
    "remove_html",
    "remove_debris",
    "remove_repeated_lines",
    "collapse_space",
    "other_language",
    "too_short",
    "repeated_text",
    "few_sentences",
    "short_lines",
    "few_stop_words",
]  # those of corpus/clean.py, repeated_lines.py, language.py and quality.py, in their order


HEAD_MODULES = ("embed_tokens", "lm_head")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(Section):
    """The model to adapt: a Hub id, a directory, or `demo`, the tiny base of the embedded world."""

    model: str
    revision: str | None = None
    backend: Literal["native", "unsloth"] = "native"  # what loads it for training
    quantize_head: bool = False  # embeddings and head in NF4 as well while training with qlora


class Source(Section):
    """One collection of documents: a Hub dataset, or files (a path, a directory, a glob, or `demo:PART[:COPIES]`)."""

    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    path: str | None = None
    text: str | Annotated[list[str], Field(min_length=1)] = "text"  # the column, or columns to join by a blank line
    document: Literal["auto", "blank-line", "line", "file"] = "auto"  # what separates documents in a .txt file
    role: Literal["domain", "replay"] = "domain"
    weight: Fraction | None = None  # share of the training tokens; none: all its text once; 0: measured, not trained on
    max_passes: Positive = 4  # times that all its text is repeated at most to reach its weight
    language: Literal["fr", "any"] = "fr"  # documents that are surely in another language are left out
    license: str | None = None
    limit: Positive | None = None  # read only the first documents of a large collection

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("a source has either `dataset` (a Hub id) or `path` (files)")
        if self.dataset is None and (self.config or self.revision):
            raise ValueError("`config` and `revision` belong to a Hub `dataset`")
        return self

    @property
    def name(self) -> str:
        """`ID`, `ID:CONFIG` or the path: what the source is counted under."""
        return f"{self.dataset}:{self.config}" if self.config else self.dataset or str(self.path)


class Licenses(Section):
    allow: list[str]


class Clean(Section):
    """The rules of `corpus.clean`: all of them, or none, and those that are left out, by name."""

    profile: Literal["clinical-fr", "none"] = "clinical-fr"
    without: list[CleaningRule] = []


class Deduplicate(Section):
    method: Literal["none", "exact", "minhash"] = "exact"
    threshold: Fraction = 0.8  # estimated Jaccard similarity of word n-grams
    ngram: Positive = 5


class Decontaminate(Section):
    tasks: list[str] = []
    files: list[str] = []  # benchmarks' texts beside those of the tasks: files, directories or globs as for a source
    ngram: Positive = 13  # words in common with a benchmark question
    action: Literal["drop", "report"] = "drop"

    @model_validator(mode="after")
    def _something_to_find(self) -> Decontaminate:
        if not self.tasks and not self.files:
            raise ValueError("names neither `tasks` nor `files` to look for: add one or remove the section")
        return self


class Corpus(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    licenses: Licenses
    clean: Clean = Clean()
    privacy: Literal["report", "mask", "drop"] = (
        "report"  # personal identifiers: counted, masked, or reason to leave out
    )
    deduplicate: Deduplicate = Deduplicate()
    decontaminate: Decontaminate | None = None
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.01
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.01

    @field_validator("clean", mode="before")
    @classmethod
    def _profile_alone(cls, clean: Any) -> Any:
        """`clean: clinical-fr` is short for `clean: {profile: clinical-fr}`."""
        return {"profile": clean} if isinstance(clean, str) else clean


class Packing(Section):
    sequence_length: Annotated[int, Field(ge=8)] = 2048
    document_mask: bool = True  # attention stays within a document


class Lora(Section):
    rank: Positive = 32
    alpha: Positive = 32
    targets: str | list[str] = "all-linear"  # or names of modules, or a regular expression for whole names
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @field_validator("targets")
    @classmethod
    def _matches(cls, targets: str | list[str]) -> str | list[str]:
        if isinstance(targets, str):
            try:
                re.compile(targets)
            except re.error as error:
                raise ValueError(f"{targets!r} is no regular expression ({error}): write a list of names") from error
        return targets

    def trains(self, module: str) -> bool:
        """Whether an adapter is put on the module of this name, such as `lm_head`; all-linear leaves the head out."""
        if isinstance(self.targets, str):
            names = module, f"model.{module}"
            return self.targets != "all-linear" and any(re.fullmatch(self.targets, name) for name in names)
        return module in {target.split(".")[-1] for target in self.targets}


class Optimizer(Section):
    """AdamW with 32-, 8- or 4-bit states; the paged ones give way to activations in a GPU's memory."""

    name: Literal["adamw", "adamw8bit", "adamw4bit", "paged_adamw", "paged_adamw8bit"] = "adamw"
    embeddings_32bit: bool = False  # adamw4bit: 32-bit states for the embeddings
    moment_rounding: Literal["stochastic", "nearest"] = "stochastic"  # adamw4bit: of the first moment
    learning_rate: Annotated[float, Field(gt=0.0)]
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0

    @model_validator(mode="after")
    def _is_read(self) -> Optimizer:
        if self.name != "adamw4bit" and (self.embeddings_32bit or self.moment_rounding != "stochastic"):
            raise ValueError("embeddings_32bit and moment_rounding concern adamw4bit: leave them out or set name to it")
        return self


class Checkpoint(Section):
    every_minutes: Annotated[float, Field(gt=0.0)] = 15.0
    keep: Positive = 2


class Train(Section):
    method: Literal["full", "lora", "qlora"]
    lora: Lora = Lora()
    tokens: Positive | None = None
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    tokens_per_step: Positive
    micro_batch_size: Positive | Literal["auto"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    activation_checkpointing: bool | Literal["offload"] = False  # offload: what is kept lies in the host's memory
    kernels: Literal["auto", "off"] = "auto"  # auto: fused kernels where the device and the model have them
    gradient_release: bool = False  # full: step each weight as its gradient is ready, and free the gradient
    optimizer: Optimizer
    checkpoint: Checkpoint = Checkpoint()

    @field_validator("kernels", mode="before")
    @classmethod
    def _unquoted(cls, kernels: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if kernels is False else kernels

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.tokens is None) == (self.epochs is None):
            raise ValueError("training has either `tokens` or `epochs`")
        return self

    @model_validator(mode="after")
    def _releases_all(self) -> Train:
        if self.gradient_release and self.method != "full":
            raise ValueError(f"gradient_release is for method: full; the gradients of {self.method} are small")
        return self


def conflict(base: Base, train: Train) -> str | None:
    """Why this training cannot have what `base` asks for, on any machine; None where it can."""
    if base.backend == "unsloth" and train.method == "full":
        return "base.backend: unsloth trains adapters here: use train.method: qlora or lora, or native"
    if not base.quantize_head:
        return None
    if train.method != "qlora":
        return f"base.quantize_head: embeddings and head in 4 bits go with train.method: qlora, not {train.method}: leave it out"
    if base.backend == "unsloth":
        return "base.quantize_head: unsloth keeps embeddings and head in 16 bits: use backend: native"
    if trained := [name for name in HEAD_MODULES if train.lora.trains(name)]:
        return (
            f"base.quantize_head: train.lora.targets trains {trained[0]}, which cannot be in 4 bits then: "
            "leave one of the two out"
        )
    return None


class Choose(Section):
    """The ratio with the highest gain in `maximise` among those that keep each group of `retain` above its bound, in points."""

    maximise: Group = "domain"
    retain: dict[Group, float] = {"general": -1.0}


class ProfileEntry(Section):
    """What the ratio is multiplied by for tensors with `filter` in their name (`*`: all): `values` spread over the layers."""

    filter: Annotated[str, Field(min_length=1)]
    values: Annotated[list[Fraction], Field(min_length=1)]


# Which methods read what, beside the ratio.
READERS: dict[str, tuple[Method, ...]] = {
    "density": ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs"),
    "gamma": ("breadcrumbs",),
    "epsilon": ("della",),
}


class Merge(Section):
    """The merges that are tried, how they are made and scored, and the rule that chooses one of them.

    With `screen: bits_per_byte` all are scored on the tasks of that kind only, and the best `top` of them, beside the
    base and the adapted model, on all tasks.
    """

    methods: Annotated[list[Method], Field(min_length=1)] = ["slerp"]
    ratios: Annotated[list[Fraction], Field(min_length=1)] = [0.0, 0.25, 0.5, 0.75, 1.0]
    choose: Choose = Choose()
    screen: Literal["bits_per_byte"] | None = None
    top: Positive = 3
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: as the base is stored
    stochastic_rounding: bool = False  # to bfloat16: what is too small for a step of it is kept on average
    base: Literal["auto", "bf16", "nf4-dequant"] = "auto"  # what an adapter of a 4-bit base is added to: auto measures
    profile: list[ProfileEntry] = []  # the first entry that matches a tensor counts; without one the ratio holds
    density: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # share of the differences that is kept
    gamma: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01  # share of the largest differences that is dropped
    epsilon: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15  # the probabilities of being kept span density ± epsilon

    @field_validator("methods", mode="before")
    @classmethod
    def _one_adapted(cls, methods: Any) -> Any:
        if isinstance(methods, list) and "model_stock" in methods:
            raise ValueError(
                "model_stock needs two or more adapted models and finds its own ratio: use `frbio merge` for it"
            )
        return methods

    @field_validator("ratios")
    @classmethod
    def _with_controls(cls, ratios: list[float]) -> list[float]:
        """0.0 (the base) and 1.0 (the adapted model) are always measured: without them there is nothing to compare with."""
        return sorted({0.0, *ratios, 1.0})

    @field_validator("density", "gamma", "epsilon")
    @classmethod
    def _is_read(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name)
        methods = info.data.get("methods", READERS[name])
        if value != cls.model_fields[name].default and not set(methods) & set(READERS[name]):
            raise ValueError(f"{name} concerns {', '.join(READERS[name])}, and merge.methods has none of them")
        return value

    @field_validator("top")
    @classmethod
    def _of_a_screen(cls, value: int, info: ValidationInfo) -> int:
        if value != cls.model_fields["top"].default and info.data.get("screen") is None:
            raise ValueError("top counts what passes the screen: set screen to bits_per_byte as well")
        return value

    @field_validator("stochastic_rounding")
    @classmethod
    def _to_bfloat16(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("dtype") in {"float16", "float32"}:
            raise ValueError("stochastic rounding is for bfloat16: float16 and float32 keep small changes without it")
        return value


Control = Literal["permuted", "prior", "contamination"]


class Eval(Section):
    """How models are scored. `controls` are reported beside the scores, and no rule or verdict counts them."""

    tasks: Annotated[list[str], Field(min_length=1)]
    shots: Annotated[int, Field(ge=0)] | Literal["paper"] = 0  # paper: as many as arXiv 2604.06903 shows for each task
    parity: bool = False  # examples as lm-evaluation-harness draws them, others before each item
    shots_from_test: bool = False  # a task without a split for examples shows other test items; its rows say so
    chat_template: bool = False  # prompts as a user's turns, examples as earlier turns, in the tokenizer's template
    limit: Positive | None = None  # items per task and split, the first ones
    bootstrap: Annotated[int, Field(ge=100)] = 10_000
    retention_margin: Annotated[float, Field(ge=0.0)] = 1.0  # points that may be lost and still count as kept
    controls: list[Control] = []

    @model_validator(mode="after")
    def _whole(self) -> Eval:
        if self.shots_from_test and not self.shots:
            raise ValueError("shots_from_test says where examples come from, and shots is 0: set shots or leave it out")
        if self.parity and (not self.shots or self.chat_template):
            raise ValueError(
                "parity says how examples are drawn, for plain prompts: set shots, and leave chat_template out"
            )
        if len(set(self.controls)) < len(self.controls):
            raise ValueError("controls names each control once")
        return self


class Recipe(Section):
    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    base: Base
    corpus: Corpus
    packing: Packing = Packing()
    train: Train
    merge: Merge = Merge()
    eval: Eval

    @field_validator("train")
    @classmethod
    def _suits_the_base(cls, train: Train, info: ValidationInfo) -> Train:
        if "base" in info.data and (why := conflict(info.data["base"], train)):
            raise ValueError(why)
        return train

    @model_validator(mode="after")
    def _whole_windows(self) -> Recipe:
        if self.train.tokens_per_step % self.packing.sequence_length:
            raise ValueError(
                f"train.tokens_per_step ({self.train.tokens_per_step}) must be a multiple of "
                f"packing.sequence_length ({self.packing.sequence_length})"
            )
        return self

    def section(self, *names: str) -> dict[str, Any]:
        """The named top-level parts as plain JSON values, for a stage's key and manifest."""
        return {name: self.model_dump(mode="json")[name] for name in names}

    @property
    def hash(self) -> str:
        return canonical_hash(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
