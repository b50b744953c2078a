"""Tasks of lmms-eval, answered by a bundle: a model plug-in of that harness."""
