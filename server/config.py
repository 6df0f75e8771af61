"""Configuration of the server. System-wide knobs that admins turn at run time are in :class:`Knobs`."""

from __future__ import annotations

from typing import Any

import msgspec

from common.wire import ProbeUse
from server.access.settings import FrontEnd, Limits, OidcIssuer
from server.catalogs.cric import CricConfig
from server.compat.settings import Compat
from server.engine.access import Isolation
from server.engine.blackhole import HostLimits
from server.engine.notices import NoticeConfig
from server.engine.outcomes import Caps


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section ``[server]``."""

    database: str = ""
    """URL of the database; without one, SQLite in ``state_dir``."""
    state_dir: str = "pilotage-server"
    """Folder for the signing key, the admin's token and, with SQLite, the database."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8443
    """Port to listen on; 0 takes a free one."""
    web_processes: int = 1
    """Processes that serve requests. With SQLite one is best."""
    keep_to_cores: bool = True
    """Whether each web process keeps to one core of those that it may run on, each to another: a busy server
    answers a quarter more claims so. Not where other programs have cores of their own that these cannot know of."""
    web_threads: int = 64
    """Threads of each process: requests at work at the same time, long polls included."""
    long_polls: int = 8
    """Pilots of each process that may wait for work inside a request."""
    event_followers: int = 4
    """Requests of each process that may wait for events."""
    metrics: bool = True
    """Whether ``/metrics`` answers, for anybody: it holds numbers, and names of queues, shares, agents, sites and storages."""
    dashboard: bool = True
    """Whether ``/`` shows the dashboard, to anybody; it names no people and no files."""
    notices: NoticeConfig = NoticeConfig()
    """How people are told that a workflow is over."""
    stomp_servers: list[str] = []
    """Brokers to publish events to, as ``host:port``, tried in this order; none: events are not published."""
    stomp_destination: str = "/topic/pilotage.events"
    """Where the broker puts the events."""
    stomp_kinds: list[str] = []
    """Kinds of events to publish, ``*`` standing for anything, such as ``TASK_*``; none given: all."""
    stomp_user: str = ""
    """Name to log in with."""
    stomp_password_file: str = ""
    """A file of mode 0600 with the password."""
    stomp_tls: bool = False
    """Whether to speak TLS; the broker's certificate is verified."""
    stomp_ca_file: str = ""
    """Certificate authorities to verify the broker with (PEM), in place of the system's."""
    stomp_cert_file: str = ""
    """Our own certificate, for brokers that want one."""
    stomp_key_file: str = ""
    """Its key."""
    stomp_vhost: str = ""
    """The broker's virtual host; without one, the broker's name."""
    tls_cert: str = ""
    """File with the server's certificate chain; without one it speaks plain HTTP."""
    tls_key: str = ""
    """File with the certificate's key."""
    issuer: str = "pilotage"
    """Name that goes into tokens, and is required of them."""
    registrar: str = ""
    """Catalogue that the server registers outputs in: a section ``[server.registrars.NAME]``, or one without options by its
    entry point in ``pilotage.registrars``."""
    oidc: list[OidcIssuer] = []
    """Other issuers whose tokens are taken: ``[[server.oidc]]``."""
    mapping_file: str = ""
    """File that gives people of other issuers their names, groups and roles."""
    front_end: FrontEnd = msgspec.field(default_factory=FrontEnd)
    """A web server in front that verifies certificates: ``[server.front_end]``."""
    compat: Compat = msgspec.field(default_factory=Compat)
    """Which of other systems' clients may call: ``[server.compat]``."""
    limits: Limits = msgspec.field(default_factory=Limits)
    """What one caller may ask for: ``[server.limits]``."""
    catalogs: dict[str, dict[str, Any]] = {}
    """Catalogues of files that datasets may be taken from: ``[server.catalogs.NAME]`` with ``plugin`` and its options."""
    registrars: dict[str, dict[str, Any]] = {}
    """Catalogues to register outputs in: ``[server.registrars.NAME]`` with ``plugin`` and its options."""
    cric: CricConfig = CricConfig()
    """Descriptions of sites, storages and queues that are followed: ``[server.cric]``."""
    stagers: dict[str, dict[str, Any]] = {}
    """Tape systems that storages may name as their stager: ``[server.stagers.NAME]``, likewise."""
    credentials: dict[str, dict[str, Any]] = {}
    """Who gives pilots credentials for storages: ``[server.credentials.NAME]`` with ``kind`` (minted, oidc, proxy) and its
    options."""


MAY_BE_ZERO = frozenset(
    {
        "probe_interval_s",
        "problem_jobs",
        "reserve_s",
        "scout_count",
        "scout_boost",
        "scout_small_jobs",
        "scout_spread_wait_s",
        "scout_leak_kb_s",
        "scout_wrong_factor",
        "scout_short_s",
        "scout_idle_percent",
        "scout_busy_percent",
        "sizing_base_s",
        "sizing_base_memory_mb",
        "sizing_min_output_mb",
    }
)
"""Knobs that may be turned to zero although it is not their default."""


class Knobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``PUT /v1/settings/{key}`` turns, with the defaults. Times in seconds."""

    heartbeat_s: float = 60.0
    """How often a pilot reports."""
    heartbeat_timeout_s: float = 3600.0
    """Silence after which a job is lost; counts only while the server was up."""
    worker_end_grace_s: float = 30.0
    """Silence after which the jobs of a pilot are lost whose worker has ended for the batch system."""
    idle_exit_s: float = 120.0
    """How long a pilot without work stays."""
    acquire_wait_s: float = 10.0
    """How long a request for work may wait on the server."""
    pilot_token_s: float = 3600.0
    """Life of a pilot's token; renewed by heartbeats at half of it."""
    idle_requests_per_s: float = 400.0
    """What all idle pilots together may cost."""
    reserve_s: float = 600.0
    """How long the cores that a pilot has free are kept for a larger job that comes first; 0: never."""
    pilot_life_s: float = 14400.0
    """The time for which demand asks for a pilot, in queues that allow as much."""
    sweep_after_s: float = 3600.0
    """How long after its job's end a recorded, never confirmed output is removed."""
    registration_retry_s: float = 30.0
    """How long after a vain try outputs are registered again; doubles with each, up to the longest."""
    registration_retry_max_s: float = 3600.0
    """The longest wait between two tries to register outputs."""
    site_failures: int = 20
    """Site faults after which a unit fails."""
    lost_pilots: int = 10
    """Lost pilots after which a unit fails."""
    preemptions: int = 50
    """Preemptions after which a unit fails."""
    timeout_sent_s: float = 1800.0
    """How long a job may be claimed without its pilot saying that it has begun."""
    timeout_starting_s: float = 2 * 86400.0
    """How long a job may stage in."""
    timeout_starting_urgent_s: float = 4 * 3600.0
    """The same, for urgent tasks."""
    timeout_running_s: float = 21 * 86400.0
    """How long a payload may run."""
    timeout_holding_s: float = 3 * 86400.0
    """How long a job may upload or be registered."""
    timeout_holding_urgent_s: float = 3 * 3600.0
    """The same, for urgent tasks."""
    timeout_transferring_s: float = 7 * 86400.0
    """How long a job's outputs may be on their way to their destination."""
    timeout_transferring_urgent_s: float = 86400.0
    """The same, for urgent tasks."""
    urgent_priority: int = 800
    """Tasks of this priority or more are urgent."""
    timeout_defined_s: float = 4 * 3600.0
    """After how long it is told that the input of a new task is not resolved."""
    timeout_pending_s: float = 3600.0
    """After how long it is told that a task waits for input."""
    timeout_ready_s: float = 2 * 86400.0
    """After how long it is told that no slot has taken anything of a task."""
    timeout_throttled_s: float = 7 * 86400.0
    """After how long a throttled task is tried again."""
    host_failures: int = 5
    """Failures on a host, without a success between, after which it gets nothing for a while."""
    host_failed_tasks: int = 2
    """How many tasks they must come from."""
    host_window_s: float = 600.0
    """In which time."""
    host_fast_s: float = 120.0
    """A payload that fails sooner may be the host's fault; a site's fault always may."""
    host_block_s: float = 600.0
    """The first time that a host gets nothing; each further time is twice as long, up to a day."""
    hosts_blocked: int = 20
    """Hosts of a queue that are blocked at once: when more fail, it is not the hosts."""
    user_priority: bool = False
    """Whether a task's priority grows by 1000 - T/5, with T its owner's running cores."""
    dataset_period_s: float = 300.0
    """How often an open dataset is looked for new files."""
    recall_poll_s: float = 60.0
    """How often a tape system is asked how far it is."""
    recall_timeout_s: float = 7 * 86400.0
    """How long a file may take to come back from tape until it is asked for again, or given up."""
    recall_attempts: int = 3
    """How often a file is asked for that the tape system gave up, until its unit is lost."""
    problem_jobs: int = 10
    """Jobs gone wrong after which a task is paused, if most did so in the same way; 0: never."""
    get_file_units: int = 0
    """Units that a job may have in all by get-file, those that it began with among them; 0: no bound. justIN: 20."""
    sandbox_mb: int = 64
    """The largest sandbox that is taken, in MiB."""
    sandbox_quota_mb: int = 1024
    """What a person may upload in sandboxes, in MiB."""
    sandbox_keep_s: float = 14 * 86400.0
    """How long a sandbox is kept that no task names."""
    direct_file_mb: int = 256
    """The largest file that a direct job may be given, or leave with the server, in MiB."""
    direct_quota_mb: int = 2048
    """What the files of a person's direct jobs may take, in MiB."""
    direct_jobs: int = 100_000
    """Direct jobs that a person may have, ended ones included until they are cleaned."""
    direct_keep_s: float = 30 * 86400.0
    """How long a direct job is kept of which nothing changes, with its files."""
    log_kb: int = 2048
    """The largest log archive of a failed job that is kept, in KiB; what is larger is not."""
    log_keep_s: float = 14 * 86400.0
    """How long the logs of failed jobs are kept."""
    scout_count: int = 10
    """Scout jobs of a large task; 0: no task scouts."""
    scout_boost: int = 1000
    """What scouts have above the priority of their task."""
    scout_per_site: int = 5
    """Scouts of a task at one site, where others could run them too."""
    scout_spread_wait_s: float = 60.0
    """A scout that no other site has taken for so long may run where already enough of them are."""
    scout_small_jobs: int = 50
    """Tasks of up to so many jobs don't scout."""
    scout_finished_percent: float = 50.0
    """The part of the scouts that must have finished before a task is measured and the rest may go."""
    scout_failures: int = 10
    """Failed scouts after which a task is exhausted."""
    scout_second_look: int = 100
    """Finished jobs after which a task is measured once more."""
    scout_safety: float = 1.5
    """CPU time per event is multiplied by this."""
    scout_cpu_percentile: float = 95.0
    """Of the jobs' CPU times per event, in per cent."""
    scout_memory_percentile: float = 75.0
    """Of the jobs' memory, in per cent."""
    scout_output_percentile: float = 75.0
    """Of the jobs' output per event, in per cent."""
    scout_memory_margin_percent: float = 10.0
    """What is added to measured memory."""
    scout_memory_min_mb: float = 100.0
    """The least memory of a core, whatever was measured."""
    scout_min_events: int = 10
    """Events per core of a job below which its CPU time per event does not count, unless it ran long."""
    scout_min_wall_s: float = 21600.0
    """Wall time from which on it counts all the same."""
    scout_disk_io_cap_kb_s: float = 10_000.0
    """The most disk I/O that is believed."""
    scout_leak_kb_s: float = 50.0
    """Growth of memory in kB/s and core that is a leak; 0: never."""
    scout_wrong_factor: float = 4.0
    """A requirement this many times below (if fixed also above) what is measured is wrong; 0: never."""
    scout_short_s: float = 10.0
    """Wall time below which a job is very short, where the user has set the size of jobs; 0: never."""
    scout_short_percent: float = 50.0
    """The part of very short jobs from which on a task is exhausted."""
    scout_idle_percent: float = 10.0
    """CPU use of the cores below which they are idle; 0: never."""
    scout_busy_percent: float = 200.0
    """CPU use of the cores above which a job takes what is not its own; 0: never."""
    scout_judge_s: float = 600.0
    """Wall time from which on leaks and CPU use of a job are judged."""
    sizing_base_s: float = 0.0
    """Wall time of a job that its events don't explain."""
    sizing_base_memory_mb: float = 0.0
    """Memory of a job that its cores don't explain."""
    sizing_job_s: float = 28800.0
    """Wall time that jobs are cut to, where the slot and the task allow more."""
    sizing_max_units: int = 200
    """The most units of a job that is cut by what was measured, or by events or MiB a job."""
    sizing_min_output_mb: int = 512
    """Disk that is kept for output at the least, once it was measured."""
    token_epoch: int = 0
    """Tokens that the server minted under a smaller number are refused, admins' and pilots' included."""
    person_token_s: float = 3600.0
    """Life of a token that a login gives; renewed by the client."""
    login_s: float = 30 * 86400.0
    """How long a client stays logged in that does not call."""
    isolation: Isolation = Isolation.OFF
    """What people see of each other: ``off`` everything, ``group`` only what is theirs or their groups'."""
    probe_interval_s: float = 6 * 3600.0
    """How often each site, and the slots with GPUs of each site, get a probe job; 0: never."""
    probe_use: ProbeUse = ProbeUse.WARN
    """What follows from probes: ``warn`` events only, ``avoid`` a site leaves out storages that it could not use."""
    probe_storage_s: float = 60.0
    """How long a probe may be busy with one storage."""
    probe_total_s: float = 600.0
    """How long it may be busy with all storages."""
    probe_cvmfs: list[str] = []
    """CVMFS repositories that every probe looks at, beside those that its queue's node checks name."""
    production_priority: int = 1000
    """Priorities from here on need the role production."""
    production_shares: list[str] = []
    """Shares that need the role production."""

    jobs_keep_s: float = 30 * 86400.0
    """How long after its end a job stays among the others before it goes to the archive; at least a day."""
    job_archive_keep_s: float = 5 * 365 * 86400.0
    """How long after its end an archived job is kept."""
    events_keep_s: float = 90 * 86400.0
    """How long events are kept; at least a day."""
    pilots_keep_s: float = 90 * 86400.0
    """How long after their end pilots and workers are kept; at least a day."""

    def host_limits(self) -> HostLimits:
        """When a host is blocked."""
        return HostLimits(
            failures=self.host_failures,
            tasks=self.host_failed_tasks,
            window_s=self.host_window_s,
            fast_s=self.host_fast_s,
            block_s=self.host_block_s,
            hosts=self.hosts_blocked,
        )

    def caps(self, max_attempts: int) -> Caps:
        """The caps of a task's units."""
        return Caps(max_attempts, self.site_failures, self.lost_pilots, self.preemptions)
