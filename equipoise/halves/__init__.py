"""A model in two halves, one on a device and one on a server, and the link between them."""
