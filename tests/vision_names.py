"""torchvision beside a torch that has no build of its compiled half: its operators are declared, never called.

timm imports torchvision, and both are installed without their dependencies, which would bring another torch.
"""

from __future__ import annotations

from functools import cache

import torch

OPERATORS = ("nms(Tensor dets, Tensor scores, float limit) -> Tensor", "qnms(Tensor d, Tensor s, float l) -> Tensor")


@cache
def declare() -> list[torch.library.Library]:
    """Give torch the names of torchvision's operators, once in a process; what is returned keeps them."""
    libraries = []
    for operator in OPERATORS:
        libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            libraries[-1].define(operator)
    return libraries
