"""Costs: operations and bytes of each stage."""
