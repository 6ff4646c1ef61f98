"""Merging an adapted model back into its base, at a ratio that is always the share of the adapted model."""

from frbio_lite.merge.methods import METHODS, linear, slerp
from frbio_lite.merge.pair import Pair, check_ratio, open_pair
from frbio_lite.merge.stream import merge_models, output_dtype
from frbio_lite.merge.weights import Weights

__all__ = ["METHODS", "Pair", "Weights", "check_ratio", "linear", "merge_models", "open_pair", "output_dtype", "slerp"]
