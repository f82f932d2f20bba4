"""Language models: what is computed from them."""
