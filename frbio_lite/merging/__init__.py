"""Merging adapted models back into their base, at a ratio that is always the share of the adapted side."""

from frbio_lite.merging.inputs import AdapterBase, Inputs, Vocabulary, open_inputs
from frbio_lite.merging.merger import Merger, Rounding, by_method, check_ratio
from frbio_lite.merging.methods import METHODS, Parameters
from frbio_lite.merging.profile import Profile, parse_profile
from frbio_lite.merging.stream import OutputDtype, merge_models, output_dtype
from frbio_lite.merging.weights import SHARD_BYTES

__all__ = [
    "METHODS",
    "SHARD_BYTES",
    "AdapterBase",
    "Inputs",
    "Merger",
    "OutputDtype",
    "Parameters",
    "Profile",
    "Rounding",
    "Vocabulary",
    "by_method",
    "check_ratio",
    "merge_models",
    "open_inputs",
    "output_dtype",
    "parse_profile",
]
