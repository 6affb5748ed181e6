"""Two language models share the KV tokens of one device: budgets follow work, weights and priority."""
