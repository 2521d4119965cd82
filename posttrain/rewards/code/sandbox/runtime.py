"""The interpreter of the sandbox and the files that it may read: its standard library and a few packages.

Root's interpreter may be in a folder that only root can read (`/root/.pyenv`). Back-ends with mounts show it
anyway; for the others its library is linked or copied into a folder that the unprivileged user can read. Left
out: all other installed packages. A program finds numpy and sortedcontainers if they are installed, and none
of our data.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("numpy", "sortedcontainers")
"""Installed packages that programs may import in addition to the standard library."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/usr/share/zoneinfo",
)
SITES = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Runtime:
    """Paths on this machine: the interpreter, `sys.path`, and what the sandbox may read."""

    executable: str
    path: tuple[str, ...]
    readable: tuple[str, ...]
    hidden: tuple[str, ...]
    """Folders of installed packages inside `readable`, which the sandbox does not see."""
    shown: tuple[str, ...]
    """Folders of the allowed packages."""
    listable: tuple[str, ...] = ()
    """Folders whose names may be listed, without mounts."""


def locate() -> Runtime:
    """The interpreter that runs us, without its virtual environment."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    shown, sites = packages()
    path = (str(library), str(library / "lib-dynload"), *sites)
    around = str(library.parent)
    readable = [executable]
    for folder in dict.fromkeys([around, *LIBRARIES]):
        if os.path.exists(folder) and not (folder != around and within(folder, around)):
            readable.append(folder)
    hidden = [
        os.path.join(d, name)
        for name in SITES
        for d in (str(library), "/usr/lib/python3", "/usr/local/lib/python3", *python_folders())
    ]
    hidden = tuple(dict.fromkeys(h for h in hidden if os.path.isdir(h) and not os.path.islink(h)))
    return Runtime(executable, path, tuple(readable), hidden, shown)


def within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def python_folders() -> list[str]:
    """The library folders of the Python versions that the system installs."""
    return [str(p) for base in ("/usr/lib", "/usr/local/lib") for p in sorted(Path(base).glob("python3*"))]


def packages() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(folders of the allowed packages, the folders that contain them)."""
    shown, sites = [], []
    for name in PACKAGES:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        for place in (spec.submodule_search_locations or ()) if spec else ():
            site = os.path.dirname(place)
            found = (place, os.path.join(site, f"{name}.libs"))
            shown += [p for p in found if os.path.isdir(p)]
            sites.append(site)
    return tuple(shown), tuple(dict.fromkeys(sites))


def shelf(path: str) -> str:
    """The path of a package inside namespaces: below /tmp it would be hidden by the program's own /tmp."""
    return f"/srv/packages{path}" if within(path, "/tmp") else path


def without_sites(runtime: Runtime) -> Runtime:
    """The same without mounts: a folder that contains packages is replaced by its other entries."""
    readable: list[str] = []
    listable: list[str] = []

    def add(path: str) -> None:
        if path in runtime.hidden:
            return
        if any(within(h, os.path.realpath(path)) or within(h, path) for h in runtime.hidden):
            listable.append(path)
            for name in sorted(os.listdir(path)):
                add(os.path.join(path, name))
        else:
            readable.append(path)

    for path in runtime.readable:
        real = os.path.realpath(path)
        if real not in readable and real not in listable:
            add(real)
    sites = tuple(dict.fromkeys(os.path.dirname(p) for p in runtime.shown))
    return Runtime(runtime.executable, runtime.path, (*readable, *runtime.shown), (), (), (*listable, *sites))


def reachable(path: str) -> bool:
    """Whether any user may read `path`: every folder above it can be entered."""
    place = Path(os.path.realpath(path))
    wanted = stat.S_IXOTH if place.is_dir() else stat.S_IROTH
    return all(os.stat(p).st_mode & stat.S_IXOTH for p in place.parents) and bool(
        place.stat().st_mode & wanted
    )


STAGED = "posttrain-python-"
"""Prefix of our temporary folders; the id of the process that made it and random letters follow."""


def staged(runtime: Runtime) -> Runtime:
    """`runtime` with the library and the packages in a folder that any user can read.

    Unchanged if they can be read already. Linked if the file system allows it, otherwise copied; removed when
    the process ends.
    """
    if all(reachable(p) for p in runtime.path if os.path.isdir(p)):
        return runtime
    sweep()
    base = tempfile.mkdtemp(prefix=f"{STAGED}{os.getpid()}-")
    os.chmod(base, 0o755)
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(base, ignore_errors=True))
    library = os.path.join(base, "library")
    copy(
        runtime.path[0],
        library,
        skip=(*SITES, "test", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3"),
    )
    site = os.path.join(base, "packages")
    os.mkdir(site)
    for package in runtime.shown:
        copy(package, os.path.join(site, os.path.basename(package)), skip=("tests",))
    old = os.path.dirname(runtime.path[0])
    readable = [p for p in runtime.readable if not within(p, old) and p != runtime.executable]
    return Runtime(
        runtime.executable,
        (library, os.path.join(library, "lib-dynload"), site),
        (base, *readable),
        runtime.hidden,
        (),
    )


def sweep() -> None:
    """Removes the folders of processes that were killed before they could do so."""
    for name in os.listdir(tempfile.gettempdir()):
        owner = name.removeprefix(STAGED).partition("-")[0]
        if not name.startswith(STAGED) or not owner.isdecimal():
            continue
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)
        except OSError:  # alive, and owned by another user
            pass


def copy(source: str, target: str, skip: tuple[str, ...]) -> None:
    """Links or copies a folder, without entries named in `skip`, so that any user can read the copy."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(
        source,
        target,
        copy_function=link,
        symlinks=False,
        ignore=lambda _, names: [n for n in names if n in skip],
        ignore_dangling_symlinks=True,
    )
    for folder, _, _ in os.walk(target):
        os.chmod(folder, 0o755)
