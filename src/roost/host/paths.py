"""Every file name that Roost may make on disk; pure: nothing here touches the file system."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from roost.config import Config


class MachineFiles(NamedTuple):
    """One machine's files. `keep` lives in the state directory and survives a reboot, `live` in the run directory and does not."""

    keep: Path
    live: Path

    @property
    def disk(self) -> Path:
        """The root disk: a qcow2 overlay over an image."""
        return self.keep / "root.qcow2"

    @property
    def base(self) -> Path:
        """What the root disk stands on (JSON); absent while that is the machine's image and never was anything else."""
        return self.keep / "base.json"

    @property
    def next_disk(self) -> Path:
        """The file that is to take the root disk's place: an overlay that covers it, or a disk made anew; of no use without `next_base`."""
        return self.keep / "root.next.qcow2"

    @property
    def next_base(self) -> Path:
        """What `next_disk` stands on (JSON), written when that is whole: it then becomes `base`."""
        return self.keep / "next.json"

    @property
    def tpm(self) -> Path:
        """The directory of the TPM's state."""
        return self.keep / "tpm"

    @property
    def seed(self) -> Path:
        """The cloud-init NoCloud disk (0600)."""
        return self.keep / "seed.iso"

    @property
    def variables(self) -> Path:
        """The UEFI variables of this machine."""
        return self.keep / "uefi-vars.raw"

    @property
    def access_port(self) -> Path:
        """The port of the host's loopback that leads to the SSH server of a machine without an agent of ours; absent for all others."""
        return self.keep / "access-port"

    @property
    def access_key(self) -> Path:
        """The private key (0600) for that SSH server."""
        return self.keep / "access-key"

    @property
    def host_key(self) -> Path:
        """The host key that the SSH server showed first, and must show ever after."""
        return self.keep / "host-key.pub"

    @property
    def console_log(self) -> Path:
        """The bounded record of the serial console."""
        return self.keep / "console.log"

    @property
    def record(self) -> Path:
        """What is needed to find the process again (JSON, replaced atomically)."""
        return self.live / "process.json"

    @property
    def monitor(self) -> Path:
        """QMP socket."""
        return self.live / "qmp.sock"

    @property
    def memory(self) -> Path:
        """The file that names the guest's memory to QEMU; gone as soon as the memory itself is in place."""
        return self.live / "memory"

    @property
    def memory_control(self) -> Path:
        """Socket of the library that maps memory inside QEMU."""
        return self.live / "memory.sock"

    @property
    def agent(self) -> Path:
        """Socket of Roost's agent port."""
        return self.live / "agent.sock"

    @property
    def guest_agent(self) -> Path:
        """Socket of the qemu-guest-agent port."""
        return self.live / "qga.sock"

    @property
    def console(self) -> Path:
        """Socket of the serial console."""
        return self.live / "console.sock"


class ImageFiles(NamedTuple):
    """One image's files, all read-only once `manifest` exists (it is written last)."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """What the image is (JSON): digest, arch, format, virtual size, boot files and command line."""
        return self.directory / "manifest.json"

    @property
    def disk(self) -> Path:
        """The disk, a qcow2 without backing file; absent in a diskless template."""
        return self.directory / "disk.qcow2"

    @property
    def kernel(self) -> Path:
        """The kernel for direct boot; absent where the image must boot by its firmware."""
        return self.directory / "kernel"

    @property
    def initramfs(self) -> Path:
        """The initramfs for direct boot."""
        return self.directory / "initramfs"

    @property
    def screen(self) -> Path:
        """A picture (PNG) of what the disk showed when it was proved; absent when it never was. Written after the manifest, no part of the image."""
        return self.directory / "screen.png"


class LayerFiles(NamedTuple):
    """A disk that was written once and never will be again: others stand on it. Read-only once `manifest` exists."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """What the layer is (JSON)."""
        return self.directory / "layer.json"

    @property
    def disk(self) -> Path:
        """The qcow2 file."""
        return self.directory / "disk.qcow2"


class CheckpointFiles(NamedTuple):
    """One instant of a machine; whole once `manifest` exists (it is written last)."""

    directory: Path

    @property
    def manifest(self) -> Path:
        """What it is (JSON), and the keyed hash over all of it."""
        return self.directory / "checkpoint.json"

    @property
    def device(self) -> Path:
        """QEMU's stream of device state."""
        return self.directory / "device"

    @property
    def memory(self) -> Path:
        """The guest's memory, sparse, byte for byte at its own offset."""
        return self.directory / "memory"

    @property
    def variables(self) -> Path:
        """The UEFI variables."""
        return self.directory / "uefi-vars.raw"

    @property
    def tpm(self) -> Path:
        """The directory of the TPM's state."""
        return self.directory / "tpm"


