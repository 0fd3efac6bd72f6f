"""A folder as a zip archive that is sent while it is made: no copy on disk, no size in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20


class _Sent:
    """A file that cannot be sought; what was written waits in `parts`."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


def zip_folder(folder: Path) -> Iterator[bytes]:
    """The bytes of an archive of all files in `folder`, under its name; stored as they are, since images are packed.

    The same folder always gives the same bytes.
    """
    sent = _Sent()
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            info = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            info.external_attr = 0o644 << 16
            with open(path, "rb") as source, archive.open(info, "w", force_zip64=True) as member:
                while block := source.read(BLOCK):
                    member.write(block)
                    yield sent.take()
    yield sent.take()
