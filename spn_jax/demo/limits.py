"""Defines how much a server of the page accepts, stores and queues, and how long it waits."""

import dataclasses

from spn_jax.errors import InputError

# How long a server waits for a client. These are no options.
HEAD_SECONDS = 20.0  # in which the head of a request has to arrive
UPLOAD_SECONDS = 20.0  # in which none of an upload has to arrive
SLOWEST_UPLOAD = 20_000  # least bytes a second after these
STOP_SECONDS = 3  # that open connections have to finish when the server stops
PATIENCE = (  # for --help
    f"The head of a request must arrive within {HEAD_SECONDS:g} seconds. An upload may pause for {UPLOAD_SECONDS:g} seconds in all; "
    f"apart from that it must bring {SLOWEST_UPLOAD // 1000} kB a second. Slower ones are ended."
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server, each at least 1. Raises InputError if one is not."""

    megabytes: int = 64  # of one request: a photo and its mask
    megapixels: int = 24  # of one photo
    samples: int = 8  # completions of one request
    windows: int = 1000  # passes of the network for one request
    minutes: int = 30  # of the network's work for one request
    waiting: int = 8  # requests that wait while one is filled
    uploads: int = 16  # requests whose files are being received
    upload_megabytes: int = 256  # of the files that are being received, all together
    connections: int = 200  # open at a time
    keep_minutes: int = 30  # for which photos and results stay in memory after their last use
    keep_megabytes: int = 1024  # of photos, masks and results; the least recently used are dropped first
    keep_items: int = 1000  # photos and results that are kept; the least recently used are dropped first

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
