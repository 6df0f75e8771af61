"""The share tree: how far each share is from its target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.wire import ShareSpec

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
