"""mergekit's configuration files: those by which mergekit 0.1.5 merges whole models run here unchanged.

    config = read_config(Path("merge.yaml"))
    inputs = open_inputs(base, adapted, vocabulary=config.vocabulary)  # the directories of config.models(), in that order
    merge_models(plan(config, inputs), out, rounding=Rounding(output_dtype(config.written)))

mergekit converts the weights to `dtype` and, but for linear and slerp, computes in it. Here everything is computed in fp32
from what is stored and rounded once: what mergekit gives with `dtype: float32` and the same `out_dtype`. With bfloat16 its
own roundings add a few steps, and can decide a close election of signs or a draw (tests/merging/test_mergekit_agreement.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from frbio_lite.errors import RequestError
from frbio_lite.merging.gram import Gram
from frbio_lite.merging.inputs import FullModel, Inputs
from frbio_lite.merging.mergekit_file import MergekitConfig, Part, Reference, read_config
from frbio_lite.merging.merger import Merger
from frbio_lite.merging.methods import Rule, WeightedSum, karcher, linear, model_stock, nuslerp, slerp, task_arithmetic
from frbio_lite.merging.methods.breadcrumbs import Middle
from frbio_lite.merging.methods.dare import Random
from frbio_lite.merging.methods.della import ByRank
from frbio_lite.merging.methods.task_arithmetic import TINY
from frbio_lite.merging.methods.task_vectors import Sparsity, TaskVectors
from frbio_lite.merging.methods.ties import Largest
from frbio_lite.merging.profile import layer_of

__all__ = ["MergekitConfig", "Reference", "plan", "read_config"]

ZERO = 1e-8  # slerp: a tensor of a norm up to this counts as at right angles to any (as in mergekit; new Gemma norms are 0)
UNDECIDED = 1e-6  # nuslerp: weights whose sum is below this meet in the middle (mergekit's bound)
# Tensors before the layers, by the names of all architectures; the others outside layers come after them.
BEFORE_LAYERS = re.compile(r"embed(?!_out)|embd|(?:^|\.)(?:wte|wpe)\.")


@dataclass(frozen=True)
class Values:
    """The values of a file's parameters for one tensor: those of the model's entry count before the slice's, and those
    before the file's."""

    config: MergekitConfig
    inputs: Inputs
    models: tuple[Reference, ...]  # the base first, as in `inputs`
    part: Part
    depth: float
    name: str
    seed: int

    def of_merge(self, key: str) -> Any:
        return self._value(key, None)

    def of_models(self, key: str, first: int = 0) -> list[Any]:
        """One value per model from the `first` on; the base is number 0."""
        return [self._value(key, model) for model in self.models[first:]]

    def _value(self, key: str, model: Reference | None) -> Any:
        parameter = self.config.method.parameters[key]
        own = self.part.models[model] if model else {}
        for settings in (own, self.part.parameters, self.config.parameters or {}):
            if key in settings:
                try:
                    value = settings[key].at(self.name, self.depth, parameter)
                except ValueError as error:
                    raise self.error(f"{key} {error}") from error
                if value is not None:
                    return value
        if parameter.default is None:
            raise self.error(f"{self.config.merge_method} needs {key}" + (f" of the model {model}" if model else ""))
        return parameter.default

    @property
    def precision(self) -> str:
        """What mergekit computes in, in the words of safetensors: `dtype`, or one that holds what all models store."""
        if self.config.dtype:
            return self.config.dtype
        stored = {self.inputs.dtype(self.name)}
        for source in self.inputs.adapted:
            if isinstance(source, FullModel) and self.name in source.weights:
                stored.add(source.weights.stored_dtype(self.name))
        return stored.pop() if len(stored) == 1 else "F32"

    def error(self, message: str) -> RequestError:
        return RequestError(f"{self.config.where}: {message} for the tensor {self.name}")


def plan(config: MergekitConfig, inputs: Inputs, seed: int = 17) -> Merger:
    """The merge a file describes, to be run at ratio 1; `inputs` hold its `models()` in their order.

    `seed` fixes what the random methods (dare, della) drop. Raises RequestError when a value is missing or does not fit a
    tensor, or the slices are not all layers of the models.
    """
    models = tuple(config.models())
    if len(models) != len(inputs.adapted) + 1:
        raise ValueError(f"{config.where} names {len(models)} models; {len(inputs.adapted) + 1} were opened")
    parts = config.parts()
    last = parts[-1].layers
    if last and last[1] != inputs.layers:
        raise RequestError(
            f"{config.where}: the slices end at layer {last[1]} and the models have {inputs.layers} layers: "
            "layers left out or added make a frankenmerge, which is not supported"
        )
    rules = {}
    for name in inputs.names:
        if inputs.is_float(name):
            part, depth = _place(parts, inputs.layers, name)
            rules[name] = RULES[config.merge_method](Values(config, inputs, models, part, depth, name, seed))
    return Merger(inputs, rules, dict.fromkeys(rules, 1.0))


