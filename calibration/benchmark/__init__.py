"""How long a bundle takes, stage by stage, against what the machine could do and against other runtimes."""
