"""Rucio as the catalogue that outputs are registered in: replicas, datasets and the rules that keep them.

Every step may find that it was done before: after a crash between any two calls the same files come again. What is there
already is ours if its size and checksum are; the end is always to look at what Rucio lists.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.wire import Name
from server.catalogs.registration import Answer, Outcome, OutputFile, Place, Unavailable
from server.catalogs.rucio_books import RucioBooks, content_of, same_content
from server.catalogs.rucio_client import (
    RucioAccess,
    RucioClient,
    RucioDenied,
    RucioDown,
    RucioRefusal,
    RucioTrouble,
    parts_of,
)
from server.catalogs.rucio_places import Rse, Rses

logger = logging.getLogger(__name__)

BULK = 500
"""Files or attachments of one call; Rucio takes a thousand."""
WITHOUT_ROOM = frozenset({"InsufficientAccountLimit", "InsufficientTargetRSEs", "RSEOverQuota"})
"""Refusals of a rule that say nothing about the files: somebody has to make room."""
PASSING = frozenset({"Duplicate", "RSENotFound"})
"""Refusals that may be over next time: somebody does the same at this moment, or has just renamed an RSE."""
MOST_RULES = 100_000
"""Rules that are remembered, so that they are not asked for again with each file."""


class RucioRegistrarOptions(RucioAccess, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beside how to reach Rucio: ``storages`` names those of our storages that are called otherwise than their RSE, as in
    the section of the catalogue. ``rule_activity`` is the activity of the rules."""

    storages: dict[str, Name] = {}
    rule_activity: str | None = None


