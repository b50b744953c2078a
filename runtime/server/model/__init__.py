"""The thread that owns a model, its jobs, and the pictures that it has seen before."""
