"""Search in many pictures and texts: each is embedded once, and the best of each direction are looked at again."""
