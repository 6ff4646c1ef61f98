"""The recipe's optimizers, and gradient release: the same training with one gradient at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from frbio_lite import training
from frbio_lite.errors import RequestError
from frbio_lite.optim import make_optimizer, trained_dtype
from frbio_lite.optim.adamw4bit import AdamW4bit
from frbio_lite.optim.release import NORM, GradientRelease
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Optimizer, Packing, Train, load_recipe

Make = Callable[..., Path]
NAMES = ["adamw", "adamw8bit", "adamw4bit"]


def optimizer_settings(name: str = "adamw", **changes: Any) -> Optimizer:
    return Optimizer.model_validate({"name": name, "learning_rate": 1e-2, **changes})


def settings(name: str, max_norm: float = 1e9, **changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "full", "tokens": 64 * 4 * 6, "tokens_per_step": 64 * 4, "micro_batch_size": 4, "precision": "fp32",
        "optimizer": {"name": name, "learning_rate": 1e-3, "warmup_ratio": 0.2, "max_grad_norm": max_norm},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


def run(base: Path, packed: Path, out: Path, how: Train, seed: int = 3) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return training.train(base, PackedTokens(packed), how, Packing(sequence_length=64), seed, out)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same(one: Path, other: Path) -> None:
    for key in ("loss", "learning_rate"):
        assert [line[key] for line in log(one)] == [line[key] for line in log(other)], key
    norms = ([line["grad_norm"] for line in log(out)] for out in (one, other))
    assert next(norms) == pytest.approx(next(norms), rel=1e-6)  # summed in another order
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(100, 64)
        self.inner = torch.nn.Linear(64, 80)
        self.frozen = torch.nn.Linear(80, 80).requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.frozen(torch.tanh(self.inner(self.embed_tokens(ids))))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adamw8bit", bitsandbytes.optim.AdamW8bit), ("adamw4bit", AdamW4bit)],
)
def test_the_recipe_names_the_optimizer(name: str, kind: type) -> None:
    model = Tiny()
    for given in (model, list(model.named_parameters())):
        optimizer = make_optimizer(given, optimizer_settings(name, weight_decay=0.2))
        assert type(optimizer) is kind
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decay == {
            id(model.embed_tokens.weight): 0.2, id(model.inner.weight): 0.2, id(model.inner.bias): 0.0
        }  # fmt: skip
        assert all(group["lr"] == 1e-2 for group in optimizer.param_groups)


def test_embeddings_keep_32_bits_by_option() -> None:
    model = Tiny()
    optimizer = make_optimizer(model, optimizer_settings("adamw4bit", embeddings_32bit=True, moment_rounding="nearest"))
    assert [group["moment_rounding"] for group in optimizer.param_groups] == ["nearest"] * 3
    model(torch.arange(100)).sum().backward()
    optimizer.step()
    assert optimizer.state[model.embed_tokens.weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state[model.inner.weight]["exp_avg"].dtype == torch.uint8
    plain = make_optimizer(model, optimizer_settings("adamw4bit"))
    plain.step()
    assert plain.state[model.embed_tokens.weight]["exp_avg"].dtype == torch.uint8


@pytest.mark.skipif(torch.cuda.is_available(), reason="paging works here")
@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw8bit"])
def test_paging_needs_a_gpu(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} pages its states"):
        make_optimizer(Tiny(), optimizer_settings(name))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw8bit"])
def test_paged_optimizers_step(name: str) -> None:
    model = Tiny().cuda()
    before = model.inner.weight.detach().clone()
    optimizer = make_optimizer(model, optimizer_settings(name))
    model(torch.arange(100, device="cuda")).sum().backward()
    optimizer.step()
    assert not torch.equal(model.inner.weight, before)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(RequestError, match="nothing to train"):
        make_optimizer(Tiny().requires_grad_(False), optimizer_settings())
    with pytest.raises(RequestError, match=r"adamw4bit cannot train this model: a parameter .* is float16"):
        make_optimizer(Tiny().half(), optimizer_settings("adamw4bit"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.optimizer.name=adam", "'adamw4bit'"),
        ("train.optimizer.embeddings_32bit=true", "concern adamw4bit"),
        ("train.optimizer.moment_rounding=nearest", "concern adamw4bit"),
        ("train.gradient_release=perhaps", "boolean"),
    ],
)
def test_a_recipe_says_nothing_that_is_not_read(override: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load_recipe("demo", [override])


def test_release_is_for_full_training() -> None:
    with pytest.raises(ValueError, match="gradient_release is for method: full"):
        settings("adamw", method="lora", gradient_release=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_released_training_is_the_ordinary_one(
    name: str, tied: bool, make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    """Where nothing is clipped: the same bits."""
    base, packed = make_base(tied=tied), make_packed()
    run(base, packed, tmp_path / "kept", settings(name))
    run(base, packed, tmp_path / "released", settings(name, gradient_release=True))
    assert_same(tmp_path / "kept", tmp_path / "released")


@pytest.mark.parametrize("change", [{"activation_checkpointing": True}, {"micro_batch_size": 3}])
def test_release_with_recomputation_and_accumulation(
    change: dict[str, Any], make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frbio_lite.model.LOGITS_BYTES", 1)  # the head is used by several chunks of the loss
    monkeypatch.setattr("frbio_lite.model.SMALLEST_CHUNK", 50)
    base, packed = make_base(), make_packed()
    run(base, packed, tmp_path / "kept", settings("adamw", **change))
    run(base, packed, tmp_path / "released", settings("adamw", gradient_release=True, **change))
    assert_same(tmp_path / "kept", tmp_path / "released")


def test_clipping_is_by_the_norm_of_the_step_before(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    base, packed = make_base(), make_packed()
    for max_norm, name in ((0.5, "released"), (0.5, "kept")):
        how = settings("adamw", max_norm, gradient_release=name == "released", tokens=64 * 4 * 3)
        run(base, packed, tmp_path / name, how)
    kept, released = log(tmp_path / "kept"), log(tmp_path / "released")
    assert kept[0]["grad_norm"] == released[0]["grad_norm"] > 0.5
    assert kept[1]["loss"] == released[1]["loss"], "the first step is clipped by its own norm"
    assert kept[2]["loss"] != released[2]["loss"]
    by_hand = clipped_by_the_step_before(base, packed, tmp_path / "kept", 0.5)
    assert [line["loss"] for line in released] == pytest.approx(by_hand, abs=1e-6)


def clipped_by_the_step_before(base: Path, packed: Path, log_of: Path, max_norm: float) -> list[float]:
    """The losses of three steps, gradients kept and scaled by hand."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    data, how = PackedTokens(packed), settings("adamw", max_norm, tokens=64 * 4 * 3)
    optimizer = make_optimizer(model, how.optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    norm, losses = None, []
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = log(log_of)[step]["learning_rate"]
        batch = data.batch(training.step_windows(data, how, step, seed=3))
        losses.append(training.accumulate(model, batch, 4, torch.device("cpu"), torch.float32, scaler))
        gradients = [p.grad for p in model.parameters()]
        own = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        for gradient in gradients:
            gradient *= min(1.0, max_norm / ((own if norm is None else norm) + 1e-6))
        norm = own
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_released_run_equals_the_uninterrupted_one(
    name: str, make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed()
    how = settings(name, 0.5, gradient_release=True, checkpoint={"every_minutes": 1e-9, "keep": 2})
    run(base, packed, tmp_path / "whole", how)
    real, steps = training.update, 0

    def dies(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 3:  # its weights are new, its norm is not taken
            raise ConnectionResetError("the power went")
        return real(*given)

    monkeypatch.setattr(training, "update", dies)
    with pytest.raises(ConnectionResetError):
        run(base, packed, tmp_path / "cut", how)
    monkeypatch.setattr(training, "update", real)
    assert run(base, packed, tmp_path / "cut", how)["resumed_at_step"] == 3
    assert_same(tmp_path / "cut", tmp_path / "whole")


def released(model: torch.nn.Module, name: str = "adamw", max_norm: float = 1e9) -> GradientRelease:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return GradientRelease(make_optimizer(model, optimizer_settings(name)), scaler, max_norm)


@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_exists_at_a_time(name: str) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(70, 70) for _ in range(6)))
    parameters = list(model.parameters())
    alive: list[int] = []

    def count(parameter: Tensor) -> None:
        alive.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(count)
    release = released(model, name)
    before = [p.detach().clone() for p in parameters]
    release.begin(last=True)
    model(torch.randn(5, 70)).square().sum().backward()
    assert len(alive) == len(parameters)
    assert max(alive) == max(p.nbytes for p in parameters)
    assert all(p.grad is None for p in parameters)
    assert all(not torch.equal(old, p) for old, p in zip(before, parameters, strict=True))
    assert release.begun and release.finish() > 0 and not release.begun


def test_measuring_changes_no_weight_and_takes_the_norm() -> None:
    model = Tiny()
    release = released(model, max_norm=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert release.norm is None
    model(torch.arange(50)).square().sum().backward()
    expected = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    with release.measuring():
        release.begin(last=True)
        model(torch.arange(50)).square().sum().backward()
    assert release.norm == release.optimizer.state_dict()["param_groups"][0][NORM] == expected
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not release.optimizer.state


def test_a_parameter_that_the_last_micro_batch_leaves_out_is_stepped() -> None:
    one, two = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
    release = released(torch.nn.ModuleList([one, two]))
    before = one.weight.detach().clone()
    release.begin(last=False)
    (one(torch.ones(1, 5)) + two(torch.ones(1, 5))).sum().backward()
    assert one.weight.grad is not None
    release.begin(last=True)
    two(torch.ones(1, 5)).sum().backward()
    norm = release.finish()
    assert one.weight.grad is None and not torch.equal(one.weight, before)
    # ones for the weight and the bias of the first, twos for those of the second
    assert norm == pytest.approx((30 + 4 * 30) ** 0.5)


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = training.prepare_model

    def watched(*given: Any) -> Any:
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(training, "prepare_model", watched)
    monkeypatch.setattr(training, "summed_loss", lambda model, hidden, labels: hidden.sum() * torch.nan)
    base = make_base()
    with pytest.raises(RuntimeError, match="the loss is nan at step 1"):
        run(base, make_packed(), tmp_path / "out", settings("adamw", gradient_release=True))
    model = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_a_norm_that_is_not_finite_clips_no_later_step() -> None:
    model = torch.nn.Linear(3, 3)
    release = released(model)
    for value in (1.0, torch.inf):
        release.begin(last=True)
        (model(torch.ones(1, 3)) * value).sum().backward()
        last = release.finish()
    assert last == torch.inf and release.norm == pytest.approx(12**0.5)


def test_memory_that_runs_out_within_a_release_ends_the_run(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the weights are new: the step cannot be tried again with a smaller micro-batch."""
    real, steps = GradientRelease._step, 0

    def small_card(self: GradientRelease, parameter: Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, parameter)

    monkeypatch.setattr(GradientRelease, "_step", small_card)
    how = settings("adamw", gradient_release=True, micro_batch_size="auto")
    with pytest.raises(RequestError, match="does not hold a micro-batch of 4"):
        run(make_base(), make_packed(), tmp_path / "out", how)


def test_where_release_cannot_be_right_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = make_optimizer(Tiny(), optimizer_settings())
    off = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(RequestError, match="fp16 training skips a step"):
        GradientRelease(optimizer, torch.amp.GradScaler("cpu"), 1.0)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RequestError, match="several processes"):
            GradientRelease(optimizer, off, 1.0)
    spread = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")])
    with pytest.raises(RequestError, match="several devices"):
        GradientRelease(torch.optim.AdamW(spread.parameters()), off, 1.0)


def test_full_training_in_bf16_keeps_small_updates_by_stochastic_rounding(
    make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base, packed = make_base(), make_packed()
    constant = {"name": "adamw4bit", "learning_rate": 1e-5, "schedule": "constant", "weight_decay": 0.0}
    how = settings("adamw4bit", precision="bf16", optimizer=constant)
    run(base, packed, tmp_path / "out", how)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    name = max(after, key=lambda name: after[name].numel())
    old, new = before[name].to(torch.bfloat16).float(), after[name].float()
    assert after[name].numel() > 4096
    moved = old != new
    # six steps of 1e-5 on weights of about 0.02, whose step in bf16 is 1e-4: to nearest, all but the tiniest would stay
    assert 0.05 < moved[old.abs() > 0.01].float().mean() < 0.9
    assert trained_dtype(how.optimizer, torch.float16) == trained_dtype(how.optimizer, torch.float32) == torch.float32
    assert trained_dtype(settings("adamw").optimizer, torch.bfloat16) == torch.float32
