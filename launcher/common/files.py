"""Small files at paths that others can write to: read and written so that whatever lies there can do no harm.

A path may hold a FIFO, a device, a folder, a symbolic link or a terabyte. Opening never blocks, reading has a limit of
bytes and of time, and writing goes to a new file of ours that then takes the place of the old one. Every failure is an
OSError whose ``strerror`` is for people.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time

SMALL = 1 << 20  #: bytes of a file that people write
PIPE_SECONDS = 2.0  #: for what a pipe (`--config <(...)`) has to say
_CHUNK = 1 << 16


def read(path: str, most: int = SMALL, *, follow: bool = True, folder: int | None = None) -> bytes:
    """What a file says. ``folder``: a descriptor that ``path`` is relative to. Raises OSError.

    With ``follow`` a symbolic link is followed (mounted Secrets and ConfigMaps are links) and a pipe is read, too.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags, dir_fd=folder)
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind) and not (follow and stat.S_ISFIFO(kind)):
            raise OSError(errno.EINVAL, f"it is {_kind(kind)}, not a file")
        return _read(fd, most, time.monotonic() + PIPE_SECONDS)
    finally:
        os.close(fd)


def _read(fd: int, most: int, until: float) -> bytes:
    data = b""
    while True:
        try:
            piece = os.read(fd, min(_CHUNK, most + 1 - len(data)))
        except BlockingIOError:
            if not select.select((fd,), (), (), max(0.0, until - time.monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing came from it within {PIPE_SECONDS:g} s") from None
            continue
        data += piece
        if not piece:
            return data
        if len(data) > most:
            raise OSError(errno.EFBIG, f"it is larger than {_size(most)}")


def read_text(path: str, most: int = SMALL) -> str:
    """As :func:`read`, as text. Raises OSError, also where it is no UTF-8."""
    try:
        return read(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"byte {error.start} of it is not UTF-8") from None


def replace(folder: int, name: str, fresh: str, data: bytes) -> None:
    """Put ``data`` in the place of ``name`` in a folder: by way of ``fresh``, for this user only, and on the disk.

    Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):  # of a launcher that was killed while it wrote; or not ours at all
        _clear(folder, fresh)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def overwrite(path: str, data: bytes) -> None:
    """Put ``data`` into a file that the platform made: a mount, so that nothing can take its place. Raises OSError.

    A pipe or a device is written to as far as it takes it at once, and a link is not followed.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
        os.write(fd, data)
    finally:
        os.close(fd)


def _clear(folder: int, name: str) -> None:
    if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
        set_aside(folder, name)
    else:
        os.unlink(name, dir_fd=folder)  # of a link only the link itself


def set_aside(folder: int, name: str) -> str:
    """Rename what can't be read or believed, so that people may look at it; its new name. Raises OSError.

    There is one such place for each name: what was set aside before goes, unless it is a folder with something in it.
    """
    bad = f"{name}.bad"
    try:
        os.replace(name, bad, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        bad = f"{name}.{os.urandom(3).hex()}.bad"
        os.rename(name, bad, src_dir_fd=folder, dst_dir_fd=folder)
    return bad


def _size(most: int) -> str:
    return f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"


def _kind(mode: int) -> str:
    names = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return names.get(stat.S_IFMT(mode), "something else")


def text_of(path: str) -> str:
    """What a file that the platform may have put there says; empty without it."""
    try:
        return read(path).decode("utf-8", "replace")
    except OSError:
        return ""
