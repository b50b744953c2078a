"""PyTorch as a contender: checkpoints that write, by `generate()`, and those that score texts."""
