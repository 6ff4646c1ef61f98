"""Profiles: which values a tensor gets by its name and depth, and which texts are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frbio_lite.errors import RequestError
from frbio_lite.merging.profile import Profile, depth_of, interpolate, layer_of, parse_profile

LAYERS = 5


def named(layer: int, part: str = "mlp.up_proj") -> str:
    return f"model.layers.{layer}.{part}.weight"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.language_model.layers.31.self_attn.q_proj.weight", 31),
        ("layers.7.norm.weight", 7),
        ("transformer.h.12.attn.c_attn.weight", 12),
        ("transformer.blocks.3.ffn.weight", 3),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("model.sublayers.4.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_layer_is_read_from_the_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_depth_runs_from_the_first_layer_to_the_last() -> None:
    assert [depth_of(named(i), LAYERS) for i in range(LAYERS)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert depth_of("lm_head.weight", LAYERS) == 0.0
    assert depth_of(named(0), 1) == 1.0


def test_values_are_spread_evenly_over_the_layers() -> None:
    profile = parse_profile(["mlp=0,1,0.5"])
    assert [profile.at(named(i), LAYERS) for i in range(LAYERS)] == [0.0, 0.5, 1.0, 0.75, 0.5]


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6), st.floats(0.0, 1.0))
def test_interpolation_stays_between_its_values_and_meets_them(values: list[float], depth: float) -> None:
    assert min(values) - 1e-12 <= interpolate(values, depth) <= max(values) + 1e-12
    for i, value in enumerate(values):
        assert interpolate(values, i / max(1, len(values) - 1)) == pytest.approx(value, abs=1e-12)


def test_the_first_entry_that_matches_counts_and_others_keep_the_ratio() -> None:
    profile = parse_profile(["self_attn = 0.25", "q_proj=0.5", "*=0.75"])
    assert profile.at(named(1, "self_attn.q_proj"), LAYERS) == 0.25
    assert profile.at(named(1), LAYERS) == 0.75
    assert parse_profile(["self_attn=0.25"]).at(named(1), LAYERS) == 1.0
    assert Profile().at(named(1), LAYERS) == 1.0
    assert parse_profile([]) == Profile()


@pytest.mark.parametrize(
    "text", ["", "mlp", "=0.5", "mlp=", "mlp=a", "mlp=0.5,", "mlp=1.5", "mlp=-0.1", "mlp=nan", "mlp=inf", "*=0,2"]
)
def test_anything_else_is_refused_in_one_line_that_names_it(text: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_profile(["*=1", text])
    assert f"'{text}'" in str(error.value) and "\n" not in str(error.value)
