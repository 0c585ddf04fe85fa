"""What `python -m megatv.studio` does once its options are read: load a checkpoint, listen, serve."""

from __future__ import annotations

import argparse
import ipaddress
import socket
from functools import partial
from pathlib import Path

from fastapi import FastAPI

import megatv
from megatv.checkpoint.trust import Trust
from megatv.connections import Bounds, Server
from megatv.guard import own_names
from megatv.log import say
from megatv.sample import Sampler, Stream
from megatv.sample.inputs import held_out, read_example
from megatv.sample.sampler import some_device
from megatv.studio import limits
from megatv.studio.app import make_app
from megatv.studio.session import Model


def serve(args: argparse.Namespace) -> None:
    """Serve what the options of `megatv.studio.cli` ask for until Ctrl-C. ValueError for any bad input."""
    names = own_names(args.host, args.public_name)
    listening = _listen(args.host, args.port)
    sampler = Sampler.from_checkpoint(
        args.checkpoint, args.device or some_device(), args.weights, args.precision, trust=Trust.given(args)
    )
    record = {
        "megatv": megatv.__version__,
        "name": Path(args.checkpoint).resolve().name,
        "step": sampler.step,
        "precision": sampler.precision.name,
    }
    read = partial(read_example, sampler)
    # no overlap: a player sees every chunk before the keys of the next one count
    model = Model(sampler.config, partial(Stream, sampler, overlap=False), record, _examples(sampler), read)
    app = make_app(model, names)
    host, port = listening.getsockname()[:2]
    say(f"studio: open http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
    if not ipaddress.ip_address(host).is_loopback:
        say("studio: everyone who reaches this address may use it; there is no password and no encryption")
    server_of(app, behind_proxy=bool(args.public_name)).run(sockets=[listening])


def server_of(app: FastAPI, *, behind_proxy: bool = False) -> Server:
    """The studio's server, with all its bounds.

    behind_proxy   a proxy on this machine says whose request it passes on (X-Forwarded-For)
    """
    bounds = Bounds(
        total=limits.MAX_CONNECTIONS,
        request_seconds=limits.REQUEST_SECONDS,
        body_seconds=limits.BODY_SECONDS,
        stalled_seconds=limits.STALLED_SECONDS,
        max_unread_bytes=limits.MAX_UNREAD_BYTES,
        max_parts=limits.MAX_PARTS,
    )
    return Server(
        app,
        bounds,
        loop="asyncio",
        proxy_headers=behind_proxy,
        h11_max_incomplete_event_size=limits.MAX_HEAD_BYTES,
        ws_max_size=limits.MAX_MESSAGE_BYTES,
        ws_ping_interval=limits.PING_SECONDS,
        ws_ping_timeout=limits.PONG_SECONDS,
        ws_per_message_deflate=False,  # a compressor for every viewer, and frames hardly shrink
        timeout_graceful_shutdown=2,
    )


def _examples(sampler: Sampler) -> int:
    """How many held-out examples there are to start from; none where the run's data is not here."""
    if sampler.config.data.val is None:
        return 0
    try:
        return len(held_out(sampler))
    except (ValueError, OSError) as error:
        say(f"studio: no held-out examples to start from ({error})")
        return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use is known before the model is loaded."""
    if not 0 <= port < 65536:
        raise ValueError(f"--port {port}: ports are 0 to 65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another --port"
        ) from None
