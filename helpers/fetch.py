"""Fetch one file over http(s) within strict limits on time, bytes, redirects and addresses."""

import contextlib
import ipaddress
import socket
import threading
from urllib.parse import urljoin, urlsplit

MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(ValueError):
    """The file could not be fetched; the message says why."""


def fetch(url: str, *, max_bytes: int, timeout: float, allow_private: bool = False) -> tuple[bytes, str]:
    """Return the body at `url` and its content type.

    `timeout` is in seconds and covers everything together: look-up, redirects, headers and body. Every
    address on the way must be a public one unless `allow_private`. Proxies from the environment are not used,
    because behind one the address could not be checked.

    Raises FetchError.
    """
    # requests' timeout is per read, and a name look-up has none, so the deadline is kept from outside. The reads get a
    # later timeout, so that it is always the deadline that is reported.
    transfer = _Transfer(max_bytes, timeout + 1, allow_private)
    worker = threading.Thread(target=transfer.run, args=(url,), daemon=True)
    worker.start()
    try:
        worker.join(timeout)
        late = worker.is_alive()
    finally:
        transfer.stop()  # also after Ctrl-C
    if late:
        worker.join(0.5)
        raise FetchError(f"no complete answer within {timeout:g} s; try again or pass a larger timeout")
    if transfer.error is not None:
        raise transfer.error
    return transfer.body, transfer.content_type


def is_public(address: str) -> bool:
    """Whether an IP address (text), or the IPv4 address that it wraps, is one of the public internet."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        if ip.is_site_local:  # fec0::/10, deprecated, which `ipaddress` calls global
            return False
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = wrapped or ip
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


class _Transfer:
    """One download, run in a worker thread; stop() makes it end from any other thread."""

    def __init__(self, max_bytes: int, timeout: float, allow_private: bool):
        self.max_bytes, self.timeout, self.allow_private = max_bytes, timeout, allow_private
        self.body, self.content_type = b"", ""
        self.error: FetchError | None = None
        self._stopped = False
        self._sockets: list[socket.socket] = []

    def run(self, url: str) -> None:
        try:
            with self._session() as session:
                self._download(session, url)
        except FetchError as error:
            self.error = error
        except Exception as error:  # whatever it is, it must not be lost with this thread
            self.error = FetchError(_reason(error))

    def stop(self) -> None:
        self._stopped = True
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # a read that is waiting returns at once
            sock.close()

    def connect(self, host: str, port: int, socket_options) -> socket.socket:
        """Open a socket to `host`: all of its addresses are checked, then used without a second look-up."""
        from urllib3.util.connection import create_connection

        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise FetchError(f"the host {host!r} is not known; check the address") from None
        addresses = list(dict.fromkeys(info[4][0] for info in found))
        if not self.allow_private and not all(map(is_public, addresses)):
            raise FetchError(
                f"the host {host!r} is a private or local address; pass allow_private=True if you trust it"
            )
        failure: OSError = OSError("no address")
        for address in addresses:
            if self._stopped:
                break
            try:
                sock = create_connection((address, port), self.timeout, socket_options=socket_options)
            except OSError as error:
                failure = error
                continue
            # TLS takes over `sock`, so stop() needs a handle of its own on the same connection.
            self._sockets.append(sock.dup())
            if self._stopped:
                self.stop()
            return sock
        raise FetchError(
            f"cannot connect to {host} ({failure}); check the address, or save the picture and pass its path"
        )

    def _session(self):
        import requests
        from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

        def guarded(pool):
            class Connection(pool.ConnectionCls):
                def _new_conn(connection):
                    return self.connect(connection.host, connection.port, connection.socket_options)

            return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

        session = requests.Session()
        session.trust_env = False  # no proxies and no .netrc passwords
        session.headers["User-Agent"] = "phi-3-vision-locally (python-requests)"
        for scheme, pool in (("http", HTTPConnectionPool), ("https", HTTPSConnectionPool)):
            adapter = session.get_adapter(f"{scheme}://")
            adapter.poolmanager.pool_classes_by_scheme = {scheme: guarded(pool)}
        return session

    def _download(self, session, url: str) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            if urlsplit(url).scheme.lower() not in ("http", "https"):
                raise FetchError(
                    "it redirects to something that is not an http(s) address; use the address of the picture itself"
                )
            with session.get(url, stream=True, allow_redirects=False, timeout=self.timeout) as response:
                target = session.get_redirect_target(response)
                if target is None:
                    self._read(response)
                    return
                url = urljoin(url, target)
            session.close()  # drops the connections, which the server may close before they are reused, not the cookies
        raise FetchError(f"it redirects more than {MAX_REDIRECTS} times; use the address of the picture itself")

    def _read(self, response) -> None:
        if response.status_code != 200:
            answer = f"{response.status_code} {response.reason}"
            raise FetchError(f"the server answered {answer}; check the address")
        self.content_type = response.headers.get("Content-Type", "").split(";")[0].strip()
        announced = response.headers.get("Content-Length", "")
        body = bytearray()
        if announced.isdecimal() and int(announced) > self.max_bytes:
            raise FetchError(self._too_big())
        for chunk in response.iter_content(CHUNK_BYTES):  # decompressed, so that zip bombs end here too
            body += chunk
            if len(body) > self.max_bytes:
                raise FetchError(self._too_big())
        self.body = bytes(body)

    def _too_big(self) -> str:
        return f"it is larger than max_bytes={self.max_bytes:,}; take a smaller picture or raise max_bytes"


def _reason(error: BaseException) -> str:
    """The innermost cause in one line; requests wraps it three times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the transfer failed ({text[:200]}); check the address and your connection"
