"""Reports, and their tables and pictures."""
