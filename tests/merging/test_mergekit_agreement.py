"""The same configuration files through mergekit itself: every element of every tensor, and both against fp64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import CLASSES, FRENCH, SHAPE, build_tokenizer
from torch import Tensor

from frbio_lite.merging import Rounding, merge_models, open_inputs, output_dtype
from frbio_lite.merging.mergekit import plan, read_config
from frbio_lite.merging.mergekit_parameters import METHODS

from . import tiny_models
from .mergekit_cases import BIOMISTRAL, CASES, FILES, FLOAT, SEED, Case, uniforms

pytest.importorskip("mergekit")
pytestmark = pytest.mark.slow

SIZES = {"a": 0.01, "b": 0.03, "c": 0.05}
Tensors = dict[str, Tensor]


class Sparsify:
    """What mergekit's sparsification sees as torch: stable sorts, and our uniforms in place of its own draws."""

    def __init__(self) -> None:
        self.name, self.model, self.stable = "", -1, True

    def __getattr__(self, attribute: str) -> Any:
        return getattr(torch, attribute)

    def argsort(self, values: Tensor, **how: Any) -> Tensor:
        return torch.argsort(values, stable=self.stable, **how)

    def sort(self, values: Tensor, **how: Any) -> Any:
        return torch.sort(values, stable=self.stable, **how)

    def bernoulli(self, probabilities: Tensor) -> Tensor:
        return (uniforms(self.name, self.model, tuple(probabilities.shape)) < probabilities).to(probabilities.dtype)


