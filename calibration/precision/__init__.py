"""Calibrated precision: from a bundle in floating point to one whose matrix products are quantised.

A graph is quantised one matrix product at a time: the product becomes a model of its own, a library quantises that
(`formats/`), and what comes back takes its place (`graph.py`). So a graph of any size never lies in memory twice,
every layer can have its own format, and leaving one out costs nothing.
"""
