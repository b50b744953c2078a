"""Packs: a bundle with everything that a machine without network needs to run it."""
