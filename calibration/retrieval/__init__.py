"""Retrieval measured: how often what belongs together is found among all others."""
