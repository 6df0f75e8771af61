"""The program that works with Rucio's clients for the pilot, in a process of its own.

Rucio's clients read their configuration and credentials from the environment, take seconds to give up and print where
they like: none of that belongs into the pilot. The program reads one request, a line of JSON, from its standard input
and answers it with one: ``{"ok": RESULT}``, or ``{"error": CLASS, "message": TEXT}``. It ends when its input does.
"""

import importlib
import json
import os
import sys
import threading
from typing import Any

#: What Rucio's clients put behind the name of a file while they upload it.
UPLOADING = ".rucio.upload"


class Refusal(Exception):
    """An error of our own, by the name of a class of Rucio's that says the same."""

    def __init__(self, error: str, message: str) -> None:
        self.error = error
        super().__init__(message)


def module(name: str) -> Any:
    """Import a part of Rucio's clients."""
    return importlib.import_module("rucio." + name)


def did_of(request: Any) -> Any:
    """The DID of a request as Rucio's calls want it."""
    return {"scope": request["scope"], "name": request["name"]}


def replicas(client: Any, request: Any) -> Any:
    """The replicas of a file that are there: URLs by RSE."""
    found = {}
    for entry in client.list_replicas([did_of(request)], all_states=True, resolve_archives=False):
        for rse, urls in entry["rses"].items():
            if entry["states"].get(rse) == "AVAILABLE":
                found[rse] = urls
    return found


def rse_of_url(client: Any, request: Any) -> str:
    """The RSE that a URL is at."""
    for rse, urls in replicas(client, request).items():
        if request["url"] in urls:
            return str(rse)
    raise Refusal("ReplicaNotFound", "Rucio knows of no replica of " + request["did"] + " at this URL")


def reasons(traces: Any, otherwise: str) -> str:
    """Why a transfer failed: the clients tell it to their log and their traces only."""
    told = [str(trace["stateReason"]) for trace in traces if trace.get("stateReason") not in (None, "", "OK")]
    return "; ".join(told) or otherwise


def state_of(traces: Any) -> str:
    """How the last try ended."""
    return str(getattr(traces[-1].get("clientState"), "value", "")) if traces else ""


def download(client: Any, request: Any) -> Any:
    """Fetch a file into a folder; its path."""
    item = {"did": request["did"], "base_dir": request["folder"], "no_subdir": True}
    item["transfer_timeout"] = request["seconds"]
    downloader = module("client.downloadclient").DownloadClient(client)
    if request["rse"]:
        item["rse"] = request["rse"]
        call = downloader.download_dids
    else:
        item.update(pfn=request["url"], rse=rse_of_url(client, request))
        call = downloader.download_pfns
    traces: Any = []
    try:
        done = call([item], num_threads=1, traces_copy_out=traces)
    except module("common.exception").NoFilesDownloaded as error:
        raise Refusal("Download" + (state_of(traces) or "FAILED"), reasons(traces, str(error))) from error
    return done[0]["dest_file_paths"][0]


def is_there(client: Any, request: Any) -> bool:
    """Whether the file has its replica already; an error when the DID is another file's."""
    try:
        known = client.get_metadata(request["scope"], request["name"])
    except module("common.exception").DataIdentifierNotFound:
        return False
    here = (request["size"], request["adler32"].lstrip("0"))
    if (known["bytes"], (known["adler32"] or "").lstrip("0")) != here:
        raise Refusal("DataIdentifierAlreadyExists", f"Rucio has another file of this name ({known['adler32']})")
    return request["rse"] in replicas(client, request)


def upload(client: Any, request: Any) -> bool:
    """Store a file and register its replica; whether there was anything to do."""
    if request["register"] and is_there(client, request):
        return False
    item = {
        "path": request["path"],
        "rse": request["rse"],
        "did_scope": request["scope"],
        "did_name": request["name"],
        "register_after_upload": request["register"],
        "no_register": not request["register"],
        "transfer_timeout": request["seconds"],
    }
    if request["lifetime"]:
        item["lifetime"] = request["lifetime"]
    traces: Any = []
    try:
        module("client.uploadclient").UploadClient(client).upload([item], traces_copy_out=traces)
    except module("common.exception").NoFilesUploaded as error:
        reason = reasons(traces, str(error))
        exists = "already exists" in reason
        raise Refusal("FileReplicaAlreadyExists" if exists else "NoFilesUploaded", reason) from error
    return True


def exists(client: Any, request: Any) -> bool:
    """Whether a file is at its RSE, whatever the catalogue says."""
    manager = module("rse.rsemanager")
    settings = manager.get_rse_info(request["rse"], vo=client.vo)
    return bool(manager.exists(settings, did_of(request), auth_token=token_of(client), vo=client.vo))


def delete_files(client: Any, request: Any, endings: Any) -> None:
    """Delete from an RSE what is there under a file's name with one of these endings."""
    manager, errors = module("rse.rsemanager"), module("common.exception")
    settings = manager.get_rse_info(request["rse"], vo=client.vo)
    protocol = manager.create_protocol(settings, "delete", auth_token=token_of(client))
    protocol.connect()
    url = next(iter(protocol.lfns2pfns(did_of(request)).values()))
    for ending in endings:
        try:
            protocol.delete(url + ending)
        except errors.SourceNotFound:
            pass
    protocol.close()


def clean(client: Any, request: Any) -> None:
    """Delete what an upload that did not make it left; a file that is registered stays."""
    try:
        client.get_metadata(request["scope"], request["name"])
        endings = [UPLOADING]
    except module("common.exception").DataIdentifierNotFound:
        endings = [UPLOADING, ""]
    delete_files(client, request, endings)


def remove(client: Any, request: Any) -> None:
    """Give up a file: our rules, the file itself and, where we may, the replica (else Rucio's reaper ends it)."""
    errors = module("common.exception")
    try:
        for rule in list(client.list_did_rules(request["scope"], request["name"])):
            if rule["account"] == client.account and rule["rse_expression"] == request["rse"]:
                client.delete_replication_rule(rule["id"], purge_replicas=True)
    except (errors.DataIdentifierNotFound, errors.RuleNotFound):
        pass  # it was never registered, or given up before
    delete_files(client, request, ["", UPLOADING])
    try:
        client.delete_replicas(request["rse"], [did_of(request)])
    except (errors.AccessDenied, errors.ReplicaNotFound, errors.DataIdentifierNotFound) as error:
        sys.stderr.write(f"{error}\n")


def token_of(client: Any) -> Any:
    """The token for storages that take Rucio's: a JWT, as its own clients have it."""
    return client.auth_token if len(client.auth_token.split(".")) == 3 else None


OPERATIONS: Any = {function.__name__: function for function in (download, upload, exists, clean, remove)}


def answer(line: bytes) -> Any:
    """Do what the request asks for."""
    request = json.loads(line.decode("utf-8"))
    try:
        client = module("client").Client()
        return {"ok": OPERATIONS[request["do"]](client, request)}
    except Refusal as refusal:
        return {"error": refusal.error, "message": str(refusal)}
    except Exception as error:  # noqa: BLE001 - all of them go to who asked, by the name of their class
        return {"error": type(error).__name__, "message": str(error)}


def watch_input() -> None:
    """Whoever asked is gone when the input ends."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)  # what the clients print is no answer
    line = sys.stdin.buffer.readline()
    threading.Thread(target=watch_input, daemon=True).start()
    answers.write(json.dumps(answer(line)) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
