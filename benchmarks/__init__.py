"""What the arbiter costs, as ratios measured in one run wherever a ratio says more than a figure."""
