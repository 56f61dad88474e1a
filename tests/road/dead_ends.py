"""A workload whose model runs what a file says once its first layer has a given width: for trials that go wrong."""

from __future__ import annotations

MODULE = """
import ctypes, os, time
from pathlib import Path
import torch
from torch import nn
import equipoise as eq

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        if self.a.weight.shape[0] == {width}:
            exec(Path(__file__).with_suffix(".end").read_text())
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

def make():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(600, 16)
    rows = (x, x[:, :4].argmax(1))
    parts = (("train", 0), ("validation", 200), ("test", 400))
    return eq.Workload(model=net, **dict((n, tuple(r[i : i + 200] for r in rows)) for n, i in parts))
"""
