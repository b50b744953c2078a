"""Bundles of true sizes with random weights: what a geometry costs needs nobody's weights."""
