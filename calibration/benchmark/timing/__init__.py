"""Timing: interleaved rounds, their samples, intervals and conditions."""
