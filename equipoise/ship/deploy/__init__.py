"""A study's front as what other servers deploy: exported rungs, and the few files that each server wants around them."""
