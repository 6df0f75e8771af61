"""An OpenID Connect provider on loopback, as far as Pilotage needs one: discovery, keys, tokens, the device flow."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

Answer = tuple[int, dict[str, str], bytes]


class Provider:
    """Starts at once; ``stop`` ends it. What it answers can be replaced path by path in ``answers``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.keys: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.forms: list[dict[str, str]] = []
        self.pending = 0
        """How often the device flow says that nobody has agreed yet."""
        self.audience = "pilotage"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.add_key("one")

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # ------------------------------------------------------------ keys and tokens

    def add_key(self, kid: str, kind: str = "RSA", bits: int = 2048) -> Any:
        key: Any
        if kind == "RSA":
            key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        self.keys[kid] = key
        return key

    def jwks(self) -> dict[str, Any]:
        return {"keys": [self.jwk(kid) for kid in self.keys]}

    def jwk(self, kid: str) -> dict[str, Any]:
        public = self.keys[kid].public_key()
        if isinstance(public, rsa.RSAPublicKey):
            return {**RSAAlgorithm.to_jwk(public, as_dict=True), "kid": kid, "use": "sig", "alg": "RS256"}
        return {**ECAlgorithm.to_jwk(public, as_dict=True), "kid": kid, "use": "sig"}

    def claims(self, subject: str = "s-1", **more: Any) -> dict[str, Any]:
        now = int(self.clock())
        made = {
            "iss": self.url,
            "sub": subject,
            "aud": self.audience,
            "exp": now + 600,
            "iat": now,
            "nbf": now,
            "jti": "t-1",
            "wlcg.ver": "1.0",
            "scope": "openid compute.create",
            "wlcg.groups": ["/dune", "/dune/production"],
            **more,
        }
        return {name: value for name, value in made.items() if value is not None}

    def token(
        self,
        subject: str = "s-1",
        *,
        kid: Optional[str] = "one",
        key: Any = None,
        algorithm: str = "RS256",
        headers: Optional[dict[str, Any]] = None,
        **claims: Any,
    ) -> str:
        """A signed token; a claim of None is left out."""
        signer = key if key is not None else self.keys[kid or "one"]
        named = {**({"kid": kid} if kid is not None else {}), **(headers or {})}
        return jwt.encode(self.claims(subject, **claims), signer, algorithm=algorithm, headers=named)

    # ------------------------------------------------------------ HTTP

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "token_endpoint": f"{self.url}/token",
            "device_authorization_endpoint": f"{self.url}/device",
        }

    def _answer(self, path: str, form: dict[str, str]) -> Answer:
        if path in self.answers:
            return self.answers[path]()
        if path == "/.well-known/openid-configuration":
            return reply(self.metadata())
        if path == "/jwks":
            return reply(self.jwks())
        if path == "/device":
            return reply(
                {
                    "device_code": "device-code-1",
                    "user_code": "ABCD-EFGH",
                    "verification_uri": f"{self.url}/verify",
                    "expires_in": 600,
                    "interval": 1,
                }
            )
        if path == "/token":
            if form.get("grant_type", "").endswith("device_code") and self.pending > 0:
                self.pending -= 1
                return reply({"error": "authorization_pending"}, 400)
            return reply({"access_token": self.token(), "expires_in": 600, "refresh_token": "refresh-1"})
        return reply({"error": "not_found"}, 404)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                form = {name: values[0] for name, values in parse_qs(body).items()}
                provider.forms.append(form)
                self._send(form)

            def _send(self, form: dict[str, str]) -> None:
                provider.calls[self.path] += 1
                status, headers, body = provider._answer(self.path, form)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the client had enough

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        return Handler


def reply(document: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    return status, {"Content-Type": "application/json", **headers}, json.dumps(document).encode()
