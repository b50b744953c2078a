"""Traced graphs, written to disk."""
