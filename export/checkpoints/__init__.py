"""Checkpoints: found, loaded, adapted, kept in memory or out of it."""
