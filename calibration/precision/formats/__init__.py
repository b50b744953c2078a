"""Formats: how one layer is quantised, a file for each."""

from __future__ import annotations
