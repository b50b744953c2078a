"""p-values of paired differences, corrected for how many are looked at."""
