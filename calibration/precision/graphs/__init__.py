"""A bundle's graphs as calibration sees them: their layers, and the nodes that these consist of."""
