"""A file that is read through a map of memory, and may be larger than memory.

    class Notes(MappedFile):
        def read(self): ..    # self.data[start:stop]
"""
import contextlib
import hashlib
import mmap
import os
from typing import Any

PIECE = 2**24  # bytes after whose reading the system may drop the pages


def file_identity(file: Any) -> tuple[int, int, int, int]:
    """What tells whether an open file was changed or replaced: device, inode, size and time of the last change."""
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns


class MappedFile:
    """A file, opened. map() makes its bytes readable: an empty file has no map, so its size is looked at first."""

    data: mmap.mmap

    def __init__(self, path: str):
        self.path = path
        self.file = open(path, "rb")
        self.identity = file_identity(self.file)
        self.size = os.fstat(self.file.fileno()).st_size

    def map(self) -> None:
        """Map the file into memory."""
        self.data = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)

    def release(self) -> None:
        """Let the system drop the pages that were read; it reads them from the file again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.data.madvise(mmap.MADV_DONTNEED)

    def sha256(self) -> str:
        """The file's hash, in hexadecimal."""
        digest = hashlib.sha256()
        for start in range(0, self.size, PIECE):
            digest.update(self.data[start:start + PIECE])
            self.release()
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()
        with contextlib.suppress(BufferError, AttributeError):  # interrupted while a view was open: closed with it
            self.data.close()
