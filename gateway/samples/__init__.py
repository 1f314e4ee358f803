"""Workshop of samples: the log of sampled inputs and outputs, written and read."""
