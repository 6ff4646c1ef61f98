"""mergekit's configuration files without mergekit: what they mean, by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from frbio_lite.merging import Rounding, merge_models, open_inputs, output_dtype
from frbio_lite.merging.inputs import Inputs
from frbio_lite.merging.mergekit import MergekitConfig, Reference, plan, read_config
from frbio_lite.merging.mergekit_parameters import METHODS, Parameter, read_setting

from . import tiny_models

LAYERS = 4
BIOMISTRAL = """
slices:
  - sources:
      - model: {base}
        layer_range: [0, {layers}]
      - model: {adapted}
        layer_range: [0, {layers}]
merge_method: slerp
base_model: {base}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
"""
LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n  - model: b\n    parameters: {weight: 2}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models of one shape, in fp32: `base`, `a` and `b`."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny_models.save_base(directory / "base", 40, num_hidden_layers=LAYERS)
    adapted = {n: tiny_models.save_adapted(directory / n, base, s) for n, s in (("a", 41), ("b", 42))}
    return {"base": base, **adapted}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_(text: str) -> Path:
        (tmp_path / "merge.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "merge.yaml"

    return write_


def opened(config: MergekitConfig, models: dict[str, Path]) -> Inputs:
    directories = [models.get(r.name, Path(r.name)) for r in config.models()]
    return open_inputs(directories[0], directories[1:], vocabulary=config.vocabulary)


def merged(config: MergekitConfig, models: dict[str, Path], out: Path) -> dict[str, torch.Tensor]:
    merge_models(plan(config, opened(config, models)), out, rounding=Rounding(output_dtype(config.written)))
    return tiny_models.tensors(out)


def weights_of(config: MergekitConfig, models: dict[str, Path], name: str) -> list[float]:
    """The coefficients of the tensors of one name, for rules that need no inner products."""
    rule: Any = plan(config, opened(config, models)).rules[name]
    return list(rule.coefficients(None, 1.0))


def test_a_published_file_runs_as_it_stands(models: dict[str, Path], write: Any, tmp_path: Path) -> None:
    text = BIOMISTRAL.format(base=models["base"], adapted=models["a"], layers=LAYERS)
    config = read_config(write(text))
    assert [r.name for r in config.models()] == [str(models["base"]), str(models["a"])]
    assert config.written == "bfloat16" and config.vocabulary == "same"
    found = merged(config, models, tmp_path / "out")
    base, adapted = tiny_models.tensors(models["base"]), tiny_models.tensors(models["a"])
    # Five values over four layers stand at depths 0, 1/4, 2/4, 3/4 and 1; layers at 0, 1/3, 2/3 and 1.
    attention = [0.0, 0.5 + (0.3 - 0.5) / 3, 0.3 + (0.7 - 0.3) * 2 / 3, 1.0]
    feedforward = [1.0, 0.5 + (0.7 - 0.5) / 3, 0.7 + (0.3 - 0.7) * 2 / 3, 0.0]
    for name, tensor in found.items():
        layer = int(name.split(".")[2]) if ".layers." in name else None
        t = 0.5
        if layer is not None and "self_attn" in name:
            t = attention[layer]
        elif layer is not None and "mlp" in name:
            t = feedforward[layer]
        expected = slerp64(base[name].double(), adapted[name].double(), t).bfloat16()
        assert tensor.dtype == torch.bfloat16
        off = (tensor.float() - expected.float()).abs() / expected.float().abs().clamp(min=1e-30)
        assert off.max() <= 2**-7 and (off > 0).float().mean() < 0.001, (
            name
        )  # fp32 against fp64: a rare tie falls otherwise
    assert torch.equal(found["model.layers.0.self_attn.q_proj.weight"].float(),
                       base["model.layers.0.self_attn.q_proj.weight"].bfloat16().float())  # fmt: skip
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"].float(),
                       adapted["model.layers.0.mlp.up_proj.weight"].bfloat16().float())  # fmt: skip


def slerp64(base: torch.Tensor, adapted: torch.Tensor, t: float) -> torch.Tensor:
    cosine = (base * adapted).sum() / base.norm() / adapted.norm()
    if cosine.abs() > 0.9995:
        return (1 - t) * base + t * adapted
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * base + torch.sin(t * angle) * adapted) / torch.sin(angle)


@pytest.mark.parametrize(
    "value, name, depth, expected",
    [
        (0.25, "x", 0.7, 0.25),
        (3, "x", 0.0, 3.0),
        ("1e-3", "x", 0.0, 1e-3),  # a string to YAML 1.1
        ([0, 1], "x", 0.25, 0.25),
        ([0, 0.5, 0.3, 0.7, 1], "x", 1 / 3, 0.5 * (2 / 3) + 0.3 / 3),
        (["1e-1", 1], "x", 1.0, 1.0),
        ([5], "x", 0.4, 5.0),
        ([{"filter": "mlp", "value": 1}, {"value": 2}], "model.layers.0.mlp.up_proj.weight", 0.0, 1.0),
        ([{"filter": "mlp", "value": 1}, {"value": 2}], "model.norm.weight", 0.0, 2.0),
        ([{"filter": "*", "value": 1}, {"filter": "mlp", "value": 2}], "mlp", 0.0, 1.0),  # the first that matches
        ([{"filter": "mlp", "value": 1}], "self_attn", 0.0, None),
        ({"filter": "mlp", "value": [1, 3]}, "mlp", 0.5, 2.0),
    ],
)
def test_settings(value: Any, name: str, depth: float, expected: float | None) -> None:
    found = read_setting(value).at(name, depth, Parameter(float))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-15))


def test_truth_has_no_values_in_between() -> None:
    found = [read_setting([True, False, True]).at("x", depth, Parameter(bool)) for depth in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert found == [True, True, False, False, True]
    assert read_setting("off").at("x", 0.0, Parameter(bool)) is False


@pytest.mark.parametrize(
    "value",
    [[], [{"filter": "x"}], [{"value": []}], [{"filter": 3, "value": 1}], [1, {"value": 2}], {"filtr": "x", "value": 1},
     None, [[1]], [{"value": {"value": 1}}]],
)  # fmt: skip
def test_what_is_no_setting(value: Any) -> None:
    with pytest.raises(ValueError):
        read_setting(value)


def test_precedence(models: dict[str, Path], write: Any) -> None:
    """A source before its slice before the file; a scope whose filters match nothing gives way to the next."""
    config = read_config(
        write("""
