"""MetaCat as the catalogue that outputs are registered in: declared with what the jobscript says of them, their parents and
datasets; and ``dune.output_status``, which goes from recorded over uploaded to confirmed.

*recorded*: MetaCat knows the file, nobody else does yet. *uploaded*: the catalogue of replicas, if there is one, knows it,
and its datasets have it. *confirmed*: its job has ended well, so that nothing of it will be taken back.

Every step may find that it was done before: after a crash between any two calls the same files come again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from common.config import ConfigError
from common.wire import Did, Name
from server.catalogs.metacat import EVENTS, checksum_of
from server.catalogs.metacat_client import (
    MetaCat,
    MetaCatAccess,
    MetaCatDenied,
    MetaCatDown,
    MetaCatExists,
    MetaCatRefusal,
    parts_of,
)
from server.catalogs.registration import Answer, Confirming, Outcome, OutputFile, Registrar, Unavailable

logger = logging.getLogger(__name__)

STATUS = "dune.output_status"
RECORDED, UPLOADED, CONFIRMED = "recorded", "uploaded", "confirmed"
MOST_DATASETS = 100_000
"""Datasets that are remembered, so that they are not asked for again with each file."""


class MetaCatRegistrarOptions(MetaCatAccess, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beside how to reach MetaCat: ``replicas`` is the section of the registrar that files are registered with as well,
    such as Rucio's. ``events`` is the field of the metadata with the event count. MetaCat wants every file to be in a
    dataset: those that belong to none (logs) go into ``other_dataset``, or are not declared without one."""

    replicas: Name | None = None
    events: str = EVENTS
    other_dataset: Annotated[str, msgspec.Meta(pattern=r"^([^:\s/]+:[^:\s/]+)?$(?!\n)")] = ""


