"""A stand-in for a MetaCat server, which cannot be installed: the calls of ``metacat-client`` 4.1, over real HTTP, with its
rules as far as they matter (names are unique, files need a dataset, retired ones keep their names).

It understands ``files from NAMESPACE:NAME [where FIELD=VALUE [and ...]] [limit N]``, and around it
``(...) ordered skip N limit M``. Faults are injected by ``judge``, before and after a call has done its work.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Optional
from urllib.parse import parse_qs, urlsplit

_PAGE = re.compile(r"\((?P<inner>.*)\) ordered skip (?P<skip>\d+) limit (?P<limit>\d+)", re.DOTALL)
_QUERY = re.compile(
    r"files from (?P<dataset>[^\s:]+:\S+)(?P<where> where .+?)?(?P<limit> limit (?P<number>\d+))?", re.DOTALL
)
_TERM = re.compile(r"(?P<field>[\w.]+)\s*=\s*(?P<value>'[^']*'|[\w.-]+)")
Reply = tuple[int, Any]
Judge = Callable[[str, str], Optional[Reply]]
"""Called with the call's name and ``before`` or ``after``: an answer in place of the true one. ``(0, None)`` hangs up."""


class No(Exception):
    """A call that is refused: status and answer."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(status, answer)
        self.reply = (status, answer)


def _never(_call: str, _when: str) -> Optional[Reply]:
    return None


@dataclass
class MetaCatWorld:
    """All that the server knows, and what it was asked: names of calls in their order."""

    token: str = ""
    namespaces: set[str] = field(default_factory=lambda: {"data", "usertests"})
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: dict[str, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    judge: Judge = _never
    history: list[tuple[str, str]] = field(default_factory=list)
    """Each value that ``dune.output_status`` of a file has had: its DID and the value."""

    def add(
        self, dataset: str, did: str, size: int, metadata: Optional[dict[str, Any]] = None, **checksums: str
    ) -> None:
        """A file that is there from the beginning."""
        namespace, name = did.split(":", 1)
        self.namespaces.add(namespace)
        self.files[did] = {
            "namespace": namespace, "name": name, "fid": f"f{len(self.files):08d}", "size": size,
            "checksums": checksums, "metadata": metadata or {}, "parents": [], "retired": False,
        }  # fmt: skip
        self.datasets.setdefault(dataset, []).append(did)

    # ------------------------------------------------------------ the calls

    def query(self, _args: dict[str, str], body: Any) -> Any:
        page = _PAGE.fullmatch(body)
        inner = page["inner"] if page else body
        found = _QUERY.fullmatch(inner.strip())
        if found is None:
            raise No(400, {"message": f"Error in MQL query: {inner}"})
        if found["dataset"] not in self.datasets:
            raise No(400, {"message": f"Dataset {found['dataset']} not found"})
        terms = [(term["field"], term["value"].strip("'")) for term in _TERM.finditer(found["where"] or "")]
        files = [self.files[did] for did in self.datasets[found["dataset"]]]
        files = [each for each in files if not each["retired"]]
        files = [each for each in files if all(str(each["metadata"].get(name)) == value for name, value in terms)]
        if found["number"]:
            files = files[: int(found["number"])]
        files.sort(key=lambda each: str(each["fid"]))
        return files[int(page["skip"]) :][: int(page["limit"])] if page else files

    def get_files(self, _args: dict[str, str], body: Any) -> Any:
        return [self.files[did] for did in map(_did, body) if did in self.files]

    def dataset(self, args: dict[str, str], _body: Any) -> Any:
        if args["dataset"] not in self.datasets:
            raise No(404, "Dataset not found")
        namespace, name = args["dataset"].split(":", 1)
        return {"namespace": namespace, "name": name, "metadata": {}}

    def create_dataset(self, _args: dict[str, str], body: Any) -> Any:
        if body["namespace"] not in self.namespaces:
            raise No(404, "Namespace not found")
        if _did(body) in self.datasets:
            raise No(409, {"message": "Already exists"})
        self.datasets[_did(body)] = []
        return body

    def declare_files(self, args: dict[str, str], body: Any) -> Any:
        dataset = args["dataset"]
        if dataset not in self.datasets:
            raise No(404, "Dataset not found")
        taken = [_did(each) for each in body if _did(each) in self.files]
        if taken:
            raise No(409, {"message": "\n".join(["Files already exist:", *taken])})
        for number, each in enumerate(body):
            if each["namespace"] not in self.namespaces:
                raise No(403, {"message": f"no permission to declare files in {each['namespace']}"})
            if "bad.field" in each["metadata"]:
                errors = [{"name": "bad.field", "reason": "unknown"}]
                item = {"index": number, "message": "bad metadata", "metadata_errors": errors}
                raise No(488, {"message": "invalid metadata", "metadata_errors": [item]})
            unknown = [_did(parent) for parent in each["parents"] if _did(parent) not in self.files]
            if unknown:
                raise No(404, {"message": f"Parents not found: {unknown}"})
        for each in body:
            self.add(dataset, _did(each), each["size"], dict(each["metadata"]), **each["checksums"])
            parents = [self.files[_did(parent)]["fid"] for parent in each["parents"]]
            self.files[_did(each)]["parents"] = parents
            self._note(_did(each))
        return [{"fid": self.files[_did(each)]["fid"]} for each in body]

    def add_files(self, args: dict[str, str], body: Any) -> Any:
        if args["dataset"] not in self.datasets:
            raise No(404, "Dataset not found")
        dids = [_did(each) for each in body["file_list"]]
        self._known(dids)
        fresh = [did for did in dids if did not in self.datasets[args["dataset"]]]
        self.datasets[args["dataset"]] += fresh
        return {"files_added": len(fresh)}

    def update_file_meta(self, _args: dict[str, str], body: Any) -> Any:
        dids = [_did(each) for each in body["files"]]
        self._known(dids)
        for did in dids:
            self.files[did]["metadata"].update(body["metadata"])
            self._note(did)
        return [{"fid": self.files[did]["fid"]} for did in dids]

    def retire_file(self, _args: dict[str, str], body: Any) -> Any:
        self._known([_did(body)])
        self.files[_did(body)]["retired"] = body["retire"]
        return self.files[_did(body)]

    def _known(self, dids: list[str]) -> None:
        missing = [did for did in dids if did not in self.files]
        if missing:
            raise No(404, {"message": f"File not found: {missing[0]}"})

    def _note(self, did: str) -> None:
        status = self.files[did]["metadata"].get("dune.output_status")
        if status is not None and (did, status) not in self.history[-1:]:
            self.history.append((did, status))


READ = {"query": MetaCatWorld.query, "files": MetaCatWorld.get_files, "dataset": MetaCatWorld.dataset}
WRITE = {
    "create_dataset": MetaCatWorld.create_dataset,
    "declare_files": MetaCatWorld.declare_files,
    "add_files": MetaCatWorld.add_files,
    "update_file_meta": MetaCatWorld.update_file_meta,
    "retire_file": MetaCatWorld.retire_file,
}


def _did(given: Any) -> str:
    return str(given.get("did") or f"{given['namespace']}:{given['name']}")


@contextmanager
def metacat_server(world: MetaCatWorld) -> Iterator[str]:
    """The address of a server of that world, on a free port of loopback."""
    mutex = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # an answer in one piece: in two, the second waits for an acknowledgement

        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            # A query is the words themselves, everything else is JSON.
            self._serve(body if "/data/query" in self.path else json.loads(body))

        def _serve(self, body: Any) -> None:
            url = urlsplit(self.path)
            name = url.path.rpartition("/data/")[2]
            args = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
            with mutex:
                world.calls.append(name)
            reply = world.judge(name, "before")
            if reply is None:
                with mutex:
                    reply = self._answer(name, args, body)
                reply = world.judge(name, "after") or reply
            self._send(*reply)

        def _answer(self, name: str, args: dict[str, str], body: Any) -> Reply:
            call = READ.get(name) or WRITE.get(name)
            if call is None:
                return 404, f"no such call: {name}"
            if name in WRITE and self.headers.get("X-Authentication-Token") != world.token:
                return 401, "Authentication required"
            try:
                return 200, call(world, args, body)
            except No as no:
                return no.reply

        def _send(self, status: int, answer: Any) -> None:
            if status == 0:
                self.close_connection = True
                return
            listed = isinstance(answer, list) and status == 200
            if isinstance(answer, bytes):
                content, kind = answer, "application/json-seq"
            elif listed:
                content = b"".join(b"\x1e" + json.dumps(each).encode() + b"\n" for each in answer)
                kind = "application/json-seq"
            elif isinstance(answer, str):
                content, kind = answer.encode(), "text/plain"
            else:
                content, kind = json.dumps(answer).encode(), "text/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/app"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