class RucioRegistrar:
    """Registers in one Rucio server; see :class:`server.catalogs.registration.Registrar`."""

    Options = RucioRegistrarOptions

    def __init__(self, options: RucioRegistrarOptions) -> None:
        self._options = options
        self._client = RucioClient(options)
        self._books = RucioBooks(self._client)
        self._rses = Rses(self._client)
        self._rse_of = {storage: rse for rse, storage in options.storages.items()}
        self._ruled: set[tuple[str, str]] = set()

    def register(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`server.catalogs.registration.Registrar`."""
        try:
            self._client.awake()
            return _Registration(self, files).carried_out()
        except (RucioDown, RucioDenied) as error:
            raise Unavailable(str(error)) from error

    def withdraw(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`server.catalogs.registration.Registrar`. Replicas that the account may neither delete nor call bad are refused."""
        try:
            self._client.awake()
            known, _ = self._books.metadata([file.did for file in files])
            ours = [file for file in files if file.did in known and same_content(file, known[file.did])]
            self._detach(ours)
            refused = self._delete(ours)
        except (RucioDown, RucioDenied) as error:
            raise Unavailable(str(error)) from error
        return [_answer(file.did, refused, {}) for file in files]

    def _detach(self, files: Sequence[OutputFile]) -> None:
        datasets = sorted({place.did for file in files for place in file.datasets})
        there, _ = self._books.metadata(datasets)
        wanted = {(place.did, file.did) for file in files for place in file.datasets if place.did in there}
        found = wanted - self._books.not_listed(wanted)
        for dataset, dids in sorted(_grouped(found).items()):
            for part in _parts(dids):
                self._books.detach(dataset, part)

    def _delete(self, files: Sequence[OutputFile]) -> dict[str, str]:
        refused = {}
        known = self._books.replicas([file.did for file in files])
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for file in files:
            rse = self.rse_name(file)
            if known.get(file.did, {}).get("states", {}).get(rse) == "AVAILABLE":
                groups[rse].append(file.did)
        for rse, dids in sorted(groups.items()):
            for part in _parts(dids):
                try:
                    self._books.delete_replicas(rse, part)
                except (RucioDenied, RucioRefusal) as error:
                    refused.update(dict.fromkeys(part, f"replicas at {rse} stay: {error}"))
        return refused

    def rse_name(self, file: OutputFile) -> str:
        """The RSE of the storage that a file lies on."""
        return self._rse_of.get(file.storage, file.storage)

    def rse(self, name: str) -> Rse | None:
        """The RSE of that name."""
        return self._rses.get(name)

    @property
    def books(self) -> RucioBooks:
        """What Rucio has written down."""
        return self._books

    def rule(self, place: Place, now: float) -> None:
        """Keep a dataset on its storage until its time is over; nothing if that was asked for before.

        Raises:
            RucioRefusal: it cannot be.
        """
        assert place.storage is not None
        rse = self._rse_of.get(place.storage, place.storage)
        if (place.did, rse) in self._ruled or (place.expires is not None and place.expires <= now):
            return
        lifetime = None if place.expires is None else max(1, int(place.expires - now))
        self._books.add_rule(place.did, rse, lifetime, self._options.rule_activity)
        if len(self._ruled) >= MOST_RULES:
            self._ruled.clear()
        self._ruled.add((place.did, rse))


class _Registration:
    """One call: what is refused, and what must come again, by DID and with the reason."""

    def __init__(self, registrar: RucioRegistrar, files: Sequence[OutputFile]) -> None:
        self._registrar = registrar
        self._books = registrar.books
        self._files = files
        self._refused: dict[str, str] = {}
        self._later: dict[str, str] = {}

    def carried_out(self) -> list[Answer]:
        """All steps, each for the files that are left; an answer for each file."""
        datasets = {place.did for file in self._files for place in file.datasets}
        scopes = self._books.scopes_missing(
            did.partition(":")[0] for did in {file.did for file in self._files} | datasets
        )
        for file in self._files:
            missing = {did.partition(":")[0] for did in (file.did, *(place.did for place in file.datasets))} & scopes
            if missing:
                self._refused[file.did] = f"Rucio has no scope {', '.join(sorted(missing))}"
        known, nameless = self._books.metadata([*(file.did for file in self._left()), *sorted(datasets)])
        for file in self._files:
            for did in (file.did, *(place.did for place in file.datasets)):
                if did in nameless:
                    self._refused.setdefault(file.did, f"{did}: {nameless[did]}")
            if file.did in known and not same_content(file, known[file.did]):
                self._refused[file.did] = f"Rucio has another file of the name {file.did}"
        self._add_replicas()
        self._make_datasets(known)
        self._attach()
        self._keep()
        self._verify()
        return [_answer(file.did, self._refused, self._later) for file in self._files]

    def _left(self) -> list[OutputFile]:
        return [file for file in self._files if file.did not in self._refused and file.did not in self._later]

    def _refuse(self, dids: Iterable[str], words: str) -> None:
        for did in dids:
            self._refused.setdefault(did, words)

    def _add_replicas(self) -> None:
        groups: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for file in self._left():
            name = self._registrar.rse_name(file)
            rse = self._registrar.rse(name)
            if rse is None:
                # A mistake of the configuration, not of the file: it waits for the admin.
                self._later[file.did] = f"storage {file.storage}: Rucio has no RSE {name}"
                continue
            problem, document = replica_of(file, rse)
            if problem:
                self._refused[file.did] = problem
            else:
                groups[name][file.did] = document
        for name, documents in sorted(groups.items()):
            for part in _parts(list(documents)):
                self._add_bulk(name, {did: documents[did] for did in part})

    def _add_bulk(self, rse: str, documents: Mapping[str, dict[str, Any]]) -> None:
        """Add replicas in one call; when Rucio takes them not, in halves, until those are found that it refuses."""
        try:
            self._books.add_replicas(rse, list(documents.values()))
        except RucioDenied as error:
            scopes = _grouped((did.partition(":")[0], did) for did in documents)
            if len(scopes) == 1:
                self._later.update(dict.fromkeys(documents, f"{rse}: {error}"))
                return
            for dids in scopes.values():
                self._add_bulk(rse, {did: documents[did] for did in dids})
        except (RucioRefusal, RucioTrouble) as error:
            dids = list(documents)
            if len(dids) > 1:
                middle = len(dids) // 2
                for half in (dids[:middle], dids[middle:]):
                    self._add_bulk(rse, {did: documents[did] for did in half})
            elif isinstance(error, RucioTrouble) or error.name in PASSING:
                self._later[dids[0]] = f"{rse}: {error}"
            else:
                self._refused[dids[0]] = f"{rse}: {error}"

    def _members(self) -> dict[str, list[str]]:
        return _grouped((place.did, file.did) for file in self._left() for place in file.datasets)

    def _make_datasets(self, known: Mapping[str, dict[str, Any]]) -> None:
        members = self._members()
        for did in members:
            if did in known and known[did].get("did_type") != "DATASET":
                self._refuse(members[did], f"{did} is no dataset in Rucio but a {known[did].get('did_type')}")
        missing = sorted(did for did in self._members() if did not in known)
        for part in _parts(missing):
            try:
                self._books.add_datasets(part)
            except (RucioRefusal, RucioTrouble, RucioDenied):
                for did in part:
                    self._make_one(did, members[did])

    def _make_one(self, dataset: str, members: Sequence[str]) -> None:
        try:
            self._books.add_datasets([dataset])
        except RucioRefusal as error:
            if error.name != "DataIdentifierAlreadyExists":  # else somebody has made it meanwhile
                self._refuse(members, f"dataset {dataset}: {error}")
        except (RucioTrouble, RucioDenied) as error:
            self._later.update(dict.fromkeys(members, f"dataset {dataset}: {error}"))

    def _attach(self) -> None:
        pairs = [(dataset, part) for dataset, dids in sorted(self._members().items()) for part in _parts(dids)]
        try:
            if pairs:
                self._books.attach(pairs)
        except (RucioRefusal, RucioTrouble, RucioDenied):
            for dataset, part in pairs:
                try:
                    self._books.attach([(dataset, part)])
                except RucioRefusal as error:
                    self._refuse(part, f"dataset {dataset}: {error}")
                except (RucioTrouble, RucioDenied) as error:
                    self._later.update(dict.fromkeys(part, f"dataset {dataset}: {error}"))

    def _keep(self) -> None:
        members = self._members()
        now = time.time()
        places = {(place.did, place.storage): place for file in self._left() for place in file.datasets}
        for place in (places[key] for key in sorted(places, key=str) if key[1] is not None):
            words = f"the rule that keeps {place.did} on {place.storage}"
            try:
                self._registrar.rule(place, now)
            except RucioRefusal as error:
                if error.name in WITHOUT_ROOM:
                    self._later.update(dict.fromkeys(members.get(place.did, ()), f"{words}: {error}"))
                else:
                    self._refuse(members.get(place.did, ()), f"{words}: {error}")
            except (RucioTrouble, RucioDenied) as error:
                self._later.update(dict.fromkeys(members.get(place.did, ()), f"{words}: {error}"))

    def _verify(self) -> None:
        """Look whether Rucio lists what it was told: what is missing comes again."""
        left = self._left()
        listed = self._books.replicas([file.did for file in left])
        for file in left:
            rse, found = self._registrar.rse_name(file), listed.get(file.did)
            if found is None or found.get("states", {}).get(rse) != "AVAILABLE":
                state = (found or {}).get("states", {}).get(rse, "not there")
                self._later[file.did] = f"Rucio lists its replica at {rse} as {state}"
            elif not same_content(file, found):
                self._refused[file.did] = f"Rucio lists it with another content: {content_of(found)}"
        wanted = {(place.did, file.did) for file in self._left() for place in file.datasets}
        for dataset, did in self._books.not_listed(wanted):
            self._later[did] = f"Rucio does not list it in {dataset}"


def replica_of(file: OutputFile, rse: Rse) -> tuple[str, dict[str, Any]]:
    """What Rucio is told of a file; before it, why it cannot be told, if so."""
    algorithm, _, value = file.checksum.partition(":")
    if algorithm not in ("adler32", "md5"):
        return f"Rucio keeps adler32 and md5 only, and its checksum is {algorithm}", {}
    document: dict[str, Any] = {**parts_of(file.did), "bytes": file.size, algorithm: value}
    if file.events is not None:
        document["meta"] = {"events": file.events}
    expected = rse.path_of(file.did)
    if expected is not None:
        if expected != file.path.lstrip("/"):
            return f"{rse.name}: it lies at {file.path}, where Rucio does not look: its place is {expected}", {}
        return "", document
    url = rse.url(file.path)
    if url is None:
        return f"{rse.name}: it has no protocol for writing, so Rucio cannot be told where the file is", {}
    return "", {**document, "pfn": url}


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for dataset, did in pairs:
        found[dataset].append(did)
    return found


def _parts(dids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (dids[start : start + BULK] for start in range(0, len(dids), BULK))


def _answer(did: str, refused: Mapping[str, str], later: Mapping[str, str]) -> Answer:
    if did in refused:
        return Answer(Outcome.REFUSED, refused[did])
    return Answer(Outcome.AGAIN, later[did]) if did in later else Answer(Outcome.DONE)