class MetaCatRegistrar:
    """Registers in one MetaCat server; see :class:`server.catalogs.registration.Registrar`."""

    Options = MetaCatRegistrarOptions

    def __init__(self, options: MetaCatRegistrarOptions) -> None:
        self.options = options
        self.metacat = MetaCat(options)
        self.datasets: set[str] = set()
        """Those that are known to be there."""
        self.replicas: Registrar | None = None

    def join(self, others: Mapping[str, Registrar]) -> None:
        """Find the registrar of replicas among those of the configuration. Raises ConfigError."""
        name = self.options.replicas
        if name is None:
            return
        if name not in others or others[name] is self:
            raise ConfigError(f"replicas: there is no other registrar {name!r}; known: {', '.join(others)}")
        self.replicas = others[name]

    def register(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`server.catalogs.registration.Registrar`."""
        try:
            return _Registration(self, files).carried_out()
        except (MetaCatDown, MetaCatDenied) as error:
            raise Unavailable(str(error)) from error

    def withdraw(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`server.catalogs.registration.Registrar`. Files are retired: their names stay taken."""
        answers = {file.did: Answer(Outcome.DONE) for file in files}
        if self.replicas is not None:
            answers = {file.did: each for file, each in zip(files, self.replicas.withdraw(files), strict=True)}
        try:
            known = self.metacat.files([file.did for file in files])
            for file in files:
                if file.did in known and not known[file.did].get("retired") and is_same(file, known[file.did]):
                    self.metacat.retire(file.did)
        except (MetaCatDown, MetaCatDenied) as error:
            raise Unavailable(str(error)) from error
        except MetaCatRefusal as error:
            return [Answer(Outcome.AGAIN, str(error))] * len(files)
        return [answers[file.did] for file in files]

    def confirm(self, files: Sequence[OutputFile]) -> Sequence[Answer]:
        """See :class:`server.catalogs.registration.Confirming`."""
        replicas: object = self.replicas
        if isinstance(replicas, Confirming):
            for file, answer in zip(files, replicas.confirm(files), strict=True):
                if answer.outcome is Outcome.AGAIN:
                    return [Answer(Outcome.AGAIN, f"{file.did}: {answer.words}")] * len(files)
        try:
            self.metacat.set_metadata([file.did for file in files if self.home(file)], {STATUS: CONFIRMED})
        except (MetaCatDown, MetaCatDenied) as error:
            raise Unavailable(str(error)) from error
        except MetaCatRefusal as error:  # somebody has removed one of them: the others are told one by one
            if len(files) > 1:
                return [answer for file in files for answer in self.confirm([file])]
            return [Answer(Outcome.REFUSED, str(error))]
        return [Answer(Outcome.DONE)] * len(files)

    def home(self, file: OutputFile) -> str:
        """The dataset that a file is declared in; empty: it is not declared."""
        return file.datasets[0].did if file.datasets else self.options.other_dataset


class _Registration:
    """One call: what is refused, and what must come again, by DID and with the reason."""

    def __init__(self, registrar: MetaCatRegistrar, files: Sequence[OutputFile]) -> None:
        self._registrar = registrar
        self._metacat = registrar.metacat
        self._files = files
        self._refused: dict[str, str] = {}
        self._later: dict[str, str] = {}

    def carried_out(self) -> list[Answer]:
        """All steps, each for the files that are left; an answer for each file."""
        declared = [file for file in self._files if self._registrar.home(file)]
        parents = {parent for file in declared for parent in parents_of(file)}
        known = self._metacat.files(sorted({file.did for file in declared} | parents)) if declared else {}
        for file in declared:
            if file.did in known and not is_same(file, known[file.did]):
                self._refused[file.did] = f"MetaCat has another file of the name {file.did}"
        self._make_datasets()
        self._declare([file for file in self._left(declared) if file.did not in known], known)
        self._register_replicas()
        self._add_to_datasets(known)
        status = {did: (record.get("metadata") or {}).get(STATUS) for did, record in known.items()}
        recorded = [file.did for file in self._left(declared) if status.get(file.did) not in (UPLOADED, CONFIRMED)]
        self._tell(recorded, lambda part: self._metacat.set_metadata(part, {STATUS: UPLOADED}))
        return [_answer(file.did, self._refused, self._later) for file in self._files]

    def _left(self, files: Iterable[OutputFile]) -> list[OutputFile]:
        return [file for file in files if file.did not in self._refused and file.did not in self._later]

    def _make_datasets(self) -> None:
        members: defaultdict[str, list[str]] = defaultdict(list)
        for file in self._left(self._files):
            for did in {self._registrar.home(file), *(place.did for place in file.datasets)} - {""}:
                members[did].append(file.did)
        there = self._registrar.datasets
        for did in sorted(set(members) - there):
            try:
                if not self._metacat.has_dataset(did):
                    self._metacat.make_dataset(did)
            except MetaCatRefusal as error:
                self._refused.update(dict.fromkeys(members[did], f"dataset {did}: {error}"))
                continue
            if len(there) >= MOST_DATASETS:
                there.clear()
            there.add(did)

    def _declare(self, files: Sequence[OutputFile], known: Mapping[str, Any]) -> None:
        homes: defaultdict[str, list[OutputFile]] = defaultdict(list)
        for file in files:
            homes[self._registrar.home(file)].append(file)
        for home, members in sorted(homes.items()):
            for part in parts_of(members):
                self._declare_part(home, part, known)

    def _declare_part(self, home: str, files: Sequence[OutputFile], known: Mapping[str, Any]) -> None:
        """Declare files in one call; when MetaCat takes them not, in halves, until those are found that it refuses."""
        events = self._registrar.options.events
        documents = [document_of(file, [each for each in parents_of(file) if each in known], events) for file in files]
        try:
            self._metacat.declare(home, documents)
        except MetaCatRefusal as error:
            if len(files) > 1:
                middle = len(files) // 2
                for half in (files[:middle], files[middle:]):
                    self._declare_part(home, half, known)
            elif isinstance(error, MetaCatExists):
                self._later[files[0].did] = f"somebody else declares it: {error}"
            else:
                self._registrar.datasets.discard(home)  # it may be the dataset that is gone
                self._refused[files[0].did] = str(error)

    def _register_replicas(self) -> None:
        left = self._left(self._files)
        if self._registrar.replicas is None or not left:
            return
        for file, answer in zip(left, self._registrar.replicas.register(left), strict=True):
            if answer.outcome is Outcome.REFUSED:
                self._refused[file.did] = answer.words
            elif answer.outcome is Outcome.AGAIN:
                self._later[file.did] = answer.words

    def _add_to_datasets(self, known: Mapping[str, Any]) -> None:
        """Their other datasets; of those that were declared earlier, the first too: that call may not have got there."""
        members: defaultdict[str, list[str]] = defaultdict(list)
        for file in self._left(self._files):
            home = self._registrar.home(file)
            for did in {place.did for place in file.datasets} - ({home} if file.did not in known else set()):
                members[did].append(file.did)
        for dataset, dids in sorted(members.items()):
            self._tell(dids, lambda part, into=dataset: self._metacat.add_files(into, part))

    def _tell(self, dids: Sequence[str], call: Any) -> None:
        """A call about files that are declared; a no is about something that has just changed: they come again."""
        for part in parts_of(dids):
            try:
                call(part)
            except MetaCatRefusal as error:
                self._registrar.datasets.clear()
                self._later.update(dict.fromkeys(part, str(error)))


def document_of(file: OutputFile, parents: Sequence[str], events: str) -> dict[str, Any]:
    """What MetaCat is told of a file. Metadata are those fields of the jobscript's with a dot in their names; MetaCat takes
    no others."""
    told = file.attributes.get("metadata")
    own = told if isinstance(told, dict) else file.attributes
    metadata = {name: value for name, value in own.items() if "." in name and name != STATUS}
    if file.events is not None:
        metadata.setdefault(events, file.events)
    algorithm, _, value = file.checksum.partition(":")
    namespace, _, name = file.did.partition(":")
    return {
        "namespace": namespace,
        "name": name,
        "size": file.size,
        "checksums": {algorithm: value},
        "metadata": {**metadata, STATUS: RECORDED},
        "parents": [{"did": parent} for parent in parents],
    }


def parents_of(file: OutputFile) -> list[str]:
    """The job's inputs, and what the jobscript says beside them, each once."""
    told = file.attributes.get("parents")
    said = [_did(each) for each in told] if isinstance(told, list) else []
    return list(dict.fromkeys([*file.parents, *(did for did in said if did)]))


def _did(told: object) -> str:
    """A parent as MetaCat's users write it: an object with its DID, or with namespace and name; empty: anything else."""
    if not isinstance(told, dict):
        return ""
    did = told.get("did", f"{told.get('namespace')}:{told.get('name')}")
    try:
        return msgspec.convert(did, Did)
    except msgspec.ValidationError:
        return ""


def is_same(file: OutputFile, record: Mapping[str, Any]) -> bool:
    """Whether MetaCat's record is of this file: its size, and its checksum if both have one of the same kind."""
    algorithm, _, _ = file.checksum.partition(":")
    told = record.get("checksums")
    theirs = checksum_of({algorithm: told.get(algorithm)}) if isinstance(told, dict) else None
    return record.get("size") == file.size and theirs in (None, file.checksum)


def _answer(did: str, refused: Mapping[str, str], later: Mapping[str, str]) -> Answer:
    if did in refused:
        return Answer(Outcome.REFUSED, refused[did])
    return Answer(Outcome.AGAIN, later[did]) if did in later else Answer(Outcome.DONE)
