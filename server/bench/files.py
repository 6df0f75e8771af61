"""What an outside worker does with one file of a project: reserve it, give it back as done."""

from __future__ import annotations

import msgspec

from common.wire.projects import FileOutcome, FileRelease, ReleaseRequest, ReserveRequest
from server.app import create_dispatcher
from server.bench.lives import RELEASE, RESERVE, Book, Life
from server.bench.messages import Files, Target
from server.bench.requests import TOKEN_S
from server.bench.wire import head
from server.engine.access import Role


def worker_tokens(target: Target, count: int) -> list[str]:
    """A token for each of so many workers, of the server's own making."""
    issuer = create_dispatcher(target.config).issuer
    return [issuer.mint(f"worker-{number}", [Role.OUTSIDE_WORKER.value], TOKEN_S) for number in range(count)]


class _File(msgspec.Struct):
    id: int
    did: str


class _Reserved(msgspec.Struct):
    files: list[_File] = []


class _Outcome(msgspec.Struct):
    accepted: bool = False
    reason: str = ""


class _Released(msgspec.Struct):
    files: list[_Outcome] = []


class FileSteps:
    """Renders the two requests. When a project is used up, the next one of the list is worked on."""

    def __init__(self, order: Files) -> None:
        self._target = order.target
        self._name = order.name
        self._projects = list(order.projects)
        self._site = order.cpu_site
        self._number = 0
        self._reserved = msgspec.json.Decoder(_Reserved)
        self._released = msgspec.json.Decoder(_Released)

    def begin(self, life: Life) -> bytes:
        """The reservation."""
        self._number += 1
        life.step, life.job_id = RESERVE, self._projects[0]
        life.worker = f"{self._name}-{self._number}"
        request = ReserveRequest(request_id=f"{self._number:016d}", worker=life.worker, cpu_site=self._site)
        return self._post(life, "reserve", msgspec.json.encode(request))

    def _post(self, life: Life, verb: str, body: bytes) -> bytes:
        return head(self._target, f"/v1/projects/{life.job_id}/files:{verb}", life.token, len(body)) + body

    def go_on(self, life: Life, status: int, body: bytes, now: float, book: Book) -> bytes | None:
        """Write the answer to the present step down; the next request, None when the file is given back."""
        book.requests += 1
        if status != 200:
            book.error(f"{life.step}: {status} {body.decode(errors='replace')}")
            return None
        try:
            if life.step == RESERVE:
                return self._answered(life, body, now, book)
            outcomes = self._released.decode(body).files
        except msgspec.DecodeError as error:
            book.error(f"{life.step}: {status}, but not as expected: {error}")
            return None
        book.latencies[RELEASE].append(now - life.due)
        if [each.accepted for each in outcomes] == [True]:
            book.lives += 1
        else:
            book.error(f"{life.step}: not accepted: {body.decode(errors='replace')}")
        return None

    def _answered(self, life: Life, body: bytes, now: float, book: Book) -> bytes | None:
        files = self._reserved.decode(body).files
        if not files:
            if self._projects[0] == life.job_id:
                if len(self._projects) == 1:
                    book.empty += 1
                    return None
                del self._projects[0]
            return self.begin(life)
        book.latencies[RESERVE].append(now - life.due)
        life.due = now
        life.step, life.unit_id = RELEASE, files[0].id
        book.claims.extend((files[0].id, life.job_id))
        request = ReleaseRequest(life.worker, [FileRelease(files[0].did, FileOutcome.DONE)])
        return self._post(life, "release", msgspec.json.encode(request))
