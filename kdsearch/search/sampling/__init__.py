"""Which configuration is tried next: samplers, candidates and the model that chooses among them."""
