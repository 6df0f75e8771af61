"""Keys, requests and files of X.509 proxies (RFC 3820)."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

KEY_BITS = 2048
"""Of a proxy's key: grid services take RSA everywhere, elliptic curves only here and there."""
END = "-----END CERTIFICATE-----\n"


def new_request() -> tuple[str, str]:
    """A new key and a request for a certificate that is signed with it, both PEM.

    The name in the request means nothing: a proxy is named after who issues it.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return pem.decode(), request.public_bytes(serialization.Encoding.PEM).decode()


def proxy_file(chain: str, key: str) -> str:
    """What grid programs read as a proxy: the proxy's certificate, its key, the certificates that it hangs on (PEM).

    Raises ValueError for a chain that is none.
    """
    proxy, end, rest = chain.partition(END)
    if not end or not x509.load_pem_x509_certificates(chain.encode()):
        raise ValueError("the chain holds no certificate")
    return f"{proxy}{end}{key}{rest}"
