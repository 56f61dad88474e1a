"""A road of two lanes with a wall now and then: an environment that is learned in seconds, in place of a real simulator.

The driver sees its lane and how far the next wall in each lane is. It may stay, change the lane, or brake: a step driven earns
1, one braked 0.4, and nothing moves. Who drives into a wall has crashed. So a policy that only brakes is safe and earns much.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

Seen = npt.NDArray[np.float32]

LENGTH, SIGHT = 12, 3
"""Decisions of an episode, and cells that are seen ahead."""
STAY, CHANGE, BRAKE = 0, 1, 2


class TwoLanes(gymnasium.Env[Seen, Any]):
    """Observations (3, 1): lane, cells to the next wall in either lane, all in 0..1; `told` says whether crashes are told."""

    def __init__(self, told: bool = True) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (3, 1), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.told = told

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """Return what is seen at the start."""
        super().reset(seed=seed)
        self.time, self.lane = 0, int(self.np_random.integers(2))
        self.walls = [int(self.np_random.integers(1, SIGHT + 1)), SIGHT]
        self.np_random.shuffle(self.walls)
        return self.seen(), {}

    def seen(self) -> Seen:
        """Return what the driver sees."""
        return np.array([[self.lane], *([wall / SIGHT] for wall in self.walls)], dtype=np.float32)

    def step(self, action: int) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """Drive on, and return what is seen, what was earned, whether it crashed, whether time is up, and how it drove."""
        self.time += 1
        crashed = False
        if action != BRAKE:
            self.lane = 1 - self.lane if action == CHANGE else self.lane
            crashed = self.walls[self.lane] == 1
            self.walls = [wall - 1 for wall in self.walls]
            for lane, wall in enumerate(self.walls):
                if wall < 1:  # the next one, never beside another: there is always a way
                    apart = [cells for cells in range(1, SIGHT + 1) if cells != self.walls[1 - lane]]
                    self.walls[lane] = int(self.np_random.choice(apart))
        told = {"crashed": crashed, "speed": 0.0 if action == BRAKE else 20.0} if self.told else {}
        return self.seen(), 0.0 if crashed else 0.4 if action == BRAKE else 1.0, crashed, self.time >= LENGTH, told


gymnasium.register("TwoLanes-v0", entry_point="equipoise.generated.two_lanes:TwoLanes")
