"""What of mergekit's configuration files is refused: by name, with the line, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from frbio_lite.errors import RequestError
from frbio_lite.merging.mergekit import plan, read_config

from .test_mergekit import BIOMISTRAL, LINEAR, models, opened, write

__all__ = ["models", "write"]  # fixtures


def with_(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


SLERP = BIOMISTRAL.format(base="org/base", adapted="org/bio", layers=32)
TIES = "merge_method: ties\nbase_model: a\nmodels: [{model: a}, {model: b, parameters: {weight: 1, density: 0.5}}]\n"
REFUSED = {
    "unknown method": (with_(SLERP, "slerp", "slrep"), ":8: merge_method: 'slrep' is not supported; did you mean 'slerp'?"),
    "other method": (with_(LINEAR, "linear", "passthrough"), "choose from linear, slerp, nuslerp, task_arithmetic, ties"),
    "no method": (with_(LINEAR, "merge_method: linear", ""), "'merge_method' is missing"),
    "unknown key": (SLERP + "base_modle: x", ":18: unknown key 'base_modle'; did you mean 'base_model'?"),
    "unknown key of a model": (with_(LINEAR, "model: a", "modle: a"), "unknown key 'models.0.modle'; did you mean 'model'?"),
    "unknown key of a source": (with_(SLERP, "layer_range", "layers"), ":5: unknown key 'slices.0.sources.0.layers'; did you"),
    "modules": (LINEAR + "modules: {text: {}}", ":7: 'modules' is not supported"),
    "tokenizer": (LINEAR + "tokenizer: {source: base}", "'tokenizer' is not supported"),
    "union": (LINEAR + "tokenizer_source: union", "tokenizer_source: 'union' is not supported"),
    "another's tokenizer": (LINEAR + "tokenizer_source: b", "tokenizer_source: 'b' is not supported"),
    "chat template": (LINEAR + "chat_template: auto", "'chat_template' is not supported"),
    "residual weight": (with_(SLERP, "  - sources", "  - residual_weight: 0.5\n    sources"), "residual_weight' is not supp"),
    "lora": (with_(LINEAR, "model: b", "model: b+lora"), "name b alone and pass --adapter lora"),
    "lora, long": (with_(LINEAR, "model: b", "model: {model: b, lora: c}"), "--adapter"),
    "architecture": (with_(LINEAR, "model: b", "model: {model: b, override_architecture: c}"), "override_architecture is not"),
    "revision": (with_(LINEAR, "model: b", "model: b@"), "'b@' is no model reference"),
    "model of the wrong type": (with_(LINEAR, "model: b", "model: 7"), "a model is a directory or a Hub id, not 7"),
    "dtype": (LINEAR + "dtype: bfloat61", ":7: dtype: 'bfloat61' is not supported; did you mean 'bfloat16'?"),
    "float64": (LINEAR + "out_dtype: float64", "out_dtype: 'float64' is not supported"),
    "parameter": (with_(SLERP, "  t:", "  tt:"), ":11: slerp has no parameter 'tt'"),
    "parameter of another method": (LINEAR + "parameters: {density: 0.5}", "linear has no parameter 'density'"),
    "parameter out of place": (with_(TIES, "weight: 1", "normalize: no"), "normalize is one for all models"),
    "number": (with_(SLERP, "0.3", "a third"), "t should be a finite number, not 'a third'"),
    "nan": (with_(SLERP, "0.3", ".nan"), "t should be a finite number, not nan"),
    "truth": (LINEAR + "parameters: {normalize: 3}", "normalize should be true or false, not 3"),
    "gamma": (with_(TIES, "ties", "breadcrumbs") + "parameters: {gamma: 1.5}", "gamma should be a share between 0 and 1"),
    "filter": (with_(SLERP, "filter: mlp", "filtr: mlp"), "unknown key 'filtr'; did you mean 'filter'?"),
    "empty gradient": (with_(SLERP, "[1, 0.5, 0.7, 0.3, 0]", "[]"), "an empty list has no value"),
    "filter-wise model stock": (
        "merge_method: model_stock\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {filter_wise: true}",
        "filter_wise should be false (the other way is not supported), not True",
    ),
    "row-wise nuslerp": (
        with_(LINEAR, "linear", "nuslerp") + "parameters: {nuslerp_flatten: false}",
        "nuslerp_flatten should be true (the other way is not supported), not False",
    ),
    "different layers": (with_(SLERP, "[0, 32]", "[8, 32]"), "layers [0, 32] are to be merged with layers [8, 32]"),
    "layers left out": (SLERP.replace("[0, 32]", "[8, 32]"), "layers [8, 32] follow where layer 0 is next"),
    "no layers": (SLERP.replace("[0, 32]", "[0, 0]"), "layers [0, 0] follow where layer 0 is next"),
    "layer range": (SLERP.replace("[0, 32]", "[0, all]"), "layer_range.1: should be a valid integer"),
    "no base": (with_(SLERP, "base_model: org/base", ""), "slerp needs base_model"),
    "other base": (with_(SLERP, "base_model: org/base", "base_model: org/x"), "org/x is not among the sources"),
    "three for slerp": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {t: 0.5}",
        "slerp merges 1 model(s) beside base_model, not 2",
    ),
    "one for model stock": (with_(with_(TIES, "ties", "model_stock"), "parameters: {weight: 1, density: 0.5}", ""), "2 or more"),
    "one for linear": ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}", "merges 2 or more model(s), not 1"),
    "three for nuslerp": (
        with_(LINEAR, "linear", "nuslerp") + "  - model: c\nparameters: {weight: 1}",
        ":2: nuslerp merges 2 model(s), not 3",
    ),
    "twice": (with_(LINEAR, "model: b", "model: a"), "a is named twice"),
    "models and slices": (SLERP + "models: [{model: a}]", "either `models` or `slices`"),
    "neither": ("merge_method: linear", "either `models` or `slices`"),
    "no sources": ("merge_method: linear\nslices: [{sources: []}]", "slices.0.sources: List should have at least 1 item"),
    "key twice": (LINEAR + "dtype: float32\ndtype: float16", ":8: 'dtype' is given twice"),
    "not YAML": (LINEAR + "dtype: [", "not valid YAML"),
    "object": (LINEAR + "dtype: !!python/object/apply:os.getcwd []", ":7: not valid YAML"),
    "list": ("- 1", "a configuration is a mapping of keys, not list"),
    "empty": ("", "a configuration is a mapping of keys"),
    "circle": ("models: &a [*a]\nmerge_method: linear", "models"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(write: Any, case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        read_config(write(text))
    assert message in str(caught.value)
    assert "merge.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_all_that_is_wrong_is_reported_together(write: Any) -> None:
    text = with_(LINEAR, "weight: 2", "wieght: 2") + "parameters: {normalize: 7}"
    with pytest.raises(RequestError) as caught:
        read_config(write(text))
    assert "merge.yaml:6: linear has no parameter 'wieght'; did you mean 'weight'?" in str(caught.value)
    assert "merge.yaml:7: normalize should be true or false, not 7" in str(caught.value)


def test_slices_in_another_order_or_with_other_models(write: Any) -> None:
    source = "{{model: {}, layer_range: [{}, {}]}}"

    def text(*slices: tuple[str, int, int]) -> str:
        lines = [f"  - sources: [{', '.join(source.format(m, a, b) for m in models)}]\n" for models, a, b in slices]
        return f"merge_method: linear\nparameters: {{weight: 1}}\nslices:\n{''.join(lines)}"

    assert len(read_config(write(text(("ab", 0, 2), ("ba", 2, 4)))).parts()) == 2
    for slices, message in (
        ((("ab", 2, 4), ("ab", 0, 2)), "layers [2, 4] follow where layer 0 is next"),
        ((("ab", 0, 3), ("ab", 2, 4)), "layers [2, 4] follow where layer 3 is next"),
        ((("ab", 0, 2), ("ab", 3, 4)), "layers [3, 4] follow where layer 2 is next"),
        ((("ab", 0, 2), ("ac", 2, 4)), "c is not among the sources"),
    ):
        with pytest.raises(RequestError, match=r"merge\.yaml:[45]") as caught:
            read_config(write(text(*slices)))
        assert message in str(caught.value)


def test_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"merge_method: \xe9")
    for name in ("none.yaml", "latin.yaml"):
        with pytest.raises(RequestError, match=name):
            read_config(tmp_path / name)


def test_slices_must_reach_the_last_layer(models: dict[str, Path], write: Any) -> None:
    for layers in (3, 5):
        config = read_config(write(BIOMISTRAL.format(base="base", adapted="a", layers=layers)))
        with pytest.raises(RequestError, match=f"end at layer {layers} and the models have 4 layers"):
            plan(config, opened(config, models))


def test_della_beyond_certainty(models: dict[str, Path], write: Any) -> None:
    text = with_(with_(TIES, "ties", "della"), "density: 0.5", "density: 0.9, epsilon: 0.2")
    config = read_config(write(text))
    with pytest.raises(RequestError, match=r"merge\.yaml: model.*density 0.9 and epsilon 0.2"):
        plan(config, opened(config, models))


def test_missing_values_name_parameter_model_and_tensor(models: dict[str, Path], write: Any) -> None:
    cases = {
        with_(LINEAR, "weight: 2", "weight: [{filter: mlp, value: 2}]"): "linear needs weight of the model b for the tensor",
        with_(BIOMISTRAL.format(base="base", adapted="a", layers=4), "    - value: 0.5", "    #"): "slerp needs t for the ten",
        with_(TIES, "weight: 1, ", ""): "ties needs weight of the model b for the tensor",
        with_(LINEAR, "weight: 2", "weight: -1"): "the weights of linear sum to 0",
    }  # fmt: skip
    for text, message in cases.items():
        config = read_config(write(text))
        with pytest.raises(RequestError, match=message) as caught:
            plan(config, opened(config, models))
        assert "merge.yaml: " in str(caught.value)
