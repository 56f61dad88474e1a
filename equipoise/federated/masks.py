"""The arithmetic of secure aggregation: fixed-point integers, masks from shared secrets, secrets in shares.

Everything is of the standard library: key agreement over the 2048-bit group of RFC 3526 with exponents of 256 bits, SHAKE-256
to stretch a secret to a mask, Shamir's shares over the field of 2^521 - 1 (a prime). No package is needed, and there is one
way.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from equipoise.errors import EquipoiseError
from equipoise.federated.state import Tensors

MODP_2048 = int(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F"
    "14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8"
    "A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C3290"
    "5E462E36CE3BE39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA051015728E5A8AACAA68"
    "FFFFFFFFFFFFFFFF",
    16,
)
"""Group 14 of RFC 3526, section 3; its generator is 2."""
FIELD = 2**521 - 1
SECRET_BITS = 256

FRACTION_BITS = 20
"""Numbers are multiples of 2^-20, 1e-6."""
LARGEST = 2.0**11 - 1
"""Largest sum that 32 bits hold at that step; a client's numbers are cut to their share of it."""


def fixed(values: Tensor, *, clients: int) -> np.ndarray:
    """Return numbers as uint32 modulo 2^32: nearest multiples of 2^-20, cut to what `clients` of them may add up to."""
    most = LARGEST / clients
    whole = (values.double().clamp(-most, most) * 2**FRACTION_BITS).round().long()
    return np.asarray((whole % 2**32).numpy(), dtype=np.uint32)


def floating(total: np.ndarray) -> Tensor:
    """Return the numbers (float64) that a sum modulo 2^32 stands for."""
    return torch.from_numpy(total.astype(np.uint32).view(np.int32).astype(np.float64) / 2**FRACTION_BITS)


def flat(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([tensors[name].flatten() for name in names])


def shaped(vector: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Return the tensors of one vector, in the order of `shapes`."""
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    parts = torch.split(vector, sizes)
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def pair() -> tuple[int, int]:
    """Return a new private and public key."""
    private = secrets.randbits(SECRET_BITS)
    return private, pow(2, private, MODP_2048)


def agreed(private: int, public: int) -> bytes:
    """Return the 32 bytes that the holders of two keys share.

    Raises:
        EquipoiseError: A public key outside of the group, which would give the secret away.
    """
    if not 2 <= public <= MODP_2048 - 2:
        raise EquipoiseError("public key must be inside of the group; got one outside. The client is not to be trusted.")
    return hashlib.sha256(pow(public, private, MODP_2048).to_bytes(256, "big")).digest()


def mask(seed: bytes, length: int) -> np.ndarray:
    """Return `length` uint32 that look like noise to whoever does not know the seed."""
    return np.frombuffer(hashlib.shake_256(b"mask" + seed).digest(4 * length), dtype="<u4").astype(np.uint32)


def shares_of(secret: int, holders: Iterable[int], threshold: int) -> dict[int, int]:
    """Return a share of `secret` for each holder; `threshold` of them give it back, fewer say nothing of it.

    References:
        Shamir 1979, "How to share a secret".
    """
    coefficients = [secret, *(secrets.randbelow(FIELD) for _ in range(threshold - 1))]
    found = {}
    for holder in holders:
        total = 0
        for coefficient in reversed(coefficients):
            total = (total * (holder + 1) + coefficient) % FIELD
        found[holder] = total
    return found


def secret_of(shares: Mapping[int, int]) -> int:
    """Return the secret of at least `threshold` shares, by holder: Lagrange's polynomial at 0."""
    total = 0
    for holder, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != holder:
                above, below = above * (other + 1) % FIELD, below * (other - holder) % FIELD
        total = (total + share * above * pow(below, -1, FIELD)) % FIELD
    return total


def sealed(key: bytes, plain: bytes) -> bytes:
    """Return `plain` for the holder of `key` alone: a one-time pad of SHAKE-256, and HMAC-SHA256 over it."""
    nonce = secrets.token_bytes(16)
    hidden = _padded(key, nonce, plain)
    return nonce + hidden + hmac.digest(key, b"tag" + nonce + hidden, "sha256")


def opened(key: bytes, box: bytes) -> bytes:
    """Return what was sealed.

    Raises:
        EquipoiseError: It was changed on the way, or sealed for another.
    """
    nonce, hidden, tag = box[:16], box[16:-32], box[-32:]
    if not hmac.compare_digest(tag, hmac.digest(key, b"tag" + nonce + hidden, "sha256")):
        raise EquipoiseError("sealed share must be as its sender made it; got a changed one. The round is not gone on with.")
    return _padded(key, nonce, hidden)


def _padded(key: bytes, nonce: bytes, text: bytes) -> bytes:
    pad = hashlib.shake_256(b"pad" + key + nonce).digest(len(text))
    return bytes(a ^ b for a, b in zip(text, pad, strict=True))
