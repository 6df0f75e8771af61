"""What Rucio has written down of files and datasets, and the calls that change it: in bulk, each safe to repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from server.catalogs.registration import OutputFile
from server.catalogs.rucio_client import RucioClient, RucioDenied, RucioRefusal, did_of, parts_of, path_of

BULK = 500
MOST_LINES = 20_000
"""Files of datasets that are read to see whether ours are among them; beyond it, each file is asked for its datasets."""


class RucioBooks:
    """Reads and writes; every method raises as :meth:`RucioClient.ask` does."""

    def __init__(self, client: RucioClient) -> None:
        self._client = client
        self._scopes: frozenset[str] = frozenset()

    def scopes_missing(self, wanted: Iterable[str]) -> frozenset[str]:
        """Those scopes that there are not. They are looked up when one is wanted that was not there before: nobody
        removes scopes, and to be told of a file in an unknown one is a mistake inside some Rucio servers."""
        asked = frozenset(wanted)
        if not asked <= self._scopes:
            self._scopes = frozenset(scopes_of(self._client))
        return asked - self._scopes

    def metadata(self, dids: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """What is known of files and datasets (``did_type``, ``bytes``, ``adler32``, ``md5`` …), the unknown left out; and
        those that Rucio cannot know, with its words: their names are none there."""
        return self._listed("/dids/bulkmeta", dids, {})

    def replicas(self, dids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Content of files, and the ``states`` of their replicas by RSE."""
        more = {"all_states": True, "resolve_archives": False, "domain": "all"}
        return self._listed("/replicas/list", dids, more)[0]

    def _listed(
        self, path: str, dids: Sequence[str], more: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        found: dict[str, dict[str, Any]] = {}
        refused: dict[str, str] = {}
        parts = [dids[start : start + BULK] for start in range(0, len(dids), BULK)]
        while parts:
            part = parts.pop()
            try:
                for each in self._client.stream("POST", path, {**more, "dids": [parts_of(did) for did in part]}):
                    found[did_of(each["scope"], each["name"])] = each
            except RucioRefusal as error:
                if len(part) == 1:
                    refused[part[0]] = str(error)
                else:  # one name that it does not like, among many
                    parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        return found, refused

    def not_listed(self, wanted: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those pairs of dataset and file of which the dataset does not list the file."""
        missing = set(wanted)
        if not missing:
            return missing
        body = {"dids": [parts_of(dataset) for dataset in sorted({dataset for dataset, _ in missing})]}
        lines = 0
        with closing(self._client.stream("POST", "/dids/bulkfiles", body)) as listed:
            for each in listed:
                dataset = did_of(each["parent_scope"], each["parent_name"])
                missing.discard((dataset, did_of(each["scope"], each["name"])))
                lines += 1
                if not missing or lines >= MOST_LINES:
                    break
        if missing and lines >= MOST_LINES:
            for did in sorted({did for _, did in missing}):
                for each in self._client.stream("GET", f"/dids/{path_of(did)}/parents"):
                    missing.discard((did_of(each["scope"], each["name"]), did))
        return missing

    def add_replicas(self, rse: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Make files known with a replica each; those that are there stay as they are."""
        self._client.ask("POST", "/replicas", {"rse": rse, "files": documents, "ignore_availability": True})

    def delete_replicas(self, rse: str, dids: Sequence[str]) -> None:
        """Forget replicas, and files that have no other. An account that may not do that calls them bad, as they will
        be: Rucio gives out none of those, and its own daemons remove them."""
        files = [parts_of(did) for did in dids]
        try:
            self._client.ask("DELETE", "/replicas", {"rse": rse, "files": files, "ignore_availability": True})
        except RucioDenied:
            body = {"rse": rse, "dids": files, "reason": "withdrawn: its job failed, the file will be removed"}
            self._client.ask("POST", "/replicas/bad/dids", body)
        except RucioRefusal as error:
            if error.name != "ReplicaNotFound":
                raise

    def add_datasets(self, dids: Sequence[str]) -> None:
        """Make datasets."""
        self._client.ask("POST", "/dids", [{**parts_of(did), "type": "DATASET"} for did in dids])

    def attach(self, contents: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Put files into datasets, all in one call; those that are in it stay."""
        attachments = [{**parts_of(dataset), "dids": [parts_of(did) for did in dids]} for dataset, dids in contents]
        self._client.ask("POST", "/dids/attachments", {"ignore_duplicate": True, "attachments": attachments})

    def detach(self, dataset: str, dids: Sequence[str]) -> None:
        """Take files out of a dataset."""
        self._client.ask("DELETE", f"/dids/{path_of(dataset)}/dids", {"dids": [parts_of(did) for did in dids]})

    def add_rule(self, dataset: str, rse: str, lifetime_s: int | None, activity: str | None) -> None:
        """Keep a dataset at an RSE. A rule of ours that is there already is as good."""
        rule = {
            "dids": [parts_of(dataset)],
            "account": self._client.account(),
            "copies": 1,
            "rse_expression": rse,
            "grouping": "DATASET",
            "weight": None,
            "lifetime": lifetime_s,
            "locked": False,
            "subscription_id": None,
            "source_replica_expression": None,
            "activity": activity,
            "notify": "N",
            "purge_replicas": False,
            "ignore_availability": False,
            "comment": "outputs of Pilotage",
            "ask_approval": False,
            "asynchronous": False,
            "delay_injection": None,
            "priority": 3,
            "split_container": False,
            "meta": None,
        }
        try:
            self._client.ask("POST", "/rules/", rule)
        except RucioRefusal as error:
            if error.name != "DuplicateRule":
                raise


def scopes_of(client: RucioClient) -> list[str]:
    """All scopes. Raises as :meth:`RucioClient.ask`."""
    found = client.ask("GET", "/scopes/")
    return [str(each) for each in found] if isinstance(found, list) else []


def same_content(file: OutputFile, known: Mapping[str, Any]) -> bool:
    """Whether what Rucio knows is this file: its size and, where both have one of a kind, its checksum."""
    if known.get("did_type", "FILE") != "FILE" or known.get("bytes") != file.size:
        return False
    algorithm, _, value = file.checksum.partition(":")
    theirs = str(known.get(algorithm) or "").lower()
    return not theirs or theirs.lstrip("0") == value.lstrip("0")


def content_of(known: Mapping[str, Any]) -> str:
    """Size and checksum for people."""
    sums = [f"{key} {known[key]}" for key in ("adler32", "md5") if known.get(key)]
    return ", ".join([f"{known.get('bytes')} bytes", *sums])
