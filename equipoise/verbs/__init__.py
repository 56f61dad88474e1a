"""What needs no study: measure a model, train one, compress one by a single technique."""
