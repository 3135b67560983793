"""How much a server of the page takes, keeps and lets wait."""

import dataclasses

from spn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """All at least 1. InputError where one is not."""

    megabytes: int = 64  # of one request: a photo and its mask
    megapixels: int = 24  # of one photo
    samples: int = 8  # completions of one request
    waiting: int = 8  # requests that wait while one is filled
    keep_minutes: int = 30  # that photos and results stay in memory after their last use
    keep_megabytes: int = 1024  # of photos and results; the longest unused make room

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
