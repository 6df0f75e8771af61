"""Rules that give new tasks their share, priority and labels, whatever their users asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
from msgspec import structs

from common.wire import StageSpec, TaggingRule, WorkflowRequest
from server.engine.patterns import Pattern, PatternError

MOST_TEXT = 1000
"""Characters of a text that are looked at."""
_WORDS = ("owner", "group", "workflow", "stage", "image", "scope", "share")


def tag(
    rules: Sequence[TaggingRule], owner: str, scope: str, request: WorkflowRequest, shares: Collection[str]
) -> WorkflowRequest:
    """The workflow as the rules want it; they are in the order in which they are asked.

    A share that is not among ``shares``, because it was deleted since, is not given.
    """
    compiled = [_Rule(rule) for rule in rules if rule.active]
    stages = []
    labels: dict[str, str] = {}
    for stage in request.stages:
        applied = [rule.spec.set for rule in compiled if rule.applies(owner, scope, request, stage)]
        share = next((tags.share for tags in applied if tags.share in shares), None)
        priority = next((tags.priority for tags in applied if tags.priority is not None), stage.priority)
        stages.append(structs.replace(stage, share=share or stage.share, priority=priority))
        for tags in applied:
            labels = {**tags.labels, **labels}
    return structs.replace(request, stages=stages, labels={**request.labels, **labels})


class _Rule:
    def __init__(self, spec: TaggingRule) -> None:
        self.spec = spec
        when = spec.when
        self._words = [(name, Pattern(text)) for name in _WORDS if (text := getattr(when, name))]
        self._labels = [(name, Pattern(text)) for name, text in when.labels.items()]
        self._attributes = [(name, Pattern(text)) for name, text in when.attributes.items()]

    def applies(self, owner: str, scope: str, request: WorkflowRequest, stage: StageSpec) -> bool:
        texts = {
            "owner": owner,
            "group": request.group or "",
            "workflow": request.name,
            "stage": stage.name,
            "image": stage.image or "",
            "scope": scope,
            "share": stage.share,
        }
        return (
            all(pattern.search(_text(texts[name])) for name, pattern in self._words)
            and all(
                name in request.labels and pattern.search(_text(request.labels[name])) for name, pattern in self._labels
            )
            and all(
                name in stage.attributes and pattern.search(_text(stage.attributes[name]))
                for name, pattern in self._attributes
            )
        )


def _text(value: object) -> str:
    return (value if isinstance(value, str) else msgspec.json.encode(value).decode())[:MOST_TEXT]


def problems(rule: TaggingRule, shares: Collection[str]) -> list[tuple[str, str]]:
    """What is wrong with a rule that a person wrote: (field, remedy)."""
    found = []
    for path, text in _patterns(rule):
        try:
            Pattern(text)
        except PatternError as error:
            found.append((path, str(error)))
    tags = rule.set
    if tags.share is None and tags.priority is None and not tags.labels:
        found.append(("$.set", "give a share, a priority or labels"))
    if tags.share is not None and tags.share not in shares:
        found.append(("$.set.share", f"there is no share {tags.share!r}: make it first"))
    return found


def _patterns(rule: TaggingRule) -> Iterable[tuple[str, str]]:
    for name in _WORDS:
        yield f"$.when.{name}", getattr(rule.when, name)
    for field in ("labels", "attributes"):
        for name, text in getattr(rule.when, field).items():
            yield f"$.when.{field}.{name}", text
