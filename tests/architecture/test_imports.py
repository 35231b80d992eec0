"""Who may import whom: layers, purity, one door per outside thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.checkout import ROOT, SOURCE, imports, module_name, python_files, tree

SOURCES = {module_name(path): path for path in python_files("src")}

IMPURE = {
    "asyncio", "ctypes", "fcntl", "ftplib", "glob", "http", "io", "logging", "mmap", "multiprocessing", "os", "pickle", "pty",
    "random", "resource", "secrets", "select", "selectors", "shelve", "shutil", "signal", "smtplib", "socket", "socketserver",
    "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib.request",
}  # fmt: skip
"""What a pure module may not import: everything that looks at the world or changes it, clocks and chance included."""

MAY_READ_ENVIRONMENT = {"roost.config"}
"""`config.load` takes the environment as an argument; `os` is only its default value."""

PATH_IO = {
    "chmod", "exists", "expanduser", "glob", "hardlink_to", "home", "is_dir", "is_file", "is_symlink", "iterdir", "mkdir",
    "read_bytes", "read_text", "readlink", "resolve", "rglob", "rmdir", "samefile", "stat", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
"""Methods of `Path` that touch the file system: a pure module computes names, it never follows them."""

DOORS = {
    "apsw": (),
    "asyncssh": ("roost.hypervisor.sshagent",),
    "cryptography": ("roost.hypervisor.hostkeys",),
    "h11": ("roost.api.server", "roost.client", "roost.storage.fetch"),
    "litestar": ("roost.api", "roost.daemon"),
    "msgspec": ("roost",),
    "prometheus_client": ("roost.api.metrics",),
    "pycdlib": ("roost.hypervisor.seed",),
    "pyroute2": ("roost.host.links",),
    "qemu": ("roost.hypervisor.monitor",),
    "sqlite3": ("roost.store.sqlite",),
    "structlog": ("roost.log",),
    "subprocess": ("roost.host.system",),
    "uvicorn": ("roost.api", "roost.daemon"),
    "wasmtime": ("roost.runtimes.libwasmtime",),
    "wsproto": ("roost.client",),
    "yaml": ("roost.cli", "roost.client"),
    "zstandard": ("roost.storage",),
}
"""The one door of each third-party library, and of the standard library's processes and SQL."""

MAY_USE_FRONT_DOOR = ("roost.cli", "roost.build")
"""The command line is a user of the SDK; `build` asks where the package is and which version."""

BACKENDS = {"roost.store.memory", "roost.store.sqlite", "roost.hypervisor.qemu", "roost.network.usernet"}
MAY_NAME_BACKENDS = ("roost.daemon", "roost.testing")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("roost", cache_dir=str(ROOT / ".import_linter_cache"))


def inside(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def impure_imports(module: str) -> set[str]:
    names = {".".join(name.split(".")[:depth]) for name in imports(SOURCES[module]) for depth in (1, 2)}
    return names & (IMPURE - {"os"} if module in MAY_READ_ENVIRONMENT else IMPURE)


def path_io(path: Path) -> set[str]:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    methods = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)} & PATH_IO
    opened = {
        "open"
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "open" and opens_a_file(call)
    }
    return (
        methods
        | opened
        | {
            call.func.id
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id in ("open", "print", "input")
        }
    )


def opens_a_file(call: ast.Call) -> bool:
    """`path.open()` and `path.open("rb")`, not a method of that name that plans a descriptor."""
    return not call.args or (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str))


def pure_modules(graph: grimp.ImportGraph) -> set[str]:
    roots = {name for name in SOURCES if name.endswith("plan") or inside(name, ("roost.model", "roost.host.paths"))}
    return roots | {reached for root in roots for reached in graph.find_upstream_modules(root)}


def test_the_contracts_of_pyproject_hold() -> None:
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_plans_and_the_model_reach_nothing_that_does_input_or_output(graph: grimp.ImportGraph) -> None:
    found = {module: bad for module in sorted(pure_modules(graph)) if (bad := impure_imports(module))}
    assert not found, "a pure module, or one that it reaches, imports what looks at the world"


def test_plans_and_the_model_compute_names_but_never_follow_them(graph: grimp.ImportGraph) -> None:
    found = {module: bad for module in sorted(pure_modules(graph)) if (bad := path_io(SOURCES[module]))}
    assert not found, "a pure module, or one that it reaches, touches the file system"


def test_every_outside_library_has_one_door() -> None:
    found = {
        f"{module} imports {library}"
        for module, path in SOURCES.items()
        for library in {name.split(".")[0] for name in imports(path)} & set(DOORS)
        if not inside(module, DOORS[library])
    }
    assert not found


def test_every_third_party_library_is_in_the_table_of_doors() -> None:
    used = {name.split(".")[0] for path in SOURCES.values() for name in imports(path)}
    assert used - set(sys.stdlib_module_names) - {"roost"} <= set(DOORS)


def test_only_the_daemon_names_concrete_backends(graph: grimp.ImportGraph) -> None:
    found = {
        f"{importer} imports {backend}"
        for backend in BACKENDS & set(SOURCES)
        for importer in graph.find_modules_that_directly_import(backend)
        if not inside(importer, MAY_NAME_BACKENDS)
    }
    assert not found


def test_nothing_inside_imports_the_front_door() -> None:
    found = {
        module
        for module, path in SOURCES.items()
        if "roost" in imports(path) and not inside(module, MAY_USE_FRONT_DOOR)
    }
    assert not found, "import the module that defines the name, not `roost` itself"


def test_the_front_door_lists_exactly_what_it_offers() -> None:
    import roost

    offered = {name: getattr(roost, name) for name in roost.__all__}
    own = {name for name, value in vars(roost).items() if str(getattr(value, "__module__", "")).startswith("roost.")}
    assert {name for name in own if not name.startswith("_")} <= set(offered), "public names that __all__ does not list"
    assert len(roost.__all__) == len(set(roost.__all__))


def test_the_front_door_s_types_are_those_names() -> None:
    import roost

    stub = ast.parse((SOURCE / "roost" / "__init__.pyi").read_text())
    typed = {
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    typed |= {
        node.target.id for node in stub.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    typed |= {node.name for node in stub.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert typed - {"annotations", "__all__"} == set(roost.__all__)


def test_the_source_directory_holds_one_package() -> None:
    assert {path.relative_to(SOURCE).parts[0] for path in SOURCES.values()} == {"roost"}
