"""The contract that all three packages stand on: a bundle on disk, described, checked and published."""
