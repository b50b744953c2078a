"""The search for layers that must stay in floating point."""
