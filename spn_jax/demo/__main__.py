"""Fills holes in photos on a web page: `python -m spn_jax.demo --checkpoint DIR`, and open the address that it prints.

The server listens at this machine's loopback address unless --host says otherwise; photos stay in its memory, and only there. Ctrl-C
stops it. The page /docs on the same server describes the requests by which programs use it.
"""

import argparse
import contextlib
import dataclasses
import socket
from collections.abc import Sequence
from typing import Any

from spn_jax.config import Config
from spn_jax.demo.limits import Limits
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.device import choose_device, set_up

GRACE = 3  # seconds that connections have to end by themselves


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    limits = Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    set_up()
    choose_device(options.device)
    with listen(options.host, options.port) as open_socket:  # before the checkpoint is read, which takes longer
        app = create(options, limits)
        print(f"open {address(options.host, open_socket)} in a browser; Ctrl-C stops", flush=True)
        serve(app, open_socket)
    print("stopped", flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.demo", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's work directory (its newest checkpoint) or one checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets other machines in, without any password")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further name by which browsers may ask")
    parser.add_argument("--device", help="of JAX: cpu, gpu or tpu; its own choice if left out")
    default = Limits()
    for name, what in (
        ("megabytes", "of one request, a photo and its mask"),
        ("megapixels", "million pixels of a photo"),
        ("samples", "completions of one request (probabilistic models)"),
        ("waiting", "requests that wait while another one is filled; more are refused"),
        ("keep-minutes", "that photos and results are kept after their last use"),
        ("keep-megabytes", "of memory for them; the longest unused make room"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (at most; {value})")
    return parser.parse_args(arguments)


def listen(host: str, port: int) -> socket.socket:
    """An open socket. InputError: the address is another machine's or taken."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must lie between 0 and {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--host {host} --port {port}: nothing can listen there ({reason}); choose others, or end what does") from error


def create(options: argparse.Namespace, limits: Limits) -> Any:
    """The Starlette application, with its model loaded. InputError: the extra is not installed, or there is no such checkpoint."""
    try:
        from spn_jax.demo.app import Settings, create_app
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}, which is not installed; pip install 'spn_jax[web]'") from error
    from spn_jax.filling.inpainter import Inpainter

    inpainter = Inpainter.load(options.checkpoint)
    config = inpainter.config
    settings = Settings(describe(config), config.model.variational, options.host, tuple(options.allow_host), limits)
    return create_app(inpainter, settings)


def describe(config: Config) -> str:
    """The model in words for the page."""
    kind = "probabilistic " if config.model.variational else ""
    return f"{kind}SPN, trained at {config.data.image_size} x {config.data.image_size} pixels"


def address(host: str, open_socket: socket.socket) -> str:
    """What to type into a browser on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{open_socket.getsockname()[1]}/"


def serve(app: Any, open_socket: socket.socket) -> None:
    """Answers until Ctrl-C or SIGTERM; what is being filled then is finished unless a second Ctrl-C comes."""
    import uvicorn

    config = uvicorn.Config(
        app, loop="asyncio", http="h11", ws="none", log_level="warning", server_header=False, timeout_graceful_shutdown=GRACE
    )
    # uvicorn stops in order and then sends itself the signal once more.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[open_socket])


def cli() -> None:
    """The console command `spn-demo`."""
    run_command(main)


if __name__ == "__main__":
    cli()