@pytest.fixture(scope="module")
def sparsify() -> Iterator[Sparsify]:
    from mergekit import sparsify as module
    from mergekit.merge_methods import generalized_task_arithmetic as method

    proxy, of_group, of_tensor = Sparsify(), method.GeneralizedTaskArithmeticMerge.merge_group, method.sparsify

    def merge_group(self: Any, group: Any, /, **parameters: Any) -> Tensor:
        proxy.name, proxy.model = group.metadata.name, -1
        return of_group(self, group, **parameters)

    def sparsify_(*given: Any, **how: Any) -> Tensor:
        proxy.model += 1
        return of_tensor(*given, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "torch", proxy)
        patch.setattr(method, "sparsify", sparsify_)
        patch.setattr(method.GeneralizedTaskArithmeticMerge, "merge_group", merge_group)
        yield proxy


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base in bf16 with weights of realistic size, and three models at 1, 3 and 5 % of it."""
    directory = tmp_path_factory.mktemp("models")
    settings = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, head_dim=16, vocab_size=300)
    model = tiny_models.new_model(60, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 0.02 / 0.15)
    model.bfloat16().save_pretrained(directory / "base")
    adapted = {
        n: tiny_models.save_adapted(directory / n, directory / "base", 61 + i, size)
        for i, (n, size) in enumerate(SIZES.items())
    }
    return {"base": directory / "base", **adapted}


def by_mergekit(text: str, out: Path) -> Tensors:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(device="cpu", quiet=True, write_model_card=False, copy_tokenizer=False)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    return tiny_models.tensors(out)


def by_us(text: str, out: Path) -> Tensors:
    file = out.with_suffix(".yaml")
    file.write_text(text, encoding="utf-8")
    config = read_config(file)
    directories = [Path(r.name) for r in config.models()]
    inputs = open_inputs(directories[0], directories[1:], vocabulary=config.vocabulary)
    merge_models(plan(config, inputs, SEED), out, rounding=Rounding(output_dtype(config.written)))
    return tiny_models.tensors(out)


def in_steps(difference: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """In bfloat16 steps at the largest magnitude of the operands, fp64."""
    largest = torch.stack([o.double().abs() for o in operands]).amax(0).clamp(min=2.0**-126)
    return difference.double().abs() / torch.exp2(torch.floor(torch.log2(largest)) - 7)


@dataclass(frozen=True)
class Compared:
    """Of all elements: the share that differs, and the largest errors in bf16 steps of the largest operand.

    `unsure` is the share of elements whose sign was elected by less than rounding can tell, and which are left out.
    """

    differing: float
    apart: float
    ours: float
    theirs: float
    unsure: float


def compare(case: Case, ours: Tensors, theirs: Tensors, sources: list[Tensors], precision: torch.dtype) -> Compared:
    assert ours.keys() == theirs.keys()
    sources = sources[: len(case.weights) + 1]
    draw = 2.0**-5 if precision == torch.bfloat16 else 2.0**-18
    total, differing, unsure, largest = 0, 0, 0, np.zeros(3)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.bfloat16
        exact, sure = case.reference([s[name] for s in sources], name, precision)
        operands = [*(s[name] for s in sources), tensor, exact]
        found = torch.stack(
            [
                in_steps(x.double() - y.double(), operands)
                for x, y in ((tensor, theirs[name]), (tensor, exact), (theirs[name], exact))
            ]
        )
        total += tensor.numel()
        differing += int((found[0] > 0).sum())
        unsure += int((sure < draw).sum())
        largest = np.maximum(largest, (found * (sure >= draw)).flatten(1).amax(1).numpy())
    return Compared(differing / total, *largest.tolist(), unsure / total)


def case_compared(case: Case, models: dict[str, Path], out: Path, dtype: str) -> Compared:
    text = case.text(models, dtype)
    theirs, ours = by_mergekit(text, out / "theirs"), by_us(text, out / "ours")
    sources = [tiny_models.tensors(path) for path in models.values()]
    return compare(case, ours, theirs, sources, torch.float32 if dtype == FLOAT else torch.bfloat16)


@pytest.mark.parametrize("name", CASES)
def test_where_mergekit_computes_in_fp32(models: Any, sparsify: Any, tmp_path: Path, name: str) -> None:
    """The same bits, but where a value lies halfway between two steps, as it often does after division by 1.2."""
    found = case_compared(CASES[name], models, tmp_path, FLOAT)
    assert found.ours <= 0.5001 and found.theirs <= 0.5001 and found.apart <= 1.0
    assert found.differing <= (0.02 if CASES[name].method in ("linear", "task_arithmetic") else 2e-4)
    assert found.unsure < 1e-3


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("della")])
def test_where_mergekit_computes_in_bfloat16(models: Any, sparsify: Any, tmp_path: Path, name: str) -> None:
    """We stay within half a step of fp64; mergekit adds the roundings of its intermediate results."""
    found = case_compared(CASES[name], models, tmp_path, "dtype: bfloat16\n")
    assert found.ours <= 0.5001
    assert found.apart <= CASES[name].limit and found.differing <= CASES[name].differing
    assert found.unsure < 0.03


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_in_bfloat16(models: Any, sparsify: Any, tmp_path: Path, name: str) -> None:
    """mergekit rounds the probabilities too, to 3 digits: it drops a few other elements, the rest agrees."""
    assert 0.0 < case_compared(CASES[name], models, tmp_path, "dtype: bfloat16\n").differing < 0.08


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_equal_magnitudes_at_the_threshold(models: Any, sparsify: Sparsify, tmp_path: Path, name: str) -> None:
    """mergekit keeps any of them, we the first: nothing else differs."""
    case = CASES[name]
    sparsify.stable = False
    try:
        text = case.text(models, FLOAT)
        theirs, ours = by_mergekit(text, tmp_path / "theirs"), by_us(text, tmp_path / "ours")
    finally:
        sparsify.stable = True
    sources = [tiny_models.tensors(path) for path in models.values()][:3]
    differing = 0
    for tensor_name, tensor in ours.items():
        at_a_threshold = torch.zeros(tensor.shape, dtype=torch.bool)
        for i in range(2):
            difference = sources[i + 1][tensor_name].float() - sources[0][tensor_name].float()
            assert case.keep is not None
            kept = case.keep(tensor_name, i, difference).bool()
            for edge in _edges(difference.abs(), kept):
                at_a_threshold |= difference.abs() == edge
        off = tensor != theirs[tensor_name]
        differing += int(off.sum())
        assert not bool((off & ~at_a_threshold).any()), tensor_name
    assert differing > 0  # else the test says nothing


def _edges(magnitude: Tensor, kept: Tensor) -> list[Tensor]:
    return [magnitude[kept].min(), magnitude[kept].max()]


@pytest.mark.parametrize("name", FILES)
def test_files(models: Any, sparsify: Any, tmp_path: Path, name: str) -> None:
    text = FILES[name].format(**models)
    same(by_us(text, tmp_path / "ours"), by_mergekit(text, tmp_path / "theirs"), 1e-3)


def same(ours: Tensors, theirs: Tensors, share: float) -> None:
    """All of the result but a share within one step, measured at the results themselves."""
    assert ours.keys() == theirs.keys()
    differing = 0
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        off = in_steps(tensor.double() - theirs[name].double(), (tensor, theirs[name]))
        assert off.max() <= 1.0, name
        differing += int((off > 0.0).sum())
    assert differing <= share * sum(t.numel() for t in ours.values())


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_other_architectures(tmp_path: Path, sparsify: Any, kind: str) -> None:
    config_class, model_class, extra = CLASSES[kind]
    paths = {}
    for i, name in enumerate(("base", "a", "b")):
        torch.manual_seed(80)
        model = model_class(config_class(vocab_size=96, tie_word_embeddings=kind == "gemma3", **SHAPE, **extra))
        torch.manual_seed(81 + i)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.0 if name == "base" else 0.002))
        paths[name] = tmp_path / name
        model.bfloat16().save_pretrained(paths[name])
    text = BIOMISTRAL.replace("[0, 4]", "[0, 2]").format(**paths)
    same(by_us(text, tmp_path / "slerp"), by_mergekit(text, tmp_path / "slerp theirs"), 1e-3)
    text = CASES["ties"].text(paths, FLOAT)
    same(by_us(text, tmp_path / "ties"), by_mergekit(text, tmp_path / "ties theirs"), 1e-3)


def test_another_vocabulary(tmp_path: Path, sparsify: Any) -> None:
    """`tokenizer_source: base`: rows go to the base's tokens, and a token that only the base has keeps its row."""
    paths = {}
    for i, (name, texts) in enumerate((("base", FRENCH), ("b", [t[::-1] for t in FRENCH] + FRENCH[:1]))):
        tokenizer = build_tokenizer(texts, 290 + 10 * i)
        tiny_models.save_base(
            tmp_path / name, 90 + i, dtype=torch.bfloat16, num_hidden_layers=4, vocab_size=len(tokenizer)
        )
        tokenizer.save_pretrained(tmp_path / name)
        paths[name] = tmp_path / name
    text = BIOMISTRAL.format(**paths).replace("slerp", "slerp\ntokenizer_source: base")
    same(by_us(text, tmp_path / "ours"), by_mergekit(text, tmp_path / "theirs"), 1e-3)


def test_parameters_are_those_of_mergekit() -> None:
    from mergekit import merge_methods
    from mergekit.merge_methods.base import ParameterScope

    scopes = {ParameterScope.SHARED: "merge", ParameterScope.INPUT: "model", ParameterScope.NON_BASE: "adapted"}
    for name, method in METHODS.items():
        theirs = {
            p.name: (p.value_type, scopes[p.scope], None if p.required else p.default)
            for p in merge_methods.get(name).spec.parameters
        }
        assert {k: (p.type, p.scope, p.default) for k, p in method.parameters.items()} == theirs, name
