"""catp-explain: the kept tokens of a picture, and where they look."""
