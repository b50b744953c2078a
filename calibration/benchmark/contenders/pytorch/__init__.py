"""PyTorch as a contender: checkpoints that score texts, and BLIPs that write; of NLVR2 the module of this project."""
