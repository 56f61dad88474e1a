"""What a model costs: counts, latency, memory, energy and money, each a `Reading` with its provenance.

Models and callables in, readings out; nothing here knows a runtime or a workload.
"""
