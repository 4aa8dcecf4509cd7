"""Credit for uploads, in bytes: cumulative since the job began, as the journal takes parcels."""

from __future__ import annotations

from gristmill.broker.core.effects import AllowInput, AnyEffect
from gristmill.broker.core.jobs import Job
from gristmill.broker.core.state import State
from gristmill.broker.core.tenants import Tenant


def extend_credit(state: State, job: Job, effects: list[AnyEffect]) -> None:
    """Tells the client its cumulative credit; it stands still while the tenant's disk is full."""
    tenant = job.tenant
    if tenant.parcel_bytes < state.config.tenant_disk_bytes:
        allowed = job.bytes_committed + state.config.input_credit_bytes
        job.bytes_allowed = max(job.bytes_allowed, allowed)
        tenant.stalled.pop(job.number, None)
    else:
        tenant.stalled[job.number] = None
    effects.append(AllowInput(job.number, job.committed, job.bytes_allowed))


def release_stalled(state: State, tenant: Tenant, effects: list[AnyEffect]) -> None:
    """Some of the tenant's disk is free again: uploads that stood still go on."""
    if tenant.parcel_bytes < state.config.tenant_disk_bytes:
        for number in list(tenant.stalled):
            extend_credit(state, state.jobs[number], effects)
