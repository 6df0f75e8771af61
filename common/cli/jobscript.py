"""A jobscript out of a git repository: fetched by git on the client, with the commit that it is from."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass

from common.cli.strict import InputError
from common.problem import FieldError
from common.wire import GitSource

GIT_S = 120.0
MAX_BYTES = 1_000_000
_REFERENCE = re.compile(r"(?P<url>[^#]+)#(?P<path>[^@#]+)(@(?P<ref>[^@#]+))?")
_SHORT = re.compile(r"(?P<repository>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)/(?P<path>[^@#:]+):(?P<ref>[^@#:]+)")
GITHUB = "https://github.com/"
"""Where repositories are that are named by their owner and name alone, as justIN's users write them."""
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
PROTOCOLS = "https:ssh:git:http:file"
"""What git may speak; not ``ext``, which would run any command that a workflow file names."""


@dataclass(frozen=True)
class FetchedScript:
    """The text of a jobscript and where it is from."""

    text: str
    source: GitSource


def parse_reference(reference: str, field: str = "jobscript_git", github: str = GITHUB) -> tuple[str, str, str]:
    """URL, path and ref (empty: the default branch) of ``URL#path@ref``, or of ``OWNER/REPOSITORY/path:ref`` on GitHub.

    Raises:
        InputError: it is none.
    """
    short = _SHORT.fullmatch(reference)
    found = short or _REFERENCE.fullmatch(reference)
    if found is None:
        raise _error(
            field,
            f"{reference!r}: write URL#path/in/the/repository@branch-tag-or-commit, or OWNER/REPOSITORY/path:ref for one"
            " on GitHub",
        )
    url = f"{github}{short['repository']}" if short else found["url"]
    path, ref = found["path"], found["ref"] or ""
    if url.startswith("-") or path.startswith(("-", "/")) or ".." in path.split("/") or ref.startswith("-"):
        raise _error(field, f"{reference!r}: neither URL, path nor ref may begin with '-', nor the path lead upwards")
    return url, path, ref


def fetch_jobscript(reference: str, field: str = "jobscript_git", github: str = GITHUB) -> FetchedScript:
    """Fetch one file of one commit, and nothing else of the repository's history.

    Raises:
        InputError: git is not there, or says no; its words are passed on.
    """
    url, path, ref = parse_reference(reference, field, github)
    with tempfile.TemporaryDirectory(prefix="pilotage-git-") as folder:
        _git(field, folder, "init", "--quiet", "--bare", ".")
        _git(field, folder, "fetch", "--quiet", "--depth=1", "--no-tags", "--", url, ref or "HEAD")
        commit = _git(field, folder, "rev-parse", "--verify", "FETCH_HEAD^{commit}").decode().strip()
        content = _git(field, folder, "cat-file", "blob", f"{commit}:{path}")
    if not _COMMIT.fullmatch(commit):
        raise _error(field, f"git names the commit {commit!r}, which is none")
    if len(content) > MAX_BYTES:
        raise _error(field, f"{path} has {len(content)} bytes; a jobscript has {MAX_BYTES} at the most")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(field, f"{path}: byte {error.start} is not UTF-8 text; is this the right file?") from error
    return FetchedScript(text, GitSource(url=_without_password(url), path=path, ref=ref, commit=commit))


def _git(field: str, folder: str, *words: str) -> bytes:
    # Asks nobody for a password, speaks no protocol that runs commands, and reads no hooks of a template.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": PROTOCOLS, "LC_ALL": "C"}
    command = ["git", "-c", "init.templateDir=", "-C", folder, *words]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=GIT_S, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise _error(field, "the git command is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise _error(field, f"git {words[0]} gave no answer in {GIT_S:g} s") from error
    if done.returncode != 0:
        raise _error(field, f"git {words[0]}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout


def _without_password(url: str) -> str:
    """The URL without a password, which must not go into the description of a workflow."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _error(field: str, words: str) -> InputError:
    return InputError("", [FieldError(field, words)])
