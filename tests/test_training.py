"""The loop: micro-batches do not matter, interruptions do not matter, and what is saved is what was trained."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import write_packed
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from frbio_lite import checkpoint, training
from frbio_lite.errors import RequestError
from frbio_lite.hub import is_adapter
from frbio_lite.offload import checkpoint_layers
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Packing, Train

Make = Callable[..., Path]


def settings(**changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "full", "tokens": 64 * 4 * 10, "tokens_per_step": 64 * 4, "micro_batch_size": 2,
        "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.2}, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


def run(base: Path, packed: Path, out: Path, how: Train, seed: int = 3) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return training.train(base, PackedTokens(packed), how, Packing(sequence_length=64), seed, out)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / ("adapter_model.safetensors" if is_adapter(out) else "model.safetensors"))


def test_training_lowers_the_loss_and_logs_every_step(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    figures = run(
        make_base(), make_packed(), tmp_path / "out", settings(tokens=64 * 4 * 30, optimizer={"learning_rate": 3e-3})
    )
    seen = losses(tmp_path / "out")
    assert len(seen) == figures["steps"] == 30
    assert sum(seen[-5:]) < sum(seen[:5])
    first, last = (
        json.loads(s) for s in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()[::29]
    )
    assert set(first) == {"step", "tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"}
    assert last["tokens"] == figures["tokens"] == 64 * 4 * 30
    assert last["learning_rate"] < first["learning_rate"]
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_first_loss_is_the_mean_over_all_targets_of_the_step(
    make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base, packed = make_base(), make_packed()
    run(base, packed, tmp_path / "out", settings())
    data = PackedTokens(packed)
    batch = data.batch(training.step_windows(data, settings(), 0, seed=3))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).requires_grad_(False)
    nats, targets = 0.0, 0
    for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for a, b in itertools.pairwise(starts):
            keep = labels[a:b] != -100
            logits = model(input_ids=ids[None, a:b]).logits[0][keep]
            nats += float(torch.nn.functional.cross_entropy(logits, labels[a:b][keep], reduction="sum"))
            targets += int(keep.sum())
    assert losses(tmp_path / "out")[0] == pytest.approx(nats / targets, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_micro_batches_change_nothing_but_rounding(
    method: str, make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base, packed = make_base(), make_packed()
    for micro in (1, 3, 4):  # 3 leaves a smaller last micro-batch
        run(base, packed, tmp_path / str(micro), settings(method=method, micro_batch_size=micro))
    for micro in (1, 3):
        assert losses(tmp_path / str(micro)) == pytest.approx(losses(tmp_path / "4"), abs=1e-5)
        for name, value in weights(tmp_path / "4").items():
            # Adam divides by the gradient's own size: rounding noise of near-zero gradients shows at a fraction of the rate
            torch.testing.assert_close(weights(tmp_path / str(micro))[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "change", [{}, {"method": "lora"}, {"method": "qlora"}, {"optimizer": {"name": "adamw8bit", "learning_rate": 1e-3}}]
)
@pytest.mark.parametrize("after", [1, 6])
def test_an_interrupted_run_equals_the_uninterrupted_one(
    change: dict[str, Any],
    after: int,
    make_base: Make,
    make_packed: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, packed = make_base(), make_packed()
    how = settings(checkpoint={"every_minutes": 1e-9, "keep": 2}, **change)
    run(base, packed, tmp_path / "whole", how)
    steps = 0
    real = training.update

    def dies(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > after:
            raise ConnectionResetError("the power went")
        return real(*given)

    monkeypatch.setattr(training, "update", dies)
    with pytest.raises(ConnectionResetError):
        run(base, packed, tmp_path / "cut", how)
    monkeypatch.setattr(training, "update", real)
    torch.manual_seed(999)  # a new process has another random state
    assert run(base, packed, tmp_path / "cut", how)["resumed_at_step"] == after
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], value), name


def test_a_signal_saves_a_checkpoint_and_the_next_call_goes_on(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed()
    run(base, packed, tmp_path / "whole", settings())
    real, calls = training.update, 0

    def interrupted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(training, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(base, packed, tmp_path / "cut", settings())
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints") == tmp_path / "cut" / "checkpoints" / "step-00000003"
    assert run(base, packed, tmp_path / "cut", settings())["resumed_at_step"] == 3
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_torn_checkpoint_is_passed_over(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed()
    how = settings(checkpoint={"every_minutes": 1e-9, "keep": 2})
    run(base, packed, tmp_path / "whole", how)
    monkeypatch.setattr(training, "save_weights", lambda *given: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        run(base, packed, tmp_path / "cut", how)
    monkeypatch.undo()
    kept = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    assert [p.name for p in kept] == ["step-00000008", "step-00000009"]
    file = kept[-1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert run(base, packed, tmp_path / "cut", how)["resumed_at_step"] == 8
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_same_seed_same_weights_other_seed_others(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    base, packed = make_base(), make_packed()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(base, packed, tmp_path / name, settings(method="lora", lora={"rank": 4, "alpha": 8, "dropout": 0.1}), seed)
    a, b, c = (weights(tmp_path / n) for n in "abc")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_saved_adapter_loads_on_its_base(method: str, make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    base = make_base()
    figures = run(base, make_packed(), tmp_path / "out", settings(method=method))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out"))
    changed = [n for n, p in model.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    assert len(changed) == 2 * 7  # seven linear layers in each of two decoder layers
    assert figures["trained_parameters"] == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("tied", [True, False])
def test_full_weights_are_saved_in_fp32_and_load_with_a_tokenizer(
    tied: bool, make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base = make_base(tied=tied, dtype=torch.bfloat16)
    run(base, make_packed(), tmp_path / "out", settings())
    saved = weights(tmp_path / "out")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    assert ("lm_head.weight" in saved) == (not tied)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_activation_checkpointing_changes_nothing(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    base, packed = make_base(), make_packed()
    for name, on in (("off", False), ("on", True)):
        run(base, packed, tmp_path / name, settings(activation_checkpointing=on))
    assert losses(tmp_path / "on") == pytest.approx(losses(tmp_path / "off"), abs=1e-6)


def test_chunked_loss_equals_the_whole_one(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed(sequence_length=64)
    run(base, packed, tmp_path / "whole", settings(micro_batch_size=4))
    monkeypatch.setattr("frbio_lite.model.LOGITS_BYTES", 1)
    monkeypatch.setattr("frbio_lite.model.SMALLEST_CHUNK", 7)
    monkeypatch.setattr("frbio_lite.kernels.linear_cross_entropy.SMALLEST_CHUNK", 7)
    run(base, packed, tmp_path / "chunks", settings(micro_batch_size=4))
    assert losses(tmp_path / "chunks") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_epochs_read_every_window_that_often(make_packed: Make) -> None:
    data = PackedTokens(make_packed())
    how = settings(tokens=None, epochs=2)
    read = [
        w for step in range(training.total_steps(how, data)) for w in training.step_windows(data, how, step, seed=1)
    ]
    assert sorted(read) == sorted([*range(data.windows)] * 2)
    assert sorted(read[: data.windows]) == list(range(data.windows))


def test_learning_rate_warms_up_and_decays() -> None:
    optimizer = settings(optimizer={"learning_rate": 1.0, "warmup_ratio": 0.1}).optimizer
    rates = [training.learning_rate(optimizer, s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5, abs=0.02) and 0 < rates[99] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_sequences_beyond_the_positions_are_refused(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="beyond the model's 256 positions"):
        training.train(make_base(), PackedTokens(make_packed()), settings(), Packing(sequence_length=512), 0, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "accumulate", lambda *given: float("nan"))
    with pytest.raises(RuntimeError, match="the loss is nan at step 1"):
        run(make_base(), make_packed(), tmp_path / "out", settings())


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed()
    run(base, packed, tmp_path / "whole", settings(micro_batch_size=1))
    real = training.hidden_states

    def small_card(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if ids.shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, positions)

    monkeypatch.setattr(training, "hidden_states", small_card)
    assert run(base, packed, tmp_path / "auto", settings(micro_batch_size="auto"))["micro_batch_size"] == 1
    assert losses(tmp_path / "auto") == losses(tmp_path / "whole")
    with pytest.raises(RequestError, match=r"micro-batch of 2: set train\.micro_batch_size lower"):
        run(base, packed, tmp_path / "fixed", settings(micro_batch_size=2))


@pytest.mark.parametrize("place", [0, 40, 63])  # the first is no label, the last the end token
def test_a_token_that_the_model_does_not_know_is_refused_before_its_step(
    place: int, make_base: Make, tmp_path: Path
) -> None:
    documents = [[7] * 63 for _ in range(12)]
    documents[-1][min(place, 62)] = 320  # one beyond the tiny vocabulary
    packed = write_packed(tmp_path / "packed", documents, 64, 320 if place == 63 else 0)
    how = settings(tokens=64 * 12)
    (tmp_path / "out").mkdir()
    match = r"the packed tokens are not this model's: label 320 is not in the vocabulary of 320 .*pack them with its tokenizer"
    with pytest.raises(RequestError, match=match):
        training.train(make_base(), packed, how, Packing(sequence_length=64), 3, tmp_path / "out")
    bad = [w for w in range(12) if int(packed.batch([w])["input_ids"].max()) >= 320]
    steps = [step for step in range(3) if set(training.step_windows(packed, how, step, 3)) & set(bad)]
    assert len(losses(tmp_path / "out")) == steps[0], "the steps before it were trained"


def test_recomputed_layers_leave_no_16_bit_copies_of_their_weights() -> None:
    """The most that a micro-batch holds beside weights and gradients is a part of one bf16 copy of all weights."""
    config = Qwen3Config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4, head_dim=64,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).train()
    checkpoint_layers(model, offload=False)
    ids = torch.randint(0, 64, (1, 8))
    batch = {"input_ids": ids, "position_ids": torch.arange(8)[None], "labels": ids}
    given = 1, torch.device("cpu"), torch.bfloat16, torch.amp.GradScaler("cpu", enabled=False)
    training.accumulate(model, batch, *given)  # the gradients are there from now on
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as measured:
        training.accumulate(model, batch, *given)
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    copies = 2 * sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert 0 < max(held) < 0.6 * copies
