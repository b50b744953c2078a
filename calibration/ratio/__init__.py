"""catp-calibrate ratio: the largest ratio within an accuracy budget."""