merge_method: linear
slices:
  - sources:
      - {model: base, layer_range: [0, 1], parameters: {weight: 8}}
      - {model: a, layer_range: [0, 1], parameters: {weight: [{filter: mlp, value: 5}]}}
    parameters: {weight: [{filter: self_attn, value: 3}]}
  - sources:
      - {model: a, layer_range: [1, 4], parameters: {weight: [0, 2]}}
      - {model: base, layer_range: [1, 4]}
    parameters: {normalize: true}
parameters: {weight: 1, normalize: false}
""")
    )
    weights = lambda name: weights_of(config, models, name)  # noqa: E731
    assert weights("model.layers.0.mlp.up_proj.weight") == [8, 5]
    assert weights("model.layers.0.self_attn.q_proj.weight") == [8, 3]
    assert weights("model.layers.0.input_layernorm.weight") == [8, 1]
    assert weights("model.embed_tokens.weight") == [8, 1]  # the first slice's
    assert weights("model.layers.1.mlp.up_proj.weight") == [1, 0]  # a's gradient begins with this slice
    assert weights("model.layers.2.mlp.up_proj.weight") == [0.5, 0.5]
    assert weights("model.layers.3.mlp.up_proj.weight") == pytest.approx([1 / 3, 2 / 3])
    assert weights("model.norm.weight") == [1, 0]  # the last slice's, at depth 0


def test_a_single_layer_is_at_the_end_of_a_gradient(models: dict[str, Path], write: Any) -> None:
    slices = "".join(
        f"  - sources: [{{model: base, layer_range: [{i}, {i + 1}]}}, {{model: a, layer_range: [{i}, {i + 1}]}}]\n"
        for i in range(LAYERS)
    )
    config = read_config(
        write(f"merge_method: linear\nslices:\n{slices}parameters: {{normalize: no, weight: [1, 4]}}\n")
    )
    assert weights_of(config, models, "model.layers.2.mlp.up_proj.weight") == [4, 4]
    assert weights_of(config, models, "model.embed_tokens.weight") == [1, 1]


def test_the_base_takes_part_in_linear_wherever_it_is_listed(models: dict[str, Path], write: Any) -> None:
    listed = """
