"""Image sides: the graphs from pictures to the prefix of a language model. One file each."""
