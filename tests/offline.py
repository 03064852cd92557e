"""Importing this cuts a process off from every network but the machine itself (and from a GPU that does not work).

`conftest.py` does so for pytest and for the kernels of the notebooks.
"""

import os
import socket
import sys

_OWN_NAMES = (None, "", "localhost", socket.gethostname())


def _is_here(host) -> bool:
    address = str(host).partition("%")[0]
    return host in _OWN_NAMES or address in ("::1", "0.0.0.0") or address.startswith("127.")


def _asks_a_name_server(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in _OWN_NAMES or ":" in host:
        return False
    try:
        socket.inet_aton(host)  # it takes all numeric forms, "0x7f.1" too
    except OSError:
        return True
    return False


def _refuse(event: str, arguments: tuple):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not _is_here(arguments[1][0]):
        raise OSError(f"no network in tests: {arguments[1]}")
    if event == "socket.getaddrinfo" and _asks_a_name_server(arguments[0]):
        raise socket.gaierror(f"no network in tests: {arguments[0]}")


sys.addaudithook(_refuse)

if sys.platform == "darwin" and "GITHUB_ACTIONS" in os.environ:
    import torch

    # These machines report an Apple GPU, but it has no memory: actions/runner-images, issue 9918.
    torch.backends.mps.is_available = lambda: False
