"""Configuration of the faces: ``[server.compat]``, a section for each. Every face is off until an admin turns it on."""

from __future__ import annotations

from typing import Annotated

import msgspec


class DataDispatcher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.data_dispatcher]``: ``ddisp`` and its workers."""

    on: bool = False
    """Whether it is there."""
    catalog: str = ""
    """The catalogue, of ``[server.catalogs]``, that is asked where files lie, and that answers queries."""
    password_file: str = ""
    """Who may log in with a password: a file of mode 0600 as ``htdigest`` writes it; without one nobody may."""
    realm: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r'^[^"\\:\x00-\x1f]+$(?!\n)')] = (
        "data_dispatcher"
    )
    """The realm of its passwords."""
    token_s: Annotated[float, msgspec.Meta(gt=0, le=366 * 86400)] = 86400.0
    """Life of a token that a login gives; the client cannot renew it."""
    rse_site: str = ""
    """The site of storages that ``ddisp rse create`` makes; without one it makes none."""


class Panda(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.panda]``: PanDA's pilots, at ``/server/panda``."""

    on: bool = False
    """Whether they may call."""
    url: str = ""
    """Where their nodes reach this server, such as ``https://pilotage.example.org:8443``; without one, by the name that
    they call it by."""
    vo: str = ""
    """What they must name in the header ``Origin``; without one, it is not looked at."""
    queues: dict[str, str] = {}
    """Our names of queues that have others there: theirs, then ours."""
    labels: dict[str, list[str]] = {}
    """Shares whose jobs pilots of a ``prodSourceLabel`` get; of a label that is not named, all."""


class PandaHarvester(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.panda_harvester]``: PanDA's Harvester, at ``/api/v1``. What is said of its pilots holds for it, too."""

    on: bool = False
    """Whether it may call. It needs ``[server.compat.panda]`` to be on."""


class ActSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.act]``: clients of aCT (``act``)."""

    on: bool = False
    """Whether they may call."""
    authorities: str = "/etc/grid-security/certificates"
    """Folder of the authorities whose people's proxies are taken (PEM), and of their lists of revoked certificates."""


class PandaLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.panda_client.logins.VO]``: where PanDA's client sends the people of a VO to log in.

    ``client_id`` is a public client of the issuer (one without a secret) that allows device codes; ``config_url`` its
    ``…/.well-known/openid-configuration``. The issuer is one of ``[[server.oidc]]``, too.
    """

    client_id: str
    config_url: str
    audience: str = ""
    jwt_profile: str = ""


class PandaClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat.panda_client]``: ``prun``, ``pbook`` and the Python API of ``panda-client``.

    ``catalog`` names the catalogue of ``[server.catalogs]`` that input datasets are looked up in, which our own tasks did
    not write.
    """

    on: bool = False
    catalog: str = ""
    logins: dict[str, PandaLogin] = {}


class Compat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[server.compat]``: which of other systems' clients may call, and what they need to be told."""

    data_dispatcher: DataDispatcher = msgspec.field(default_factory=DataDispatcher)
    """Clients of Data Dispatcher: ``[server.compat.data_dispatcher]``."""
    panda: Panda = Panda()
    """Pilots of PanDA."""
    panda_harvester: PandaHarvester = PandaHarvester()
    """Harvesters of PanDA."""
    act: ActSettings = ActSettings()
    """aCT's REST interface."""
    panda_client: PandaClient = msgspec.field(default_factory=PandaClient)
