"""OpenVINO as a contender: a checkpoint converted from PyTorch, quantised by NNCF, and timed."""
