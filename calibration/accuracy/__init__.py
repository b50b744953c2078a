"""catp-eval: accuracy against pruning ratio."""
