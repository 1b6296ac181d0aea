"""Key agreement, sealed messages and masks: calls of `cryptography`, and nothing of our own.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-256-GCM, and AES-256 in counter mode as the
generator of masks, each with its whole 256-bit key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from .messages import RefusedMessageError

__all__ = [
    "KEY_BYTES",
    "add_masks",
    "agreed_key",
    "commitment",
    "opened",
    "random_bytes",
    "sealed",
]

KEY_BYTES = 32
_NONCE_BYTES = 12
_BLOCK = 1 << 16  # bytes of a mask at once: with its target and zeros, in a core's cache

random_bytes = os.urandom
"""The operating system's generator: keys never follow from a run's seed."""


def agreed_key(own: X25519PrivateKey, peer: bytes, session: bytes, purpose: bytes) -> bytes:
    """Return the 32-byte key that two clients share in one `session` for one `purpose`.

    Raises `RefusedMessageError` if the peer's public key is none, or of low order.
    """
    try:
        secret = own.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise RefusedMessageError(f"its public key is refused: {error}") from error
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=purpose).derive(secret)


def sealed(key: bytes, text: bytes, header: bytes) -> bytes:
    """Return a nonce and `text` encrypted so that neither it nor `header` can be altered."""
    nonce = random_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, header)


def opened(key: bytes, message: bytes, header: bytes) -> bytes:
    """Return what was `sealed`; `RefusedMessageError` if message or header are not as sent."""
    try:
        return AESGCM(key).decrypt(message[:_NONCE_BYTES], message[_NONCE_BYTES:], header)
    except (InvalidTag, ValueError) as error:
        raise RefusedMessageError("its ciphertext was altered, or is for somebody else") from error


def commitment(seed: bytes, session: bytes, client: int) -> bytes:
    """Return what binds a client to the 256-bit seed of its own mask, and does not tell it."""
    said = b"heliotrope self-mask" + session + client.to_bytes(8, "big")
    return hashlib.sha256(said + seed).digest()


def add_masks(arrays: Sequence[NDArray[Any]], keys: Iterable[tuple[bytes, bool]]) -> None:
    """Add the mask of each key to `arrays` in place, or take it away, modulo the words' size.

    Parameters
    ----------
    arrays
        Unsigned integers, contiguous; one stream of each key goes over all of them.
    keys
        32 bytes each, used for one stream only, and whether its mask is added.
    """
    streams = [
        (Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), added)
        for key, added in keys
    ]
    zeros, buffer = memoryview(bytes(_BLOCK)), bytearray(_BLOCK)
    for array in arrays:
        words = np.frombuffer(buffer, array.dtype)
        for start in range(0, len(array), len(words)):
            part = array[start : start + len(words)]
            mask = words[: len(part)]
            for stream, added in streams:
                stream.update_into(zeros[: part.nbytes], buffer)
                (np.add if added else np.subtract)(part, mask, out=part)
