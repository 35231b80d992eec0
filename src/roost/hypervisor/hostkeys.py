"""SSH host keys made on the host: in an emulated guest `ssh-keygen` takes seconds, here both take less than a millisecond."""

from __future__ import annotations

from roost.hypervisor.base import HostKey


def make() -> tuple[HostKey, ...]:
    """An Ed25519 and an ECDSA key (P-256) in OpenSSH's own format, never made before. They are secrets: for the guest only."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    return tuple(
        HostKey(
            kind,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ).decode(),
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode(),
        )
        for kind, key in (
            ("ed25519", ed25519.Ed25519PrivateKey.generate()),
            ("ecdsa", ec.generate_private_key(ec.SECP256R1())),
        )
    )
