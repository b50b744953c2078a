"""Contenders: bundles, and other runtimes of the same model, as subjects of a benchmark. One file each."""
