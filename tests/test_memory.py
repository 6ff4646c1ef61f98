"""The memory plan: each part against real tensors at small size, the shipped recipes at full size on the meta device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes
import pytest
import torch
from tiny import CLASSES, SHAPE
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from frbio_lite import memory
from frbio_lite.errors import RequestError
from frbio_lite.memory import CARDS, GIB, Card, Job, find_card, fixed, largest_micro_batch, plan, skeleton, trace
from frbio_lite.memory.plan import _plan
from frbio_lite.model import attach_lora, load_model
from frbio_lite.nf4_head import quantize_head
from frbio_lite.offload import checkpoint_layers
from frbio_lite.optim import make_optimizer
from frbio_lite.recipe import Base, Packing, Train, load_recipe

Make = Callable[..., Path]
CPU = torch.device("cpu")
LENGTH = 48


@pytest.fixture(autouse=True)
def _any_shape_in_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 4-bit kernel that bitsandbytes takes on some processors knows multiples of 32 outputs and 64 inputs only."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


def settings(**changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "full", "tokens": 4096, "tokens_per_step": LENGTH * 8, "kernels": "off",
        "optimizer": {"learning_rate": 1e-3}, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


def configuration(kind: str, layers: int = 2, tied: bool = True, **changes: Any) -> Any:
    config_class, _, extra = CLASSES[kind]
    ids = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    shape = {**SHAPE, **extra, **ids, "num_hidden_layers": layers, "tie_word_embeddings": tied, **changes}
    if kind == "gemma3":
        shape["layer_types"] = (["sliding_attention", "full_attention"] * layers)[:layers]
    return config_class(**shape)


def real(config: Any, how: Train, dtype: torch.dtype = torch.float32) -> Any:
    """A model with memory, of a configuration, as the skeleton builds it."""
    model = skeleton.build(config, how, dtype)
    skeleton.materialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(0.0, 0.02)
        for buffer in model.buffers():
            buffer.fill_(0.5)
    return model.train()


def size_of(tensors: list[Tensor], without: list[Tensor]) -> int:
    """Bytes of all storages of tensors, each once, beside those of others."""
    known = {t.untyped_storage().data_ptr() for t in without}
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for place, size in sizes.items() if place not in known)


# What stays from step to step


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_weights_constants_and_adapters_are_those_of_a_loaded_model(
    kind: str, method: str, tied: bool, make_base: Make
) -> None:
    base, how = make_base(kind, tied=tied), settings(method=method)
    dtype = torch.float32 if method == "full" else torch.bfloat16
    loaded = load_model(base, dtype=dtype, device=CPU, nf4=method == "qlora")
    config = loaded.config
    if method != "full":
        loaded = attach_lora(loaded, how.lora, 0)
    adapters = [p for n, p in loaded.named_parameters() if "lora_" in n]
    states = [p.quant_state for p in loaded.parameters() if hasattr(p, "quant_state")]
    held = [t for s in states for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)]
    parts = fixed.weight_parts(skeleton.build(config, how, dtype))
    everything = [*loaded.parameters(), *loaded.buffers()]
    assert parts["adapters"] == sum(p.numel() * 4 for p in adapters)
    assert parts["quantisation constants"] == sum(t.numel() * t.element_size() for t in held)
    assert parts["weights"] == size_of(everything, adapters)
    if method != "full":
        assert len(adapters) == 2 * 7 * 2


def test_a_quantised_head_is_counted(make_base: Make) -> None:
    loaded = load_model(make_base("gemma3"), dtype=torch.float32, device=CPU, nf4=True)
    quantize_head(loaded, torch.float32)
    parts = fixed.weight_parts(
        skeleton.build(loaded.config, settings(method="qlora"), torch.float32, quantize_head=True)
    )
    assert parts == fixed.weight_parts(attach_lora(loaded, settings().lora, 0))


def test_nf4_takes_0_516_bytes_a_weight() -> None:
    parts = plan(Job.of(load_recipe("qwen3-8b-qlora-24gb", ["train.micro_batch_size=1"])), find_card("4090")).parts
    embeddings = 2 * 151_936 * 4096 * 2
    linear = 36 * (4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 12_288)
    held = parts["weights"] + parts["quantisation constants"] - embeddings
    assert held / linear == pytest.approx(0.516, abs=0.001)
    assert parts["weights"] + parts["quantisation constants"] == pytest.approx(6.07e9, rel=0.005)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adamw4bit"])
def test_gradients_and_optimizer_states_are_those_of_a_step(name: str) -> None:
    how = settings(optimizer={"name": name, "learning_rate": 1e-3, "embeddings_32bit": False})
    model = real(configuration("qwen3", intermediate_size=200), how)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = make_optimizer(model, how.optimizer)
    optimizer.step()
    states = [t for state in optimizer.state.values() for key, t in state.items()
              if isinstance(t, Tensor) and key != "step" and not key.startswith("qmap")]  # fmt: skip
    assert len(states) >= 2 * len(list(model.parameters()))
    assert fixed.optimizer_bytes(model, how.optimizer) == (sum(t.numel() * t.element_size() for t in states), 0)
    assert fixed.gradient_bytes(model) == sum(p.grad.numel() * 4 for p in model.parameters())


def test_embeddings_in_32_bits_and_paged_states() -> None:
    model = real(configuration("qwen3", vocab_size=5000), settings())
    sizes = {
        name: fixed.optimizer_bytes(model, settings(optimizer={"learning_rate": 1e-3, **how}).optimizer)
        for name, how in {
            "four": {"name": "adamw4bit"},
            "wide": {"name": "adamw4bit", "embeddings_32bit": True},
            "paged": {"name": "paged_adamw"},
            "whole": {"name": "adamw"},
        }.items()
    }
    embedding = 5000 * 32
    assert sizes["wide"][0] - sizes["four"][0] == 8 * embedding - 2 * embedding // 128 * 68
    assert sizes["paged"] == (sizes["whole"][0] - 8 * embedding, 8 * embedding)


# What a micro-batch allocates


def ready(config: Any, how: Train, dtype: torch.dtype, windows: int) -> tuple[Any, Any, list[Tensor]]:
    """(model, batch, all that is there before)."""
    model = real(config, how, dtype)
    batch = trace._batch(model, windows, LENGTH, True)
    for tensor in tree_leaves(batch):
        if tensor.dtype == torch.bool:
            tensor.copy_(torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    constants = [t for p in model.parameters() for t in skeleton.constants(p)]
    return model, batch, [*model.parameters(), *model.buffers(), *grads, *constants, *tree_leaves(batch)]


@pytest.fixture
def cpu_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace takes the attention of a CPU, so that it can be compared with one."""
    plain = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(trace, "cuda_attention", lambda *given, capability, **how: plain(*given, **how))


