"""Reads Debian packages: the files of a .deb, and what its copyright file says about each.

The copyright file is machine-readable (DEP-5). A .deb is an ar archive with a compressed tar
archive in it. Nothing is installed and nothing is unpacked to a path.
"""

import dataclasses
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from spn_jax.data.sources import Source
from spn_jax.errors import InputError

UNKNOWN = "unknown"  # the licence of files that a copyright file says nothing about
AR = b"!<arch>\n"
# bytes before each member: name (16), date, owner, group, mode (32), size (10), two end marks
AR_HEADER = 60


class Deb(Source):
    """The wanted files of a .deb, held in memory: its compression lets nobody read them one
    by one.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]):
        """Reads the package once.

        Args:
            path: the .deb file.
            wanted: tells whether to keep a file, given its path in the package without a leading
                slash.

        Raises:
            InputError: the file is not a Debian package, is damaged, or uses an unknown
                compression.
        """
        self.label = str(path)
        try:
            with _open_data(path) as archive:
                names = ((member, member.name.removeprefix("./").lstrip("/")) for member in archive if member.isfile())
                self._files = {name: _content(archive, member) for member, name in names if wanted(name)}
        except InputError:
            raise
        except (tarfile.TarError, lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
            raise InputError(f"--source {path} cannot be read as a Debian package ({error}); download it again") from error

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        return self._files[name]

    def size(self, name: str) -> int | None:
        return len(self._files[name])


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # because the member is a plain file
    return file.read()


def _open_data(path: Path) -> tarfile.TarFile:
    """Opens the tar archive with the package's files. Raises ValueError if there is none,
    InputError if its compression is not known.
    """
    name, data = _data_member(path.read_bytes())
    if not name.endswith((".zst", ".lzma")):
        return tarfile.open(fileobj=io.BytesIO(data), mode="r:*")
    if shutil.which("dpkg-deb") is None:
        raise InputError(
            f"--source {path} is compressed as {name}, which only dpkg-deb reads; install dpkg, or unpack the package and pass the folder"
        )
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True)
    if unpacked.returncode:
        raise ValueError(unpacked.stderr.decode(errors="replace").strip())
    return tarfile.open(fileobj=io.BytesIO(unpacked.stdout), mode="r:")


def _data_member(package: bytes) -> tuple[str, bytes]:
    """Returns name and content of an ar archive's member data.tar.*. Raises ValueError if it is
    absent or truncated.
    """
    if not package.startswith(AR):
        raise ValueError("it is no ar archive")
    at = len(AR)
    while at + AR_HEADER <= len(package):
        name = package[at : at + 16].decode("ascii", "replace").rstrip(" ").rstrip("/")
        size = int(package[at + 48 : at + 58])
        start = at + AR_HEADER
        if name.startswith("data.tar"):
            if start + size > len(package):
                raise ValueError(f"{name} is cut off")
            return name, package[start : start + size]
        at = start + size + size % 2  # members begin at even places
    raise ValueError("there is no data.tar in it")


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A `Files:` paragraph of a copyright file."""

    patterns: tuple[str, ...]
    copyright: str
    # its short name, such as public-domain or CC-BY-SA-4.0; UNKNOWN where the paragraph names none
    licence: str
    statement: str  # what the paragraph says about the licence beyond its name, in one line


def read_copyright(text: str, label: str) -> list[Paragraph]:
    """Returns the `Files:` paragraphs of a DEP-5 file in order. Raises InputError, which names
    `label`, if there are none.
    """
    paragraphs = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields = _fields(block)
        if "files" not in fields:
            continue
        # Patterns are separated by blanks. Some authors also write names with blanks, one a line,
        # so whole lines count as well.
        patterns = tuple(dict.fromkeys([*_lines(fields["files"]), *fields["files"].split()]))
        licence = _lines(fields.get("license", "")) or (UNKNOWN,)
        statement = " ".join([*licence[1:], *_lines(fields.get("comment", ""))])
        paragraphs.append(Paragraph(patterns, " ".join(_lines(fields.get("copyright", ""))), licence[0], statement))
    if not paragraphs:
        raise InputError(f"{label} is not in the machine-readable format (DEP-5), so no photo's licence is known; use another package")
    return paragraphs


def _fields(block: str) -> dict[str, str]:
    """Returns {name in small letters: value with its continuation lines} of a paragraph."""
    found: dict[str, str] = {}
    name = ""
    for line in block.split("\n"):
        if line[:1] in (" ", "\t"):
            if name:
                found[name] += "\n" + line
        elif not line.startswith("#"):
            name, colon, value = line.partition(":")
            name = name.strip().lower() if colon else ""
            if name:
                found[name] = value
    return found


def _lines(value: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in value.split("\n") if line.strip())


def about(paragraphs: Sequence[Paragraph], path: str) -> list[Paragraph]:
    """Returns the paragraphs that apply to the file at `path` in the package's source, if any.

    By the format's rule the last matching paragraph holds; it comes first here. Other matching
    paragraphs follow if their pattern is for certain files, not for a whole folder, and they name
    another licence. For example, `mountain1*` early in a list is meant for mountain1 but also
    matches `mountain10-by-somebody`, which has a paragraph of its own before it. A caller that
    wants to be sure asks for both licences.
    """
    matching = [(paragraph, pattern) for paragraph in paragraphs for pattern in paragraph.patterns if _expression(pattern).fullmatch(path)]
    if not matching:
        return []
    last = matching[-1][0]
    named = [paragraph for paragraph, pattern in matching if not (pattern == "*" or pattern.endswith("/*"))]
    return [last, *(paragraph for paragraph in named if paragraph.licence != last.licence)]


def _expression(pattern: str) -> re.Pattern[str]:
    """Compiles a DEP-5 pattern: * is any text, slashes included, and ? any one character."""
    return re.compile("".join({"*": ".*", "?": "."}.get(sign, re.escape(sign)) for sign in pattern), re.DOTALL)
