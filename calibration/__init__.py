"""Data to decisions: what accuracy a bundle keeps, and with which ratio and precision."""
