"""What a template is: its recipe, the digest that tells whether it must be built again, and the place where it is built."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from roost import guest
from roost.host.paths import ImageFiles
from roost.model.meta import Arch
from roost.storage import kernels
from roost.storage.manifest import Manifest, Progress


class Workshop(NamedTuple):
    """Where a template is built: `scratch` for what is thrown away, `product` for what becomes the image."""

    scratch: Path
    product: ImageFiles
    mirror: str
    progress: Progress


class Template(NamedTuple):
    """One template for one architecture. `ingredients` is everything of ours that goes into it, `needs` bytes of disk that building takes."""

    name: str
    arch: Arch
    suite: str
    ingredients: str
    needs: int
    build: Callable[[Template, Workshop], Awaitable[Manifest]]

    def recipe(self) -> str:
        """Digest over all that decides what comes out, but the state of the archive. Raises Unavailable without the guest programs."""
        parts = [repr((self.name, self.arch, self.suite)).encode(), self.ingredients.encode()]
        programs = guest.binary(self.arch, "agent"), guest.binary(self.arch, "init")
        parts += [
            path.read_bytes()
            for path in (*programs, guest.source("udhcpc.script"), guest.source("roost-agent.service"))
        ]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def kernel_in(tree: Path) -> Path:
    """The one kernel below an unpacked package or a root directory. Raises FileNotFoundError."""
    for path in sorted((tree / "boot").glob("vmlinu[xz]-*")):
        return path
    raise FileNotFoundError(f"no kernel in {tree / 'boot'}")


def modules_in(tree: Path, wanted: tuple[str, ...]) -> list[kernels.Module]:
    """`wanted` and what they need, in the order they must be loaded, from the kernel package unpacked below `tree`."""
    files = {
        path.name.partition(".ko")[0].replace("-", "_"): str(path)
        for top in ("lib/modules", "usr/lib/modules")
        for path in sorted((tree / top).rglob("*.ko*"))
        if not (tree / "lib").is_symlink() or top != "lib/modules"
    }
    return kernels.in_order(wanted, files, lambda name: Path(name).read_bytes())
