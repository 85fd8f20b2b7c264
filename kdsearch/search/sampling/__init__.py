"""The choice of the next configuration: samplers, candidates and the model that selects among them."""
