"""The share tree: how far each share is from its target."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence, Set
from itertools import takewhile

from common.wire import ShareSpec, ShareView

DEFAULT_SHARE = "default"


def service_order(shares: Sequence[ShareSpec], used_cores: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """For each share its place in the order of service: the smaller, the sooner.

    The key holds use divided by target for each node from the root down, a node's target being its weight over the sum
    of its siblings'. So siblings are weighed against one another at the level where two paths part. Use counts what a
    share and everything below it holds.
    """
    children: dict[str | None, list[ShareSpec]] = {}
    for share in shares:
        children.setdefault(share.parent, []).append(share)
    use: dict[str, float] = {}

    def total(share: ShareSpec) -> float:
        use[share.name] = used_cores.get(share.name, 0.0) + sum(total(child) for child in children.get(share.name, []))
        return use[share.name]

    for root in children.get(None, []):
        total(root)
    order: dict[str, tuple[float, ...]] = {}

    def descend(parent: str | None, above: tuple[float, ...]) -> None:
        siblings = children.get(parent, [])
        weights = sum(share.weight for share in siblings)
        for share in siblings:
            order[share.name] = (*above, use[share.name] * weights / share.weight)
            descend(share.name, order[share.name])

    descend(None, ())
    return order


class ShareUse:
    """The share tree with what each share uses, kept up while claims are made.

    The shares in the order of :func:`service_order`: siblings are weighed against one another where two paths part, so
    what a share leaves unused goes to its siblings before it moves up.
    """

    def __init__(self, shares: Sequence[ShareSpec], used_cores: Mapping[str, float]) -> None:
        self._parents = {share.name: share.parent for share in shares}
        self._children: dict[str | None, list[ShareSpec]] = {}
        for share in shares:
            self._children.setdefault(share.parent, []).append(share)
        self._weights = {parent: sum(share.weight for share in found) for parent, found in self._children.items()}
        self._use: dict[str, float] = dict.fromkeys(self._parents, 0.0)
        for name, cores in used_cores.items():
            self.claim(name, cores)

    @property
    def names(self) -> Set[str]:
        """All shares of the tree."""
        return self._parents.keys()

    def claim(self, share: str, cores: float) -> None:
        """A share uses so many cores more, and with it all above it."""
        name: str | None = share
        while name is not None and name in self._parents:
            self._use[name] += cores
            name = self._parents[name]

    def views(self, below: str | None = None) -> list[ShareView]:
        """Every share with what it should have and has, in the order of service; or one, and those below it."""
        found = list(self._views())
        if below is None:
            return found
        first = next((index for index, view in enumerate(found) if view.name == below), len(found))
        return found[first : first + 1] + list(
            takewhile(lambda view: view.depth > found[first].depth, found[first + 1 :])
        )

    def _views(self) -> Iterator[ShareView]:
        whole = sum(self._use[share.name] for share in self._children.get(None, []))
        for share, depth, target in self._walk(None, 0, 1.0):
            use = self._use[share.name]
            own = use - sum(self._use[child.name] for child in self._children.get(share.name, []))
            used = use / whole if whole else 0.0
            yield ShareView(share.name, share.parent, share.weight, target, used, use, max(0.0, own), depth)

    def _walk(self, parent: str | None, depth: int, target: float) -> Iterator[tuple[ShareSpec, int, float]]:
        for share in self._sorted(parent):
            part = target * share.weight / self._weights[parent]
            yield share, depth, part
            yield from self._walk(share.name, depth + 1, part)

    def in_order(self, wanted: Container[str]) -> Iterator[str]:
        """Those of the ``wanted`` shares that are in the tree, the one furthest below its target first."""
        yield from self._below(None, wanted)

    def _below(self, parent: str | None, wanted: Container[str]) -> Iterator[str]:
        for share in self._sorted(parent):
            if share.name in wanted:
                yield share.name
            yield from self._below(share.name, wanted)

    def _sorted(self, parent: str | None) -> list[ShareSpec]:
        """The shares below one, the one furthest below its target first."""
        siblings = self._children.get(parent, [])
        if len(siblings) < 2:
            return siblings
        whole, use = self._weights[parent], self._use
        return sorted(siblings, key=lambda share: use[share.name] * whole / share.weight)
