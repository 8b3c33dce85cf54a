"""What computes: rounding and sums, the file of weights, rows in memory or in the map, processes."""
