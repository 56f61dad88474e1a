"""The road of a trained model: from a workload to a study, every step through the store."""
