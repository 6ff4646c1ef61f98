"""The merging methods, one file each with the paper it comes from, and how a ratio makes a rule of them.

The ratio is the share of the adapted side: 0 gives the base bit for bit. Where a method takes several adapted models,
they have equal weights; mergekit's configuration files can weigh them (`frbio_lite.merging.mergekit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frbio_lite.errors import RequestError, nearest
from frbio_lite.merging.gram import Gram
from frbio_lite.merging.methods import karcher, linear, lora_scale, model_stock, nuslerp, slerp, task_arithmetic
from frbio_lite.merging.methods.breadcrumbs import Middle
from frbio_lite.merging.methods.dare import Random
from frbio_lite.merging.methods.della import ByRank
from frbio_lite.merging.methods.rule import Parameters, Rule, WeightedSum
from frbio_lite.merging.methods.task_vectors import Sparsity, TaskVectors
from frbio_lite.merging.methods.ties import Largest

__all__ = ["METHODS", "Method", "Parameters", "Rule", "WeightedSum", "check_method", "slerp"]


@dataclass(frozen=True)
class Method:
    """`rule(tensor name, number of adapted models, parameters)`; `most` adapted models, at least `least`.

    `ends_adapted`: with one adapted model, ratio 1 gives that model itself, so that all such methods share that end.
    """

    rule: Callable[[str, int, Parameters], Rule]
    least: int = 1
    most: int | None = None
    ends_adapted: bool = True


def _linear(name: str, models: int, parameters: Parameters) -> Rule:
    return WeightedSum(lambda _, ratio: linear.coefficients([1.0 - ratio, *[ratio / models] * models]))


def _task_arithmetic(name: str, models: int, parameters: Parameters) -> Rule:
    return WeightedSum(lambda _, ratio: task_arithmetic.coefficients([1.0 / models] * models, scale=ratio))


def _slerp(name: str, models: int, parameters: Parameters) -> Rule:
    return WeightedSum(lambda gram, ratio: slerp.coefficients(_known(gram), ratio), needs_gram=True)


def _nuslerp(name: str, models: int, parameters: Parameters) -> Rule:
    """One model: on the arc from the base to it. Two: the base plus ratio times the middle of their task vectors' arc."""
    if models == 1:
        return WeightedSum(lambda gram, ratio: nuslerp.coefficients(_known(gram), ratio), needs_gram=True)
    return WeightedSum(lambda gram, ratio: nuslerp.of_task_vectors(_known(gram), 0.5, scale=ratio), needs_gram=True)


def _karcher(name: str, models: int, parameters: Parameters) -> Rule:
    def coefficients(gram: Gram | None, ratio: float) -> list[float]:
        return karcher.coefficients(_known(gram), [1.0 - ratio, *[ratio / models] * models])

    return WeightedSum(coefficients, needs_gram=True)


def _model_stock(name: str, models: int, parameters: Parameters) -> Rule:
    return WeightedSum(lambda gram, ratio: model_stock.coefficients(_known(gram), scale=ratio), needs_gram=True)


def _lora_scale(name: str, models: int, parameters: Parameters) -> Rule:
    return WeightedSum(lambda _, ratio: lora_scale.coefficients(ratio))


def _known(gram: Gram | None) -> Gram:
    assert gram is not None, "the merge surveys the inner products of the rules that need them"
    return gram


def _task_vectors(
    sparsity: Callable[[Parameters, str, int], Sparsity], *, consensus: bool, normalize: bool, rescale: bool
) -> Method:
    """A method on single elements; `sparsity(parameters, tensor name, number of the adapted model)`."""

    def rule(name: str, models: int, parameters: Parameters) -> Rule:
        chosen = [sparsity(parameters, name, i) for i in range(models)]
        weights = [1.0 / models] * models
        return TaskVectors(weights, chosen, consensus=consensus, normalize=normalize, rescale=rescale)

    return Method(rule, ends_adapted=False)


def _largest(p: Parameters, name: str, model: int) -> Sparsity:
    return Largest(p.density)


def _random(p: Parameters, name: str, model: int) -> Sparsity:
    return Random(p.density, p.seed, name, model)


def _by_rank(p: Parameters, name: str, model: int) -> Sparsity:
    return ByRank(p.density, p.epsilon, p.seed, name, model)


def _middle(p: Parameters, name: str, model: int) -> Sparsity:
    return Middle(p.density, p.gamma)


METHODS: dict[str, Method] = {
    "linear": Method(_linear),
    "slerp": Method(_slerp, most=1),
    "nuslerp": Method(_nuslerp, most=2),
    "task_arithmetic": Method(_task_arithmetic),
    "ties": _task_vectors(_largest, consensus=True, normalize=True, rescale=False),
    "dare_linear": _task_vectors(_random, consensus=False, normalize=False, rescale=True),
    "dare_ties": _task_vectors(_random, consensus=True, normalize=True, rescale=True),
    "della": _task_vectors(_by_rank, consensus=True, normalize=True, rescale=True),
    "breadcrumbs": _task_vectors(_middle, consensus=False, normalize=False, rescale=False),
    "model_stock": Method(_model_stock, least=2, ends_adapted=False),
    "karcher": Method(_karcher),
    "lora_scale": Method(_lora_scale, most=1),
}


def check_method(name: str, models: int) -> None:
    """Raise RequestError when there is no such method, or it does not take this many adapted models."""
    if name not in METHODS:
        raise RequestError(
            f"no merging method is called '{name}'{nearest(name, METHODS)}: choose from {', '.join(METHODS)}"
        )
    method = METHODS[name]
    if models < method.least or (method.most is not None and models > method.most):
        most = " or more" if method.most is None else f" or {method.most}" if method.most > method.least else ""
        plural = "s" if method.most != 1 else ""
        raise RequestError(f"{name} merges {method.least}{most} adapted model{plural} into the base, not {models}")
