"""Ranges of activations: what is observed of them, and how one is chosen."""