class ProgramFiles(NamedTuple):
    """One program's files."""

    directory: Path

    @property
    def contents(self) -> Path:
        """What was uploaded for it: below here, one directory for each digest, with a link to the content under the program's own name."""
        return self.directory / "content"

    def content(self, sha256: str, name: str) -> Path:
        """The file that the program is."""
        return self.contents / sha256 / name

    @property
    def lock(self) -> Path:
        """Held (flock) by the keeper and what it started, as long as any of them lives."""
        return self.directory / "keeper.lock"

    @property
    def request(self) -> Path:
        """What the present or last start was asked for (JSON)."""
        return self.directory / "request.json"

    @property
    def state(self) -> Path:
        """What the keeper says of itself and of the start (JSON, replaced atomically)."""
        return self.directory / "state.json"

    @property
    def result(self) -> Path:
        """How the last start ended (JSON, replaced atomically)."""
        return self.directory / "result.json"

    @property
    def log(self) -> Path:
        """The bounded record of what it printed."""
        return self.directory / "output.log"


class NetworkFiles(NamedTuple):
    """One network's files, in the run directory: after a reboot there is no network and none of them."""

    directory: Path

    @property
    def holder(self) -> Path:
        """What is needed to find the network's namespaces again (JSON, replaced atomically)."""
        return self.directory / "holder.json"

    @property
    def applied(self) -> Path:
        """What was applied last (JSON, replaced atomically)."""
        return self.directory / "applied.json"

    @property
    def resolver(self) -> Path:
        """The directory with what dnsmasq reads."""
        return self.directory / "dnsmasq"

    @property
    def relay(self) -> Path:
        """Control socket of the relay."""
        return self.directory / "relay.sock"

    @property
    def metadata(self) -> Path:
        """Control socket of the metadata service, which is one for all networks."""
        return self.directory / "metadata.sock"

    @property
    def flows(self) -> Path:
        """The flow log (lines of JSON); "flows.1" beside it is the part before."""
        return self.directory / "flows"

    def process(self, name: str) -> Path:
        """What is needed to find one of its other processes again (JSON, replaced atomically)."""
        return self.directory / f"{name}.json"

    def output(self, name: str) -> Path:
        """What that process said since it was started, its first 64 KiB."""
        return self.directory / f"{name}.log"


