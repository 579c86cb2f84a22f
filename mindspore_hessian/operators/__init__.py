"""Matrix-free operators: the curvature of a network on its data."""