def _place(parts: list[Part], layers: int, name: str) -> tuple[Part, float]:
    """The slice a tensor belongs to and its depth there: 0 at the first layer, 1 at the last or only one, 0 outside layers."""
    layer = layer_of(name)
    if layer is None:
        return parts[0 if BEFORE_LAYERS.search(name) else -1], 0.0
    for part in parts:
        start, stop = part.layers or (0, layers)
        if start <= layer < stop:
            return part, (layer - start) / (stop - start - 1) if stop - start > 1 else 1.0
    raise AssertionError("the slices cover all layers")


def _linear(values: Values) -> Rule:
    weights, normalize = values.of_models("weight"), values.of_merge("normalize")
    if normalize and abs(sum(weights)) < TINY:
        raise values.error("the weights of linear sum to 0 and cannot be normalized")
    fixed = linear.coefficients(weights, normalize)
    return WeightedSum(lambda _, ratio: fixed)


def _slerp(values: Values) -> Rule:
    t = values.of_merge("t")

    def coefficients(gram: Gram | None, ratio: float) -> tuple[float, float]:
        if min(_known(gram).norm(0), _known(gram).norm(1)) <= ZERO:
            return nuslerp.arc(math.pi / 2, t)
        return slerp.coefficients(_known(gram), t)

    return WeightedSum(coefficients, needs_gram=True)


def _nuslerp(values: Values) -> Rule:
    """Of two tensors, or with a base of their differences from it."""
    alone = values.config.base is None
    weights = values.of_models("weight", first=0 if alone else 1)
    total = sum(weights)
    t = weights[1] / total if abs(total) >= UNDECIDED else 0.5
    coefficients = nuslerp.coefficients if alone else nuslerp.of_task_vectors
    return WeightedSum(lambda gram, ratio: coefficients(_known(gram), t), needs_gram=True)


def _model_stock(values: Values) -> Rule:
    return WeightedSum(lambda gram, ratio: model_stock.coefficients(_known(gram)), needs_gram=True)


def _karcher(values: Values) -> Rule:
    most, tolerance = values.of_merge("max_iter"), values.of_merge("tol")
    equal = [1.0 / len(values.models)] * len(values.models)
    return WeightedSum(lambda gram, ratio: karcher.coefficients(_known(gram), equal, most, tolerance), needs_gram=True)


def _known(gram: Gram | None) -> Gram:
    assert gram is not None, "the merge surveys the inner products of the rules that need them"
    return gram


def _task_arithmetic(values: Values) -> Rule:
    weights = values.of_models("weight", first=1)
    fixed = task_arithmetic.coefficients(weights, values.of_merge("lambda"), values.of_merge("normalize"))
    return WeightedSum(lambda _, ratio: fixed)


def _task_vectors(sparsity: Callable[[Values, int, float], Sparsity], consensus: bool) -> Callable[[Values], Rule]:
    """A method on single elements; `sparsity(values, number of the adapted model, density)`."""

    def rule(values: Values) -> Rule:
        densities = values.of_models("density", first=1)
        return TaskVectors(
            values.of_models("weight", first=1),
            [sparsity(values, i, density) for i, density in enumerate(densities)],
            consensus=consensus,
            normalize=values.of_merge("normalize"),
            rescale=values.of_merge("rescale") and min(densities) < 1.0,  # else there is nothing to regain
            scale=values.of_merge("lambda"),
        )

    return rule


def _largest(values: Values, model: int, density: float) -> Sparsity:
    return Largest(density, values.precision)


def _middle(values: Values, model: int, density: float) -> Sparsity:
    return Middle(density, values.of_models("gamma", first=1)[model], values.precision)


def _random(values: Values, model: int, density: float) -> Sparsity:
    return Random(density, values.seed, values.name, model)


def _by_rank(values: Values, model: int, density: float) -> Sparsity:
    try:
        return ByRank(density, values.of_models("epsilon", first=1)[model], values.seed, values.name, model)
    except RequestError as error:
        raise RequestError(f"{values.config.where}: {values.name}: {error}") from error


RULES: dict[str, Callable[[Values], Rule]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _task_vectors(_largest, consensus=True),
    "dare_linear": _task_vectors(_random, consensus=False),
    "dare_ties": _task_vectors(_random, consensus=True),
    "della": _task_vectors(_by_rank, consensus=True),
    "della_linear": _task_vectors(_by_rank, consensus=False),
    "breadcrumbs": _task_vectors(_middle, consensus=False),
    "breadcrumbs_ties": _task_vectors(_middle, consensus=True),
    "model_stock": _model_stock,
    "karcher": _karcher,
}
