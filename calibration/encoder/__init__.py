"""catp-calibrate schedule: how many image tokens a vision encoder keeps, within an accuracy budget."""
