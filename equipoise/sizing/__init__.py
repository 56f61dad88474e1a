"""The road before training: from a family, its data and limits to a recommended size, or a refusal."""
