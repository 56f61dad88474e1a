"""Contract suites that every extension must pass; imported by no other room."""
