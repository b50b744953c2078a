"""Conversion of checkpoints that others wrote in formats of their own to Hugging Face's."""
