"""A study's front served as a ladder: the best rung that the load leaves time for answers each request."""
