"""The process and its surroundings: memory, terminals, renames, locks, caches, libraries that may be missing."""
