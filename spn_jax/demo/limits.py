"""How much a server of the page takes, keeps and lets wait."""

import dataclasses

from spn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """All are at least 1; raises InputError where one is not."""

    megabytes: int = 64  # of one request: a photo and its mask
    megapixels: int = 24  # of one photo
    samples: int = 8  # completions of one request
    windows: int = 1000  # passes of the network for one request
    minutes: int = 30  # that the network works for one request
    waiting: int = 8  # requests that wait while one is filled
    uploads: int = 16  # requests whose files are being received
    upload_megabytes: int = 256  # of the files that are being received, all together
    connections: int = 200  # open at a time
    keep_minutes: int = 30  # that photos and results stay in memory after their last use
    keep_megabytes: int = 1024  # of photos, masks and results; the longest unused make room
    keep_items: int = 1000  # photos and results that are kept; the longest unused make room

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise InputError(f"--{field.name.replace('_', '-')} {getattr(self, field.name)} must be at least 1")

    @property
    def bytes(self) -> int:
        return self.megabytes * 2**20

    @property
    def pixels(self) -> int:
        return self.megapixels * 10**6