merge_method: linear
base_model: b
parameters: {normalize: false}
models:
  - {model: base, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 2}}
  - {model: a, parameters: {weight: 3}}
"""
    config = read_config(write(listed))
    assert [r.name for r in config.models()] == ["b", "base", "a"]
    assert weights_of(config, models, "model.norm.weight") == [2, 1, 3]
    unlisted = (
        "merge_method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 3}}]\nparameters: {weight: 5}"
    )
    config = read_config(write(unlisted))
    assert [r.name for r in config.models()] == ["b", "a"]
    assert weights_of(config, models, "model.norm.weight") == pytest.approx([5 / 8, 3 / 8])


def test_slerp_counts_from_the_base_in_either_order(models: dict[str, Path], write: Any, tmp_path: Path) -> None:
    found = []
    for i, order in enumerate(("base, a", "a, base", "a")):
        listed = ", ".join(f"{{model: {m}}}" for m in order.split(", "))
        text = f"merge_method: slerp\nbase_model: base\nmodels: [{listed}]\nparameters: {{t: 2.5e-1}}\n"
        found.append(merged(read_config(write(text)), models, tmp_path / str(i)))
    base, adapted = tiny_models.tensors(models["base"]), tiny_models.tensors(models["a"])
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]) and torch.equal(tensor, found[2][name])
        assert (tensor - base[name]).norm() < 0.3 * (adapted[name] - base[name]).norm()


def test_references(write: Any) -> None:
    config = read_config(
        write("""
merge_method: task_arithmetic
base_model: {model: {path: org/base, revision: abc}}
models:
  - model: org/one@v1.0
    parameters: {weight: 1}
  - model: {model: ./two}
    parameters: {weight: 1}
""")
    )
    assert config.models() == [Reference("org/base", "abc"), Reference("org/one", "v1.0"), Reference("./two")]
    assert [str(r) for r in config.models()] == ["org/base@abc", "org/one@v1.0", "./two"]


@pytest.mark.parametrize(
    "lines, written",
    [("", "auto"), ("dtype: float16", "float16"), ("dtype: torch.float32\nout_dtype: bfloat16", "bfloat16")],
)
def test_what_is_written(write: Any, lines: str, written: str) -> None:
    assert read_config(write(LINEAR + lines)).written == written


def test_yaml_anchors_and_merge_keys(write: Any) -> None:
    config = read_config(
        write("""
merge_method: linear
models:
  - &one {model: a, parameters: {weight: 1.0}}
  - {<<: *one, model: b}
