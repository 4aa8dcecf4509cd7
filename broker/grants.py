"""Grants to blobs, signed by the broker: for clients that ask, and for workers with each job.

Workers get a grant for all blobs of a tenant; one is signed a few times an hour for each tenant and
verb, however many jobs and workers there are.
"""

import os
from typing import Literal

from nacl.signing import SigningKey

from gristmill.broker.metrics import Metrics
from gristmill.wire import limits
from gristmill.wire.client import GrantAnswer
from gristmill.wire.errors import RemoteError
from gristmill.wire.grants import ANY, Grant, sign_grant
from gristmill.wire.ids import is_digest

Verb = Literal["get", "put"]
RENEW_MS = limits.GRANT_TTL_MS // 3  #: a worker's grant with less than this left is renewed


class Grants:
    """Signs with the broker's key; ``store`` is the address that grants are good for."""

    def __init__(self, key: SigningKey, store: str, metrics: Metrics) -> None:
        self._key = key
        self._store = store
        self._metrics = metrics
        self._of_tenants: dict[tuple[str, Verb], tuple[str, int]] = {}

    def answer(
        self, tenant: str, verb: str, digest: str, size_bytes: int, now_utc_ms: int
    ) -> GrantAnswer:
        """A grant that a client asked for.

        Raises:
            RemoteError: ``INVALID_SPEC`` naming all that is wrong.
        """
        bad = []
        if verb not in ("get", "put"):
            bad.append(f"text is {verb!r:.40}, must be 'get' or 'put'")
        if digest != ANY and not is_digest(digest):
            bad.append(f"digest is {digest!r:.80}, must be 64 hex characters or '*'")
        if not 0 <= size_bytes <= limits.BLOB_BYTES_MAX:
            bad.append(f"size_bytes is {size_bytes}, must be 0 to {limits.BLOB_BYTES_MAX}")
        if bad:
            raise RemoteError("INVALID_SPEC", "a grant: " + "; ".join(bad))
        if not self._store:
            raise RemoteError(
                "STORE_DOWN", "this grid has no store", "start the broker with --store"
            )
        bytes_max = size_bytes or limits.BLOB_BYTES_MAX
        expires_ms = now_utc_ms + limits.GRANT_TTL_MS
        text = self._sign(tenant, "get" if verb == "get" else "put", digest, bytes_max, expires_ms)
        return GrantAnswer(text, self._store, expires_ms)

    def of_tenant(self, tenant: str, verb: Verb, now_utc_ms: int) -> tuple[str, int]:
        """(grant to all blobs of a tenant, when it wants renewal)."""
        known = self._of_tenants.get((tenant, verb))
        if known is None or known[1] <= now_utc_ms:
            expires_ms = now_utc_ms + limits.GRANT_TTL_MS
            text = self._sign(tenant, verb, ANY, limits.BLOB_BYTES_MAX, expires_ms)
            if len(self._of_tenants) > 10_000:
                self._of_tenants.clear()
            known = self._of_tenants[tenant, verb] = (text, expires_ms - RENEW_MS)
        return known

    def _sign(self, tenant: str, verb: Verb, digest: str, bytes_max: int, expires_ms: int) -> str:
        self._metrics.grants += 1
        grant = Grant(tenant, verb, digest, bytes_max, expires_ms, os.urandom(16))
        return sign_grant(grant, self._key)
