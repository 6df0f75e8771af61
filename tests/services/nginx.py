"""A real web server that ends TLS in front of ours and says whose certificates it has verified."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

from tests.services.base import Service, free_port, require
from tests.services.certificates import Authority
from tests.services.install import install_packages, missing, state_of

COMMANDS = ("nginx",)


def status() -> str:
    """For the header of a test run: installed, or to be installed."""
    return state_of(not missing(COMMANDS))


def install() -> None:
    """Get nginx. Raises ServiceUnavailable."""
    if missing(COMMANDS):
        install_packages("nginx", ["nginx-light"])


class FrontEnd(Service):
    """nginx on loopback before the server at ``port``, with the headers of ``docs/how-to/authenticate.md``.

    While that server is away it answers 503, as ``docs/how-to/migrate-from-data-dispatcher.md`` has it.

    ``secret`` is what it shares with that server; people's certificates are those of ``authority``.
    """

    def __init__(self, folder: Path, authority: Authority, port: int, secret: str) -> None:
        require(install)
        folder.mkdir()
        self.port = free_port()
        self.folder = folder
        self.ca_file = authority.file
        certificate, key = folder / "host.pem", folder / "host.key"
        authority.host().write(certificate, key)
        config = folder / "nginx.conf"
        config.touch(0o600)
        config.write_text(_config(folder, self.port, port, secret, authority.file))
        command = ["nginx", "-c", config, "-p", folder, "-e", folder / "error.log"]
        super().__init__("nginx", command, folder / "log", self._listens)

    @property
    def url(self) -> str:
        """The server's address, without a slash at its end."""
        return f"https://localhost:{self.port}"

    def access(self) -> str:
        """What it was asked, and what it answered."""
        return (self.folder / "access.log").read_text()

    def _listens(self) -> bool:
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file))
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain:
                context.wrap_socket(plain, server_hostname="localhost").close()
        except OSError:
            return False
        return True


def _config(folder: Path, port: int, behind: int, secret: str, ca_file: Path) -> str:
    temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi"))
    temporary += "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("uwsgi", "scgi"))
    user = "user nobody nogroup;\n" if os.geteuid() == 0 else ""
    return f"""{user}daemon off;
worker_processes 1;
pid {folder}/pid;
events {{}}
http {{
access_log {folder}/access.log;
{temporary}client_max_body_size 256m;
client_body_buffer_size 1m;
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/host.pem;
    ssl_certificate_key {folder}/host.key;
    ssl_client_certificate {ca_file};
    ssl_verify_client optional;
    set $s "{secret}";
    location / {{
        proxy_pass http://127.0.0.1:{behind};
        proxy_set_header X-Client-Verify  "$s $ssl_client_verify $s";
        proxy_set_header X-Client-Subject "$s $ssl_client_s_dn $s";
        proxy_next_upstream off;
        error_page 502 504 = @later;
    }}
    location @later {{ return 503; }}
}}
}}
"""
