"""`catp-calibrate fastest`: bundle, encoder schedule and ratio that answer fastest within an accuracy budget."""
