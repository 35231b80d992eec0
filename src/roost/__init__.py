"""Roost runs computers inside your computer: this is the SDK's front door; nothing below it is imported before it is used."""

__version__ = "0.1.0"

_HOMES = {
    "connect": "roost.client.blocking.host",
    "connect_async": "roost.client.aio.host",
    "Host": "roost.client.blocking.host",
    "AsyncHost": "roost.client.aio.host",
    "MachineHandle": "roost.client.blocking.machines",
    "ProgramHandle": "roost.client.blocking.programs",
    "AsyncProgramHandle": "roost.client.aio.programs",
    "Program": "roost.model.program",
    "ProgramSpec": "roost.model.program",
    "ProgramStatus": "roost.model.program",
    "PolicySpec": "roost.model.program",
    "AsyncMachineHandle": "roost.client.aio.machines",
    "SnapshotHandle": "roost.client.blocking.machines",
    "AsyncSnapshotHandle": "roost.client.aio.machines",
    "Completed": "roost.model.completed",
    "Output": "roost.client.results",
    "Machine": "roost.model.machine",
    "MachineSpec": "roost.model.machine",
    "MachineStatus": "roost.model.machine",
    "Publish": "roost.model.machine",
    "User": "roost.model.machine",
    "Timing": "roost.model.machine",
    "Source": "roost.model.machine",
    "Restore": "roost.model.machine",
    "Schedule": "roost.model.machine",
    "Snapshot": "roost.model.snapshot",
    "SnapshotSpec": "roost.model.snapshot",
    "SnapshotStatus": "roost.model.snapshot",
    "Volume": "roost.model.volume",
    "VolumeSpec": "roost.model.volume",
    "VolumeStatus": "roost.model.volume",
    "VolumeSnapshot": "roost.model.volume",
    "Mount": "roost.model.volume",
    "Limits": "roost.model.volume",
    "Pool": "roost.model.pool",
    "PoolSpec": "roost.model.pool",
    "Image": "roost.model.image",
    "ImageSpec": "roost.model.image",
    "Node": "roost.model.node",
    "Project": "roost.model.project",
    "ProjectSpec": "roost.model.project",
    "Quota": "roost.model.project",
    "Event": "roost.model.event",
    "run": "roost.runtimes.sdk",
    "CompletedProgram": "roost.runtimes.sdk",
    "Wasm": "roost.runtimes.calls",
    "Trap": "roost.runtimes.calls",
    "LimitReached": "roost.runtimes.calls",
    "RoostError": "roost.errors",
    "NotFound": "roost.errors",
    "Conflict": "roost.errors",
    "Invalid": "roost.errors",
    "Forbidden": "roost.errors",
    "QuotaExceeded": "roost.errors",
    "Unavailable": "roost.errors",
    "NotStarted": "roost.errors",
    "OutcomeUnknown": "roost.errors",
    "CommandFailed": "roost.errors",
}
"""Where each public name lives. By string, so that `import roost` costs nothing and makes no knot of imports; types are in __init__.pyi."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'roost' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Everything public."""
    return sorted(__all__)
