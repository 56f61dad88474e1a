"""The client's side of secure aggregation: four answers in a round, after which the server can read the sum alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from equipoise.errors import EquipoiseError, must_be
from equipoise.federated import masks


@dataclass
class Masker:
    """What a client knows of a round under way; made anew for each round.

    Attributes:
        client: Its number.
        nonce: The word of the round, which every question of it repeats.
    """

    client: int
    nonce: str
    _seal: tuple[int, int] = field(default_factory=masks.pair, repr=False)
    _mask: tuple[int, int] = field(default_factory=masks.pair, repr=False)
    _own: int = field(default_factory=lambda: secrets.randbits(masks.SECRET_BITS), repr=False)
    _keys: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _held: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _threshold: int = 0
    _peers: frozenset[int] = frozenset()
    _told: bool = False

    def keys(self) -> dict[str, str]:
        """Return its public keys: one for sealing shares, one for masks."""
        return {"seal": f"{self._seal[1]:x}", "mask": f"{self._mask[1]:x}"}

    def shares(self, keys: Mapping[str, Any], threshold: int) -> dict[str, str]:
        """Return, for each of the others, sealed shares of the seed of its own mask and of its private key for masks."""
        self._keys = {int(client): (int(both["seal"], 16), int(both["mask"], 16)) for client, both in keys.items()}
        if not len(self._keys) // 2 < threshold <= len(self._keys) or self.client not in self._keys:
            raise must_be("threshold", "more than half of the clients", threshold, "Fewer could take a mask off alone.")
        self._threshold = threshold
        own, private = (masks.shares_of(secret, self._keys, threshold) for secret in (self._own, self._mask[0]))
        self._held[self.client] = own[self.client], private[self.client]
        return {
            str(other): masks.sealed(self._sealing(other), json.dumps([own[other], private[other]]).encode()).hex()
            for other in self._keys
            if other != self.client
        }

    def masked(self, values: Tensor, sealed: Mapping[str, str]) -> Tensor:
        """Return `values` (n,) as int32 under masks, of which those of pairs vanish in the sum.

        Args:
            values: What the client learned, as one vector.
            sealed: By sender, the shares that the others sealed for this client; their senders and itself are its peers.
        """
        for sender, box in sealed.items():
            own, private = json.loads(masks.opened(self._sealing(int(sender)), bytes.fromhex(box)))
            self._held[int(sender)] = own, private
        self._peers = frozenset({self.client, *map(int, sealed)})
        if len(self._peers) < self._threshold:
            raise must_be("peers", f"at least {self._threshold}", sorted(self._peers), "The round cannot be finished.")
        total = masks.fixed(values, clients=len(self._peers)) + masks.mask(self._own.to_bytes(32, "big"), len(values))
        for other in sorted(self._peers - {self.client}):
            between = masks.mask(masks.agreed(self._mask[0], self._keys[other][1]), len(values))
            total = total + between if other > self.client else total - between
        return torch.from_numpy(total.view("int32").copy())

    def reveal(self, alive: list[int], gone: list[int]) -> dict[str, dict[str, int]]:
        """Return its shares: of the masks of those whose answer counts, and of the keys of those who were lost; once alone.

        Raises:
            EquipoiseError: It is asked for both of one client, for too few, or a second time: that would show a single change.
        """
        both = set(alive) & set(gone)
        if self._told or both or len(alive) < self._threshold or set(alive) | set(gone) != self._peers:
            asked = f"{len(alive)} alive, {len(gone)} gone, {len(both)} both"
            raise EquipoiseError(f"shares must be asked for once, each for one purpose, of the round's clients; got {asked}.")
        self._told = True
        own = {str(client): self._held[client][0] for client in alive}
        return {"own": own, "private": {str(client): self._held[client][1] for client in gone}}

    def _sealing(self, other: int) -> bytes:
        return masks.agreed(self._seal[0], self._keys[other][0])