""")
    )
    assert config.models() == [Reference("a"), Reference("b")]
    assert all("weight" in (e.parameters or {}) for e in config.entries or [])


def test_null_says_nothing(write: Any) -> None:
    text = LINEAR + "modules: null\ntokenizer: null\nchat_template:\nslices: null\nparameters: null\nbase_model: null\n"
    assert read_config(write(text)).vocabulary == "same"
    assert read_config(write(LINEAR + "tokenizer_source: base")).vocabulary == "base"


def test_defaults() -> None:
    """Those of mergekit 0.1.5, whether or not it is installed where this runs."""
    defaults = {m: {k: p.default for k, p in spec.parameters.items()} for m, spec in METHODS.items()}
    task = {"weight": None, "density": 1.0, "lambda": 1.0, "int8_mask": False}
    plain, rescaled = task | {"normalize": False, "rescale": False}, task | {"normalize": False, "rescale": True}
    assert defaults == {
        "linear": {"weight": None, "normalize": True},
        "slerp": {"t": None},
        "nuslerp": {"weight": None, "nuslerp_row_wise": False, "nuslerp_flatten": True},
        "task_arithmetic": plain,
        "ties": plain | {"normalize": True},
        "dare_linear": rescaled,
        "dare_ties": rescaled,
        "della": rescaled | {"epsilon": 0.15, "normalize": True},
        "della_linear": rescaled | {"epsilon": 0.15},
        "breadcrumbs": plain | {"gamma": 0.01},
        "breadcrumbs_ties": plain | {"gamma": 0.01},
        "model_stock": {"filter_wise": False},
        "karcher": {"max_iter": 10, "tol": 1e-5},
    }


EACH = """
merge_method: {method}
base_model: base
models:
  - {{model: a, parameters: {{weight: 0.25, density: 0.75}}}}
  - {{model: b, parameters: {{weight: [{{filter: norm, value: 2}}, {{value: -1}}]}}}}
