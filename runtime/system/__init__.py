"""The process and its surroundings: memory, terminals, renames, locks, libraries that may be missing."""
