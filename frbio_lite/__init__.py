"""Adapt a small open LLM to French medicine on one consumer GPU, merge it back into its base, and prove what changed."""
