"""Options of the ARC backend, and the job descriptions that it makes of a queue's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Optional

import msgspec

from common.config import ConfigError
from common.wire import Shape
from harvester.backends.arc_rest import Credential
from harvester.backends.base import WorkerSpec
from harvester.templating import Template, names_of
from harvester.worker_folder import SECRET, START

SHIPPED_TEMPLATE = "arc.xrsl.j2"
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_UNQUOTED = re.compile(r"[^\"'\\\r\n()]+")


class ArcOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Options of the backend: how to reach a CE. One kind of credential is given."""

    url: str
    """The CE's address, such as ``https://ce.example.org/arex``."""
    proxy_file: Optional[str] = None
    """An X.509 proxy (RFC 3820), as grid programs read it."""
    cert_file: Optional[str] = None
    """A certificate, in place of a proxy; with ``key_file``."""
    key_file: Optional[str] = None
    token_file: Optional[str] = None
    """A file of mode 0600 with a bearer token, in place of a certificate. It is read anew for each request."""
    ca_file: Optional[str] = None
    """Certificate authorities: a file (PEM) or a folder of hashed ones; without it the system's."""
    timeout_s: _Seconds = 60.0
    """How long one request may take."""
    settle_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """For how long the CE may still be at work on a submission that harvester was cut off in."""
    uploads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """How many files are uploaded at a time."""
    delegation_s: _Seconds = 2 * 86400.0
    """How long what the CE holds of the certificate lives at most."""
    renew_before_s: _Seconds = 6 * 3600.0
    """How long before its end it is renewed."""
    workers_dir: Optional[str] = None
    """Where the workers' folders are; without it in harvester's ``state_dir``."""

    def credential(self) -> Credential:
        """The credential. Raises ConfigError unless there is exactly one."""
        given = [name for name in ("proxy_file", "cert_file", "token_file") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError(f"options: give one of proxy_file, cert_file and token_file; here is {found}")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError("options: cert_file and key_file go together; a proxy_file holds both")
        for name in ("proxy_file", "cert_file", "key_file", "token_file", "workers_dir"):
            value = getattr(self, name)
            if value is not None and not Path(value).is_absolute():
                raise ConfigError(f"options.{name}: {value!r} must be an absolute path")
        certificate, key = self.proxy_file or self.cert_file, self.proxy_file or self.key_file
        return Credential(*(Path(name) if name else None for name in (certificate, key, self.token_file)))


class ArcSubmit(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a queue says to this backend about its workers (``submit``)."""

    queue: Optional[str] = None
    """The queue behind the CE; without it the CE's default."""
    runtime_environments: list[str] = []
    """Runtime environments of the CE, such as ``ENV/PROXY`` or one that gives a GPU."""
    attributes: list[str] = []
    """Further attributes of the description, each in parentheses: ``(project="atlas")``."""
    template: Optional[str] = None
    """A template of the description, in place of the shipped one: in xRSL (begins with ``&``) or ADL (with ``<``)."""


def submit_options(submit: Mapping[str, Any]) -> ArcSubmit:
    """A queue's ``submit``. Raises ConfigError, which names the key and the remedy."""
    try:
        read = msgspec.convert(dict(submit), ArcSubmit)
    except msgspec.ValidationError as error:
        raise ConfigError(f"submit: {error}") from error
    for name in [*([read.queue] if read.queue is not None else []), *read.runtime_environments]:
        if not _UNQUOTED.fullmatch(name):
            raise ConfigError(f"submit: {name!r}: a name has no quotes, parentheses or line ends; leave them out")
    for attribute in read.attributes:
        if not (attribute.startswith("(") and attribute.endswith(")")):
            raise ConfigError(f'submit.attributes: {attribute!r}: write it like (project="atlas")')
    if read.template is not None and not Path(read.template).is_absolute():
        raise ConfigError(f"submit.template: {read.template!r} must be an absolute path")
    return read


def check_submit(submit: Mapping[str, Any]) -> None:
    """Whether a description can be made with these. Raises ConfigError."""
    spec = WorkerSpec("0" * 32, "queue", Shape(1, 1, 1, 1), [], {}, "", submit=submit)
    describe(spec, Path("/nowhere"), "delegation")


def inputs_of(spec: WorkerSpec) -> list[str]:
    """The names of the files that a worker needs beside it."""
    return [START, SECRET, *spec.files]


def describe(spec: WorkerSpec, folder: Path, delegation: str) -> str:
    """The description of a worker's job. Raises ConfigError: what the queue says makes none."""
    options = submit_options(spec.submit)
    if spec.nodes > 1 and options.template is None:
        raise ConfigError(
            "nodes: an ARC CE starts a worker on one of its nodes only; set it to 1, or name a template (submit.template) "
            "with a runtime environment that starts one on each"
        )
    names = {
        **names_of(spec, folder),
        "submit": options,
        "inputs": inputs_of(spec),
        "programs": [START, *spec.files],
        "delegation": delegation,
    }
    text = _template(options.template, _stamp(options.template)).render(names).strip()
    if text[:1] not in ("&", "<"):
        raise ConfigError(f"template: {options.template}: it makes neither xRSL, which begins with &, nor ADL, with <")
    return text


def in_bulk(descriptions: Sequence[str]) -> tuple[bytes, str]:
    """Descriptions in one language as one request, with its content type."""
    if descriptions[0].startswith("&"):
        return f"+{''.join(f'({each})' for each in descriptions)}".encode(), "application/rsl"
    bare = [re.sub(r"^<\?xml[^>]*\?>", "", each) for each in descriptions]
    return f"<ActivityDescriptions>{''.join(bare)}</ActivityDescriptions>".encode(), "application/xml"


def _stamp(template: str | None) -> int:
    """Differs once a queue's own template was changed."""
    try:
        return Path(template).stat().st_mtime_ns if template else 0
    except OSError:
        return -1


@lru_cache(maxsize=64)
def _template(own: str | None, _stamp: int) -> Template:
    return Template(SHIPPED_TEMPLATE, own)
