"""A kernel that fails in the middle of a training: plain torch does the step again, or the run stops and says how to go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import KernelInterface

from frbio_lite import fuse, training
from frbio_lite.errors import RequestError
from frbio_lite.optim import adamw4bit
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Packing, Train

Make = Callable[..., Path]


def settings(**changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "full", "tokens": 32 * 2 * 3, "tokens_per_step": 32 * 2, "micro_batch_size": 1, "precision": "fp32",
        "optimizer": {"learning_rate": 1e-3}, "lora": {"rank": 4, "alpha": 8},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


def run(base: Path, packed: Path, out: Path, how: Train) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return training.train(base, PackedTokens(packed), how, Packing(sequence_length=32), 3, out)


def assert_same_steps(one: Path, other: Path) -> None:
    """Losses and gradient norms, which tell a gradient that was added twice, agree in every step."""
    logs = [
        [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for out in (one, other)
    ]
    assert len(logs[0]) == 3
    for figure in ("loss", "grad_norm"):
        assert [line[figure] for line in logs[0]] == pytest.approx([line[figure] for line in logs[1]], rel=1e-4)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(fuse, "say", lines.append)
    return lines


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """`fail(kernel, step, launch)`: from that launch of that step (both from 1) on, the kernel asks for too much."""

    def inject(kernel: str, step: int, launch: int) -> None:
        real, real_windows = KernelInterface.__getitem__, training.step_windows
        at: dict[str, Any] = {"step": 0, "launches": itertools.count(1)}

        def windows(data: Any, how: Train, number: int, seed: int) -> list[int]:
            at.update(step=number + 1, launches=itertools.count(1))
            return real_windows(data, how, number, seed)

        def launched(compiled: Any, grid: Any) -> Any:
            if compiled.fn.__name__ == kernel and at["step"] >= step and next(at["launches"]) >= launch:
                raise OutOfResources(70_000, 65_536, "shared memory")
            return real(compiled, grid)

        monkeypatch.setattr(training, "step_windows", windows)
        monkeypatch.setattr(KernelInterface, "__getitem__", launched)

    return inject


@pytest.mark.parametrize(
    ("kernel", "launch", "changes"),
    [
        ("rms_norm_forward", 4, {"method": "full"}),
        ("rms_norm_backward", 7, {"method": "lora"}),  # in the second micro-batch: the first has left gradients
        ("swiglu_forward", 1, {"method": "full", "gradient_release": True}),
        ("rms_norm_forward", 9, {"method": "full", "activation_checkpointing": True}),
    ],
)
def test_the_step_is_done_again_in_plain_torch(
    kernel: str, launch: int, changes: dict[str, Any], fail: Any, said: list[str], make_base: Make, make_packed: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    base, packed = make_base(), make_packed(documents=20, sequence_length=32)
    run(base, packed, tmp_path / "plain", settings(**changes, kernels="off"))
    fail(kernel, 2, launch)
    figures = run(base, packed, tmp_path / "out", settings(**changes))
    why = f"{kernel.rsplit('_', 1)[0]}: OutOfResources: out of resource: shared memory"
    assert figures["kernels"]["swapped"] == {} and figures["kernels"]["plain"]["all"].startswith(why)
    assert_same_steps(tmp_path / "out", tmp_path / "plain")
    assert len(said) == 1 and why in said[0] and said[0].endswith("going on in plain torch")


def test_kernels_that_never_fail_are_in_the_figures(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    figures = run(make_base(), make_packed(documents=20, sequence_length=32), tmp_path / "out", settings(tokens=32 * 2))
    assert figures["kernels"]["plain"] == {} and figures["kernels"]["swapped"]["swiglu"] == 2


@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize(("kernel", "launch"), [("adamw32bit", 2), ("adamw4bit", 1)])
def test_the_optimizer_goes_on_in_plain_torch(
    kernel: str, launch: int, release: bool, fail: Any, make_base: Make, make_packed: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also in the midst of a step: each parameter is stepped once."""
    told: list[str] = []
    monkeypatch.setattr(adamw4bit, "say", told.append)
    base, packed = make_base(), make_packed(documents=20, sequence_length=32)
    changes = {"optimizer": {"name": "adamw4bit", "learning_rate": 1e-3}, "gradient_release": release}
    changes |= {"micro_batch_size": 2} if release else {}
    run(base, packed, tmp_path / "plain", settings(**changes, kernels="off"))
    fail(kernel, 2, launch)
    figures = run(base, packed, tmp_path / "out", settings(**changes))
    assert figures["kernels"]["plain"] == {"adamw4bit": figures["kernels"]["plain"]["adamw4bit"]}
    assert figures["kernels"]["plain"]["adamw4bit"].startswith("OutOfResources: out of resource: shared memory")
    assert figures["kernels"]["swapped"]["swiglu"] == 2  # the model keeps its own
    assert_same_steps(tmp_path / "out", tmp_path / "plain")
    assert len(told) == 1 and told[0].endswith("stepping in plain torch")


@pytest.mark.parametrize(
    ("kernel", "launch", "changes"), [("rms_norm_backward", 3, {"gradient_release": True, "micro_batch_size": 2})]
)
def test_a_step_that_has_changed_weights_is_not_done_again(
    kernel: str, launch: int, changes: dict[str, Any], fail: Any, said: list[str], make_base: Make, make_packed: Make,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, packed = make_base(), make_packed(documents=20, sequence_length=32)
    changes = {**changes, "checkpoint": {"every_minutes": 1e-9}}
    run(base, packed, tmp_path / "plain", settings(**changes, kernels="off"))
    with monkeypatch.context() as patch:
        patch.setattr(KernelInterface, "__getitem__", KernelInterface.__getitem__)  # undone on leaving
        fail(kernel, 2, launch)
        match = r"weights of this step had been stepped \(\w+: OutOfResources.*train\.kernels: off; the run goes on"
        with pytest.raises(RequestError, match=match):
            run(base, packed, tmp_path / "out", settings(**changes))
    assert not said
    assert run(base, packed, tmp_path / "out", settings(**changes, kernels="off"))["resumed_at_step"] == 1
    assert_same_steps(tmp_path / "out", tmp_path / "plain")


def test_an_error_that_no_kernel_raised_stays_what_it_is(
    said: list[str], make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> torch.Tensor:
        raise KeyError("a fault of the model's own")

    monkeypatch.setattr(training, "hidden_states", broken)
    with pytest.raises(KeyError, match="a fault of the model's own"):
        run(make_base(), make_packed(documents=20, sequence_length=32), tmp_path / "out", settings())
    assert not said


def test_the_gpu_s_context_may_be_lost_with_the_kernel(
    fail: Any, make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(model: Any, error: Exception, device: torch.device) -> Any:
        return real(model, error, torch.device("cuda", 0))

    def lost(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    real = fuse.fall_back
    monkeypatch.setattr(fuse, "fall_back", gone)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    fail("swiglu_backward", 2, 1)
    with pytest.raises(RequestError, match=r"took the GPU's context with it \(swiglu: .*train\.kernels: off"):
        run(make_base(), make_packed(documents=20, sequence_length=32), tmp_path / "out", settings())
