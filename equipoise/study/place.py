"""Where a study is: a folder, or an address ``postgresql://HOST/DATABASE#NAME``, which has a folder on each machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from equipoise.errors import must_be
from equipoise.study.files import make_folder, told, write_atomic

DATABASE = "database"
"""File of a study's folder that names the database with its record."""
NAMES = frozenset({"study.db", "study.db-journal", DATABASE, "blobs", "scratch", "lock"})
"""What a study's folder may hold before anything was made of the study."""
RUNS = Path("runs")
"""Where the folders of studies are that are named by an address."""
AFAR = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs", "virtiofs"}
)
"""File systems that other machines share, beside those in user space (``fuse.sshfs``)."""
SCHEMES = ("postgresql://", "postgres://")


def is_address(place: object) -> bool:
    """Whether a place is an address of a database."""
    return isinstance(place, str) and place.startswith(SCHEMES)


def located(place: str | Path) -> tuple[Path, str]:
    """Return a study's folder, and the address of its database; empty where the folder holds the record.

    Raises:
        InputError: An address that names no study, holds a password, or whose folder is that of another study.
    """
    if isinstance(place, Path) or not is_address(place):
        folder = Path(place)
        return folder, address_in(folder) if (folder / DATABASE).is_file() else ""
    checked_address(place)
    folder = RUNS / place.rpartition("#")[2]
    other = (folder / DATABASE).is_file() and address_in(folder) != place
    if other or (folder / "study.db").exists():  # a folder without either may be in the making
        raise must_be("store", f"another study than that of the folder {folder}", place, "Give the study another name.")
    return folder, place


def keep(folder: Path, address: str) -> None:
    """Make the folder that a study in a database has on this machine."""
    with told(folder, "write to"):
        if not (folder / DATABASE).is_file():
            make_folder(folder)
            write_atomic(folder / DATABASE, (address + "\n").encode())


def checked_address(place: str) -> None:
    """Raise unless an address names a database and a study, and holds no password.

    Raises:
        InputError: What it lacks, or should not hold.
    """
    example = "Write for example postgresql://equipoise@server/equipoise#digits."
    parts = urlsplit(place)
    shown = place if parts.password is None else place.replace(f":{parts.password}@", ":...@")
    if parts.password is not None or "password" in dict(parse_qsl(parts.query)):
        remedy = "Put it into PGPASSWORD or ~/.pgpass: an address is shown and kept."
        raise must_be("store", "an address without a password", shown.partition("?")[0], remedy)
    if not parts.path.strip("/"):
        raise must_be("store", "an address that names a database", shown, example)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", parts.fragment):
        says = "an address that ends with #NAME, a study's name of letters, digits, dot, dash or underscore"
        raise must_be("store", says, shown, example)


def caution(folder: Path) -> str:
    """Return what should be known of the file system that a study's folder lies on; empty where it is of this machine alone."""
    import psutil  # type: ignore[import-untyped,unused-ignore]

    try:
        mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    except (OSError, RuntimeError):  # a container may hide them
        return ""
    kind = shared(folder.resolve(), mounts)
    return kind and (
        f"{folder} lies on {kind}, which other machines may share and where locks and syncs do not hold everywhere. Let one "
        "machine at a time walk it, or keep it in a database (docs/machines.md)"
    )


def shared(folder: Path, mounts: Mapping[Path, str]) -> str:
    """Return the kind of file system that a folder lies on, where other machines may share it; else nothing.

    Args:
        folder: An absolute path.
        mounts: What is mounted where, and of which kind.

    Example:
        >>> shared(Path("/home/me/runs"), {Path("/"): "ext4", Path("/home"): "nfs4"})
        'nfs4'
    """
    kind = next((mounts[above] for above in (folder, *folder.parents) if above in mounts), "")
    return kind if kind in AFAR or kind.startswith("fuse.") else ""


def address_in(folder: Path) -> str:
    """Return the address that a study's folder keeps."""
    with told(folder, "read"):
        return (folder / DATABASE).read_text().strip()
