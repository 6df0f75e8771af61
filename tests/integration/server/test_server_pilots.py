"""What the server shows of a pilot."""

from __future__ import annotations

import pytest

from common.errors import ErrorCode
from common.wire import Gpu, NodeInfo, Offer, PilotEnd, PilotPage, PilotView
from tests.integration.server.harness import Refused, Site

NODE = NodeInfo(
    cpu_model="AMD EPYC 7763", cpu_level="x86-64-v3", cores=128, threads=256, memory_mb=515_000, os="AlmaLinux 9.4",
    kernel="5.14.0", libc="glibc 2.34", core_power=17.25, power_source="machine features hs23",
)  # fmt: skip


def test_a_pilot_is_shown_with_its_node_and_its_offer(site: Site) -> None:
    site.world()
    mark, secret = site.worker("q")
    gpu = Gpu(
        vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid="GPU-1", capability="9.0", driver="570.124.06"
    )
    offer = Offer(cores=2, gpus=[gpu])
    grant = site.register(mark, secret, host="node1", version="1.2", node_info=NODE, offer=offer)
    view = site.user("GET", f"/v1/pilots/{grant.pilot_id}", reply=PilotView)
    assert (view.worker, view.queue, view.host, view.version, view.state) == (mark, "q", "node1", "1.2", "active")
    assert view.node_info == NODE and view.offer == offer and view.heard is not None and view.ended is None


def test_a_pilot_that_could_not_start_is_shown_with_the_end_of_its_log(site: Site) -> None:
    site.world()
    mark, secret = site.worker("q")
    grant = site.register(mark, secret, host="node1")
    end = PilotEnd("the slot cannot be used", ErrorCode.CVMFS_NOT_AVAILABLE, "… /cvmfs/atlas.cern.ch is not there")
    site.call("POST", f"/v1/pilots/{grant.pilot_id}:end", end, None, grant.token)
    view = site.admin("GET", f"/v1/pilots/{grant.pilot_id}", reply=PilotView)
    assert (view.state, view.end_reason) == ("ended", "the slot cannot be used")
    assert view.log_tail.endswith("is not there") and view.node_info is None
    # The log names the jobs and the input of others.
    assert site.user("GET", f"/v1/pilots/{grant.pilot_id}", reply=PilotView).log_tail == ""


def test_pilots_that_failed_are_found(site: Site) -> None:
    """A site's pilots died at their start, and nobody knew which: only the log of each batch job told."""
    site.world(queues=["q", "other"])
    fine, broken, elsewhere = site.pilot(), site.pilot(), site.pilot("other")
    broken.end(reason="the pilot could not start", error_code=1199, log_tail="no space")
    elsewhere.end(reason="no job for 60 s")

    def listed(query: str) -> list[int]:
        page = site.user_page(f"/v1/pilots?{query}", PilotPage)
        assert all(not each.log_tail for each in page.items)
        return [each.id for each in page.items]

    assert listed("queue=q") == [fine.id, broken.id]
    assert listed("failed=true") == [broken.id]
    assert listed(f"after={fine.id}&limit=1") == [broken.id]


def test_a_pilot_that_nobody_knows_is_not_found(site: Site) -> None:
    with pytest.raises(Refused) as caught:
        site.user("GET", "/v1/pilots/4711", reply=PilotView)
    assert caught.value.status == 404


def test_what_nobody_can_mean_by_a_node_is_refused(site: Site) -> None:
    site.world()
    mark, secret = site.worker("q")
    with pytest.raises(Refused) as caught:
        site.register(mark, secret, node_info=NodeInfo(cpu_model="x" * 256))
    assert caught.value.status == 400