@pytest.mark.usefixtures("cpu_attention")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_kept_activations_are_what_autograd_saves(kind: str, method: str, dtype: torch.dtype) -> None:
    if method == "qlora" and dtype == torch.bfloat16 and kind != "qwen3":
        pytest.skip("bitsandbytes' bf16 on a CPU is slow: one architecture is enough")
    config, how = configuration(kind, layers=5, vocab_size=4000), settings(method=method)  # the peak is in the loss
    model, batch, before = ready(config, how, dtype, windows=2)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    enabled = torch.is_autocast_enabled
    cuda_like = mock.patch.object(torch, "is_autocast_enabled", lambda *kind: enabled(*(kind or ("cpu",))))
    mixed = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with cuda_like, mixed, saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = trace.hidden_states(model, *batch)
    parts, _ = trace.trace(config, how, dtype, 80, 2, LENGTH)
    inputs = size_of(tree_leaves(batch), [])
    assert parts[trace.LOSS] > 0 == parts[trace.LAYER]
    if method == "full":  # each layer's matrices, cast for the products
        layers = [p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
        assert parts[trace.CASTS] == (0 if dtype == torch.float32 else 2 * sum(layers))
    counted = parts[trace.KEPT] + parts[trace.CASTS] - inputs
    assert counted == pytest.approx(size_of([*saved, hidden], before), rel=0.01)


def peak_of(model: Any, batch: Any, before: list[Tensor], dtype: torch.dtype) -> int:
    """The most bytes alive beside what was there, on real tensors."""
    live = trace.Live(before)
    live.live[trace.KEPT] = live.total = size_of(tree_leaves(batch), [])
    with live:
        trace.run(model, live, *batch, dtype=dtype)
    return live.peak


@pytest.mark.usefixtures("cpu_attention")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_trace_of_three_layers_stands_for_all(method: str, checkpointing: bool) -> None:
    config = configuration("qwen3", layers=7, hidden_size=64)
    how = settings(method=method, activation_checkpointing=checkpointing)
    for windows in (1, 4):
        expected = peak_of(*ready(config, how, torch.float32, windows), torch.float32)
        parts, _ = trace.trace(config, how, torch.float32, 80, windows, LENGTH)
        assert sum(parts.values()) == pytest.approx(expected, rel=0.02)


@pytest.mark.usefixtures("cpu_attention")
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_the_peak_is_that_of_the_allocator(kind: str, tmp_path: Path) -> None:
    config, how = configuration(kind, layers=4, hidden_size=64, vocab_size=1000), settings()
    model, batch, _ = ready(config, how, torch.float32, windows=4)
    live = trace.Live([])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trace.run(model, live, *batch, dtype=torch.float32)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    totals = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    held = peak = 0
    for _, size in sorted(totals):
        held += size
        peak = max(peak, held)
    parts, _ = trace.trace(config, how, torch.float32, 80, 4, LENGTH)
    assert sum(parts.values()) - size_of(tree_leaves(batch), []) == pytest.approx(peak, rel=0.02)


def test_attention_keeps_what_cudas_kernels_keep() -> None:
    query = torch.empty(2, 4, LENGTH, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    key, value = (torch.empty(2, 2, LENGTH, 16, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in "kv")
    mask = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool, device="meta")

    def saved(capability: int, *inputs: Tensor, **how: Any) -> list[tuple[int, ...]]:
        kept: list[Tensor] = []
        with torch.device("meta"), saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = trace.cuda_attention(*inputs, capability=capability, **how)
        assert out.shape == (2, 4, LENGTH, 16)
        return [tuple(t.shape) for t in kept]

    heads = (2, 4, LENGTH, 16)
    flash = saved(80, query, key, value, is_causal=True, enable_gqa=True)
    assert flash.count(heads) == 2 and (2, 2, LENGTH, 16) in flash  # keys and values are not repeated
    wide = [t.repeat_interleave(2, 1) for t in (key, value)]
    masked = saved(80, query, *wide, attn_mask=mask)
    assert (
        masked.count(heads) == 4 and (2, 4, LENGTH, LENGTH) in masked
    )  # queries, keys, values, output; the mask as a bias
    assert saved(75, query, key, value, is_causal=True, enable_gqa=True).count(heads) == 4


def test_offloading_leaves_inputs_of_layers_to_the_host() -> None:
    config = configuration("qwen3", layers=9, hidden_size=64)
    kept, host = {}, {}
    for how in (False, True, "offload"):
        parts, host[how] = trace.trace(
            config, settings(activation_checkpointing=how), torch.float32, 80, 2, LENGTH, document_mask=False
        )
        kept[how] = parts[trace.KEPT]
    layer_input = 2 * LENGTH * 64 * 4
    assert host == {False: 0, True: 0, "offload": 9 * layer_input}
    assert kept["offload"] < 4 * layer_input < 9 * layer_input <= kept[True] < kept[False]


def test_what_is_offloaded_does_not_grow_with_the_layers() -> None:
    """The inputs of all layers are never on the card together, not even while the forward pass runs."""
    how = settings(method="full", activation_checkpointing="offload")
    found = [
        trace.trace(configuration("qwen3", layers=n, vocab_size=300), how, torch.float32, 80, 8, LENGTH)[0]
        for n in (6, 60)
    ]
    assert sum(found[0].values()) == sum(found[1].values())


def test_kernels_keep_less() -> None:
    config = configuration("qwen3", layers=6, hidden_size=64, intermediate_size=256)
    how = settings(method="lora")
    plain, fused = (
        trace.trace(config, how, torch.bfloat16, 80, 2, LENGTH, kernels=kernels)[0] for kernels in (False, True)
    )
    assert sum(fused.values()) < 0.8 * sum(plain.values())
    assert torch.nn.functional.scaled_dot_product_attention is not trace.cuda_attention  # nothing stays patched
    assert torch.ones(1).data_ptr() != torch.ones(1).untyped_storage()._cdata


def test_released_gradients_are_counted_one_at_a_time() -> None:
    config = configuration("qwen3", layers=6)
    held, freed = (
        trace.trace(config, settings(), torch.float32, 80, 1, LENGTH, accumulates=a)[0] for a in (True, False)
    )
    assert sum(freed.values()) <= sum(held.values()) + 4 * 320 * 32


# Plans


def tiny_job(**changes: Any) -> Job:
    config = configuration("qwen3", layers=6, hidden_size=64, vocab_size=1000)
    return Job(
        config, Base(model="x"), settings(tokens_per_step=LENGTH * 64, **changes), Packing(sequence_length=LENGTH)
    )


def test_released_gradients_need_a_whole_step_in_one_micro_batch() -> None:
    released = tiny_job(
        gradient_release=True, activation_checkpointing=True, optimizer={"name": "adamw4bit", "learning_rate": 1e-3}
    )
    step, one = (_plan(released, CARDS[0], windows) for windows in (64, 1))
    assert step.parts["gradients"] == 0 < one.parts["gradients"]
    assert memory.smallest_plan(released, CARDS[0]).needed == min(step.needed, one.needed)
    enough, short = Card("x", step.needed, 86), Card("x", step.needed - 1, 86)
    assert largest_micro_batch(released, enough) == 64 and largest_micro_batch(released, short) < 64
    kept = tiny_job(activation_checkpointing=True, optimizer={"name": "adamw4bit", "learning_rate": 1e-3})
    for card in (short, Card("x", one.needed, 86)):  # what keeps its gradients fits as if none were ever released
        assert largest_micro_batch(released, card) == largest_micro_batch(kept, card)


def test_the_largest_micro_batch_is_the_largest_that_fits() -> None:
    job = tiny_job()
    needs = {windows: _plan(job, CARDS[0], windows).needed for windows in (1, 23, 64)}
    for windows, needed in needs.items():
        assert largest_micro_batch(job, Card("x", needed, 86)) in (windows, windows - 1)  # the chord may give one less
        assert largest_micro_batch(job, Card("x", needed - 1, 86)) < windows
    assert largest_micro_batch(job, Card("x", 2**40, 86)) == 64
    assert plan(job, Card("x", 2**40, 86)).micro_batches_per_step == 1
    assert not plan(job, Card("x", 2**20, 86)).fits


def test_what_is_proposed_was_computed() -> None:
    job = tiny_job()
    card = Card("x", memory.smallest_plan(job, CARDS[0]).needed - 1, 86)
    found = memory.changes(job, card)
    assert {"train.activation_checkpointing": True} in [c.overrides for c in found]
    assert {"train.method": "qlora", "train.gradient_release": False} in [c.overrides for c in found]
    for change in found:
        assert change.fits == (change.needed <= card.memory)
    checkpointed = memory.smallest_plan(tiny_job(activation_checkpointing=True), card).needed
    assert next(c for c in found if c.overrides == {"train.activation_checkpointing": True}).needed == checkpointed


def test_gradient_release_counts_only_where_it_helps() -> None:
    job = tiny_job(gradient_release=True)
    assert _plan(job, CARDS[0], 64).parts["gradients"] == 0
    assert _plan(job, CARDS[0], 32).parts["gradients"] > 0


def test_what_cannot_be_counted_is_a_reserve() -> None:
    parts = dict(plan(tiny_job(micro_batch_size=1), find_card("3060")).parts)
    assert parts.pop("CUDA context") == memory.CONTEXT
    reserve = parts.pop("allocator's reserve")
    assert reserve == int(0.05 * sum(parts.values())) > 0


def test_nothing_is_left_alive_but_gradients() -> None:
    config = configuration("llama", layers=9)
    model = skeleton.build(config, settings(activation_checkpointing=True), torch.float32, layers=3)
    with trace.FakeTensorMode(), trace.on_a_card(80):
        skeleton.materialise(model)
        known = trace._prepare_gradients(model.train(), True)
        batch = trace._batch(model, 2, LENGTH, True)
        live = trace.Live([*known, *batch], 7)
        for number, layer in enumerate(model.model.layers):
            layer.register_forward_pre_hook(lambda *_, number=number: live.enter(number))
        with live:
            trace.run(model, live, *batch, dtype=torch.float32)
    assert live.peak > 9 * 2 * LENGTH * 32 * 4  # the input of each layer
    assert live.total == sum(live.live.values()) < 1000


def test_precision_follows_the_card() -> None:
    job = tiny_job(micro_batch_size=1)
    assert [plan(job, find_card(c)).precision for c in ("T4", "3060")] == ["float16", "bfloat16"]
    with pytest.raises(RequestError, match="T4 16GB has no bf16"):
        plan(tiny_job(precision="bf16"), find_card("T4"))
    assert not plan(job, find_card("V100 16GB")).kernels


@pytest.mark.parametrize(
    ("name", "found"),
    [("4090", "RTX 4090 24GB"), ("rtx-4060ti", "RTX 4060 Ti 16GB"), ("NVIDIA GeForce RTX 3060", "RTX 3060 12GB"),
     ("a100-80gb", "A100 80GB"), ("A100 40 GiB", "A100 40GB"), ("t4", "T4 16GB"), ("Tesla V100 32G", "V100 32GB")],
)  # fmt: skip
def test_cards_are_found_in_any_spelling(name: str, found: str) -> None:
    assert find_card(name).name == found


def test_unknown_cards_are_refused() -> None:
    with pytest.raises(RequestError, match=r"did you mean '30[69]0'"):
        find_card("RTX 3080")
    with pytest.raises(RequestError, match="A100 40GB and A100 80GB; name one"):
        find_card("A100")
    with pytest.raises(RequestError, match="not in the table"):
        find_card("")


def test_training_takes_its_micro_batch_from_the_plan(make_base: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(make_base(), dtype=torch.float32, device=CPU)
    packing, how = Packing(sequence_length=LENGTH), settings(tokens_per_step=LENGTH * 64)
    assert memory.micro_batch_size(model, settings(micro_batch_size=3), packing, CPU) == 3
    assert memory.micro_batch_size(model, settings(micro_batch_size=99), packing, CPU) == 8
    assert memory.micro_batch_size(model, how, packing, CPU) == 64
    job = Job(model.config, Base(model=""), how, packing)
    card = Card("x", _plan(job, CARDS[0], 20).needed, 86)
    monkeypatch.setattr(memory, "_as_it_is", lambda device: card)
    assert (
        memory.micro_batch_size(model, how, packing, torch.device("cuda"))
        == plan(job, card).micro_batch_size
        in (19, 20)
    )
    monkeypatch.setattr(memory, "_as_it_is", lambda device: Card("x", GIB // 3, 86))
    with pytest.raises(RequestError, match=r"this GPU has 0\.3 GiB for training, which needs about"):
        memory.micro_batch_size(model, how, packing, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("checkpointing", [False, True, "offload"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_prediction_is_within_a_tenth_of_what_cuda_reserves(
    method: str, checkpointing: bool | str, kernels: str, make_base: Make, make_packed: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from frbio_lite.packing import PackedTokens
    from frbio_lite.training import train

    monkeypatch.setitem(SHAPE, "hidden_size", 1024)
    for key, value in {"intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                       "num_hidden_layers": 12, "max_position_embeddings": 2048}.items():  # fmt: skip
        monkeypatch.setitem(SHAPE, key, value)
    base, packed = make_base(dtype=torch.bfloat16), make_packed(documents=900, sequence_length=2048)
    how = settings(
        method=method, activation_checkpointing=checkpointing, kernels=kernels, micro_batch_size=4, tokens=2048 * 8 * 3,
        tokens_per_step=2048 * 8,
    )  # fmt: skip
    from frbio_lite.hub import load_config

    packing = Packing(sequence_length=2048)
    card = memory.card_at_hand()
    assert card is not None
    predicted = plan(Job(load_config(base), Base(model=str(base)), how, packing), card)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(base, PackedTokens(packed), how, packing, 0, tmp_path / "out")
    expected = predicted.needed - predicted.parts["CUDA context"]
    assert torch.cuda.max_memory_reserved() == pytest.approx(expected, rel=0.1)


# Activation checkpointing with offload


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_offloaded_gradients_are_those_of_checkpointing_to_the_bit(kind: str, method: str) -> None:
    found: dict[bool, list[Tensor]] = {}
    config = configuration(kind, layers=4)
    for offload in (False, True):
        torch.manual_seed(1)
        model = real(config, settings(method=method))
        checkpoint_layers(getattr(model, "base_model", model).model if method == "lora" else model, offload=offload)
        ids = torch.randint(0, 320, (2, LENGTH), generator=torch.Generator().manual_seed(2))
        for part in (ids, ids.flip(1)):  # two micro-batches: gradients accumulate
            trace.summed_loss(model, trace.hidden_states(model, part), part).backward()
        found[offload] = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found[True]) == len(found[False]) > 0
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))
    assert any(g.abs().sum() > 0 for g in found[True])


def test_offloaded_inputs_leave_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from frbio_lite import offload

    copied: list[Tensor] = []
    real_init = offload._Held.__init__

    def recorded(self: Any, tensor: Tensor, *how: Any) -> None:
        real_init(self, tensor, *how)
        copied.append(self.copy)
        assert self.copy.data_ptr() != tensor.data_ptr() and torch.equal(self.copy, tensor)

    monkeypatch.setattr(offload._Held, "__init__", recorded)
    model = real(configuration("llama", layers=5), settings())
    checkpoint_layers(model, offload=True)
    ids = torch.randint(0, 320, (2, LENGTH))
    loss = trace.summed_loss(model, trace.hidden_states(model, ids), ids)
    assert [tuple(t.shape) for t in copied] == [(2, LENGTH, 32)] * 5  # the inputs, and nothing else
    loss.backward()
    assert len(copied) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offload_on_a_gpu_gives_the_same_gradients_and_frees_memory() -> None:
    found: dict[bool, list[Tensor]] = {}
    peaks: dict[bool, int] = {}
    config = configuration("qwen3", layers=12, hidden_size=512, max_position_embeddings=1024)
    for offload in (False, True):
        torch.manual_seed(1)
        model = real(config, settings()).cuda()
        checkpoint_layers(model, offload=offload)
        ids = torch.randint(0, 320, (4, 1024), generator=torch.Generator().manual_seed(2)).cuda()
        torch.cuda.reset_peak_memory_stats()
        trace.summed_loss(model, trace.hidden_states(model, ids), ids).backward()
        found[offload] = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        peaks[offload] = torch.cuda.max_memory_allocated()
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))
    assert peaks[True] < peaks[False]
