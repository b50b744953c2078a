"""The vote: its cost, and the language model from which on it pays."""