parameters: {{density: 0.5, lambda: 3, {more}}}
"""


@pytest.mark.parametrize(
    "method, consensus, normalize, rescale",
    [
        ("ties", True, True, False),
        ("dare_linear", False, False, True),
        ("dare_ties", True, False, True),
        ("della", True, True, True),
        ("della_linear", False, False, True),
        ("breadcrumbs", False, False, False),
        ("breadcrumbs_ties", True, False, False),
    ],
)
def test_methods_on_single_elements(
    models: dict[str, Path], write: Any, method: str, consensus: bool, normalize: bool, rescale: bool
) -> None:
    name = "model.layers.1.input_layernorm.weight"
    config = read_config(write(EACH.format(method=method, more="int8_mask: true")))
    rule: Any = plan(config, opened(config, models), seed=23).rules[name]
    assert rule.weights == [0.25, 2.0] and [s.density for s in rule.sparsity] == [0.75, 0.5]
    assert (rule.consensus, rule.normalize, rule.rescale, rule.scale) == (consensus, normalize, rescale, 3.0)
    own: dict[str, Any] = {
        "ties": {"precision": "F32"},
        "breadcrumbs": {"gamma": 0.01},
        "della": {"epsilon": 0.15},
    }
    for i, sparsity in enumerate(rule.sparsity):
        random = {"seed": 23, "name": name, "model": i} if method.startswith(("dare", "della")) else {}
        for key, value in (own.get(method.split("_")[0], {}) | random).items():
            assert getattr(sparsity, key) == value
    other: Any = plan(config, opened(config, models)).rules["model.layers.1.mlp.up_proj.weight"]
    assert other.weights == [0.25, -1.0]
    switched = f"normalize: {not normalize}, rescale: {not rescale}"
    config = read_config(write(EACH.format(method=method, more=switched)))
    rule = plan(config, opened(config, models)).rules[name]
    assert (rule.normalize, rule.rescale) == (not normalize, not rescale)


def test_magnitudes_are_ranked_in_the_precision_mergekit_computes_in(
    models: dict[str, Path], write: Any, tmp_path: Path
) -> None:
    half = tiny_models.save_base(tmp_path / "half", 40, dtype=torch.bfloat16, num_hidden_layers=LAYERS)
    for base, dtype, precision in (
        (half, "", "F32"),  # promoted: the others are stored in float32
        (half, "dtype: bfloat16", "BF16"),
        (half, "dtype: float16\nout_dtype: float32", "F16"),
        (models["base"], "", "F32"),
    ):
        for method in ("ties", "breadcrumbs"):
            config = read_config(write(EACH.format(method=method, more="") + dtype))
            rule: Any = plan(config, opened(config, models | {"base": base})).rules["model.norm.weight"]
            assert {s.precision for s in rule.sparsity} == {precision}


@pytest.mark.parametrize("weights, t", [((1, 3), 0.75), ((0.5, 0.5), 0.5), ((1, -1), 0.5), ((-1, 3), 1.5)])
@pytest.mark.parametrize("base", [True, False])
def test_nuslerp(models: dict[str, Path], write: Any, tmp_path: Path, weights: Any, t: float, base: bool) -> None:
    line = "base_model: base" if base else ""
    first, second = (f"- {{model: {m}, parameters: {{weight: {w}}}}}" for m, w in zip("ab", weights, strict=True))
    config = read_config(write(f"merge_method: nuslerp\n{line}\nmodels:\n  {first}\n  {second}\n"))
    found = merged(config, models, tmp_path / "out")
    b, x, y = ({k: v.double() for k, v in tiny_models.tensors(models[m]).items()} for m in ("base", "a", "b"))
    for name, tensor in found.items():
        start = b[name] if base else torch.zeros_like(b[name])
        d, e = x[name] - start, y[name] - start
        angle = torch.arccos((d * e).sum() / d.norm() / e.norm())
        expected = start + (torch.sin((1 - t) * angle) * d + torch.sin(t * angle) * e) / torch.sin(angle)
        assert (tensor - expected).abs().max() < 3e-6 * x[name].abs().max(), name


def test_karcher_and_model_stock_take_all_models(models: dict[str, Path], write: Any, tmp_path: Path) -> None:
    listed = "models: [{model: base}, {model: a}, {model: b}]\n"
    few = read_config(write("merge_method: karcher\nparameters: {max_iter: 0, tol: 1e-4}\n" + listed))
    found = merged(few, models, tmp_path / "karcher")
    sources = [tiny_models.tensors(models[m]) for m in ("base", "a", "b")]
    for name, tensor in found.items():
        x = torch.stack([s[name].double() for s in sources])
        norms = x.flatten(1).norm(dim=1)
        mean = (x / norms.reshape(-1, *[1] * (x.dim() - 1))).sum(0)  # without an iteration it is the mean of directions
        assert (tensor - mean / mean.norm() * norms.mean()).abs().max() < 1e-6 * x.abs().max(), name
    stock = read_config(write("merge_method: model_stock\nbase_model: base\n" + listed))
    assert stock.models() == few.models()
    found = merged(stock, models, tmp_path / "stock")
    for name, tensor in found.items():
        base, x, y = (s[name].double() for s in sources)
        cosine = ((x - base) * (y - base)).sum() / (x - base).norm() / (y - base).norm()
        t = 2 * cosine / (1 + cosine)
        assert (tensor - (t * (x + y) / 2 + (1 - t) * base)).abs().max() < 3e-6 * x.abs().max(), name


def test_a_zero_tensor_is_at_right_angles(models: dict[str, Path], write: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "model.norm.weight"
    tensors = tiny_models.tensors(models["base"])
    tensors[name].zero_()
    (tmp_path / "zero").mkdir()
    save_file(tensors, tmp_path / "zero" / "model.safetensors")
    (tmp_path / "zero" / "config.json").write_bytes((models["base"] / "config.json").read_bytes())
    config = read_config(write("merge_method: slerp\nbase_model: z\nmodels: [{model: a}]\nparameters: {t: 0.5}"))
    found = merged(config, models | {"z": tmp_path / "zero"}, tmp_path / "out")
    adapted = tiny_models.tensors(models["a"])[name]
    torch.testing.assert_close(found[name], adapted * 0.5**0.5, rtol=1e-6, atol=0.0)
