"""Make a model smaller without changing what it takes and gives: prune, repair, drop blocks, quantize, factorize.

Each technique is a plain function from a module to a new module; the module that comes in is never changed.
"""
