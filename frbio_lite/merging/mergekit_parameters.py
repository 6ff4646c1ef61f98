"""mergekit's merging methods: what each takes, and how its parameters are written, by tensor name and by depth.

A parameter is a number, a list (a gradient over depth), or a list of {filter, value}, of which the first that is part of
the tensor's name counts. Names, types and defaults are those of mergekit 0.1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from frbio_lite.errors import nearest
from frbio_lite.merging.profile import EVERYTHING, interpolate

Scalar = bool | int | float | str
Scope = Literal["merge", "model", "adapted"]  # one value for the merge, one per model, one per model but the base
TYPES: dict[type, str] = {float: "a finite number", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Setting:
    """(filter or None, values over depth) in the order of the file; a single number is a gradient of one value."""

    entries: tuple[tuple[str | None, tuple[Scalar, ...]], ...]

    def at(self, name: str, depth: float, parameter: Parameter) -> Any:
        """The value for a tensor at a depth in [0, 1]; None when no filter matches its name.

        Raises ValueError when a gradient of whole numbers passes between them.
        """
        for part, written in self.entries:
            if part is None or part == EVERYTHING or part in name:
                values = [parameter.parse(v) for v in written]
                if parameter.type is bool:
                    return values[int(depth * (len(values) - 1))]  # truth has no values in between
                between = interpolate(values, depth)
                return between if parameter.type is float else parameter.parse(between)
        return None


def read_setting(value: Any) -> Setting:
    """A parameter as YAML gives it. Raises ValueError for anything that is none."""
    if isinstance(value, dict):
        return Setting((_entry(value),))
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return Setting(tuple(_entry(v) for v in value))
    return Setting(((None, _values(value)),))


def _entry(value: Any) -> tuple[str | None, tuple[Scalar, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"a list holds either numbers or {{filter, value}} entries, not both ({value!r})")
    for key in value:
        if key not in ("filter", "value"):
            raise ValueError(f"unknown key '{key}'{nearest(str(key), ('filter', 'value'))}")
    if "value" not in value:
        raise ValueError("an entry has a value, and a filter that says for which tensors")
    part = value.get("filter")
    if part is not None and not isinstance(part, str):
        raise ValueError(f"a filter is part of a tensor's name, not {part!r}")
    return part, _values(value["value"])


def _values(value: Any) -> tuple[Scalar, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("an empty list has no value")
    for v in values:
        if not isinstance(v, bool | int | float | str):
            raise ValueError(f"a parameter is a number, true or false, or a list of them, not {v!r}")
    return tuple(values)


@dataclass(frozen=True)
class Parameter:
    """`default` None: it must be given."""

    type: type
    scope: Scope = "merge"
    default: float | int | bool | None = None
    allowed: Callable[[Any], bool] = field(default=lambda _: True)
    range: str = ""  # what `allowed` allows, in words

    def parse(self, value: Scalar) -> Any:
        """A written value in the parameter's type: YAML 1.1 reads 1e-3 as a string. Raises ValueError."""
        wanted = self.range or TYPES[self.type]
        try:
            parsed: Any = TypeAdapter(self.type).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"should be {wanted}, not {value!r}") from error
        if (self.type is float and not math.isfinite(parsed)) or not self.allowed(parsed):
            raise ValueError(f"should be {wanted}, not {value!r}")
        return parsed


@dataclass(frozen=True)
class MergekitMethod:
    """`base`: required, optional, or a model like the others. `least` and `most` count the models beside the base, or all
    models where the base is one like the others."""

    parameters: Mapping[str, Parameter]
    base: Literal["required", "optional", "like others"] = "required"
    least: int = 1
    most: int | None = None


def _switch(default: bool) -> Parameter:
    return Parameter(bool, default=default)


def _only(value: bool) -> Parameter:
    return Parameter(
        bool, "merge", value, lambda v: bool(v == value), f"{value} (the other way is not supported)".lower()
    )


WEIGHT = Parameter(float, "model")
GAMMA = Parameter(float, "adapted", 0.01, lambda v: bool(0.0 <= v <= 1.0), "a share between 0 and 1")
EPSILON = Parameter(float, "adapted", 0.15, lambda v: bool(v >= 0.0), "a number from 0 on")


def _task_vectors(normalize: bool = False, rescale: bool = False, **more: Parameter) -> MergekitMethod:
    shared = {"normalize": _switch(normalize), "rescale": _switch(rescale), "lambda": Parameter(float, default=1.0)}
    each = {"weight": Parameter(float, "adapted"), "density": Parameter(float, "adapted", 1.0)}
    return MergekitMethod({**each, **more, **shared, "int8_mask": _switch(False)})  # int8_mask only saves memory there


METHODS: dict[str, MergekitMethod] = {
    "linear": MergekitMethod({"weight": WEIGHT, "normalize": _switch(True)}, "like others", least=2),
    "slerp": MergekitMethod({"t": Parameter(float)}, most=1),
    "nuslerp": MergekitMethod(
        # row_wise says how rows are cut, which nobody asks where tensors are whole
        {"weight": Parameter(float, "adapted"), "nuslerp_row_wise": _switch(False), "nuslerp_flatten": _only(True)},
        "optional",
        least=2,
        most=2,
    ),
    "task_arithmetic": _task_vectors(),
    "ties": _task_vectors(normalize=True),
    "dare_linear": _task_vectors(rescale=True),
    "dare_ties": _task_vectors(rescale=True),
    "della": _task_vectors(normalize=True, rescale=True, epsilon=EPSILON),
    "della_linear": _task_vectors(rescale=True, epsilon=EPSILON),
    "breadcrumbs": _task_vectors(gamma=GAMMA),
    "breadcrumbs_ties": _task_vectors(gamma=GAMMA),
    "model_stock": MergekitMethod({"filter_wise": _only(False)}, least=2),
    "karcher": MergekitMethod(
        {"max_iter": Parameter(int, default=10), "tol": Parameter(float, default=1e-5)}, "like others", least=2
    ),
}