class Paths(NamedTuple):
    """Where everything is, from the two directories of the configuration."""

    state: Path
    run: Path

    @classmethod
    def of(cls, config: Config) -> Paths:
        """The paths of a configuration."""
        return cls(config.state, config.run)

    @property
    def database(self) -> Path:
        """The store."""
        return self.state / "roost.db"

    @property
    def images(self) -> Path:
        """All images, one directory each, named by digest (`sha256-...`)."""
        return self.state / "images"

    @property
    def building(self) -> Path:
        """Half-made images; everything here is removed when the daemon starts."""
        return self.state / "building"

    @property
    def recipes(self) -> Path:
        """Links from the digest of a recipe to the image it made."""
        return self.state / "recipes"

    @property
    def layers(self) -> Path:
        """All layers, one directory each, named by their UUID."""
        return self.state / "layers"

    @property
    def checkpoints(self) -> Path:
        """All checkpoints, one directory each, named by their UUID: those of snapshots and of warm templates."""
        return self.state / "checkpoints"

    @property
    def checkpoint_key(self) -> Path:
        """The key (0600) of the hashes that seal checkpoints."""
        return self.state / "checkpoint.key"

    @property
    def spares(self) -> Path:
        """Kept files of QEMUs that wait for a machine; everything here is removed when the daemon starts."""
        return self.state / "spares"

    @property
    def machines(self) -> Path:
        """All machines' kept files."""
        return self.state / "machines"

    @property
    def disks(self) -> Path:
        """The directories of all root disks: those of their machines."""
        return self.machines

    @property
    def pools(self) -> Path:
        """The pool "default", and what is known of the others, a file each named by their uid."""
        return self.state / "pools"

    @property
    def keys(self) -> Path:
        """The keys of encrypted volumes (0600), a file for each project."""
        return self.state / "keys"

    @property
    def passages(self) -> Path:
        """Named pipes by which keys reach tools; everything here is removed when the daemon starts."""
        return self.run / "passages"

    @property
    def live_machines(self) -> Path:
        """All machines' sockets and process records."""
        return self.run / "machines"

    @property
    def networks(self) -> Path:
        """All networks' files."""
        return self.run / "networks"

    @property
    def programs(self) -> Path:
        """All programs' files."""
        return self.state / "programs"

    @property
    def contents(self) -> Path:
        """The contents of all programs, each once, named by digest (`sha256-...`); one that no program links to goes."""
        return self.state / "contents"

    @property
    def program_cache(self) -> Path:
        """What the runtimes of programs keep to start quickly."""
        return self.state / "cache"

    @property
    def reserve(self) -> Path:
        """Space kept for the control plane on a full disk."""
        return self.state / "reserve"

    @property
    def verdict(self) -> Path:
        """The cached accelerator verdict."""
        return self.state / "accelerator.json"

    @property
    def emulators(self) -> Path:
        """What each QEMU binary said of itself, cached by its path, time and size."""
        return self.state / "emulators.json"

    @property
    def log(self) -> Path:
        """The daemon's log when it was started by a command."""
        return self.state / "daemon.log"

    @property
    def lock(self) -> Path:
        """Held (flock) by the daemon while it lives."""
        return self.run / "daemon.lock"

    @property
    def starting(self) -> Path:
        """Held (flock) by a command while it starts a daemon, so that only one does."""
        return self.run / "starting.lock"

    def machine(self, uid: str) -> MachineFiles:
        """The files of the machine with this uid."""
        return MachineFiles(self.machines / uid, self.live_machines / uid)

    def disk(self, uid: str) -> MachineFiles:
        """The files of the root disk of the machine with this uid."""
        return self.machine(uid)

    def pool_record(self, uid: str) -> Path:
        """There as soon as this daemon has marked that pool as its own: then a place without its mark is not mounted."""
        return self.pools / f"{uid}.json"

    def network(self, uid: str) -> NetworkFiles:
        """The files of the network with this uid."""
        return NetworkFiles(self.networks / uid)

    @property
    def services(self) -> NetworkFiles:
        """The files of the processes that serve all networks."""
        return NetworkFiles(self.run / "services")

    def program(self, uid: str) -> ProgramFiles:
        """The files of the program with this uid."""
        return ProgramFiles(self.programs / uid)

    def image(self, digest: str) -> ImageFiles:
        """The files of the image "sha256:..."."""
        return ImageFiles(self.images / digest.replace(":", "-"))

    def layer(self, uid: str) -> LayerFiles:
        """The files of the layer with this UUID."""
        return LayerFiles(self.layers / uid)

    def checkpoint(self, uid: str) -> CheckpointFiles:
        """The files of the checkpoint with this UUID."""
        return CheckpointFiles(self.checkpoints / uid)

    def spare(self, uid: str) -> MachineFiles:
        """The files of a QEMU that waits for a machine; it gives them up to the machine that takes it."""
        return MachineFiles(self.spares / uid, self.live_machines / uid)
