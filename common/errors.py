"""The numbered errors: every failure that a person must act on has a row here.

Numbers below 1400 are those of the PanDA pilot wherever one means the same thing, so that sites can keep their
dashboards and habits; numbers from 1400 on are Pilotage's own. The reference page of errors is generated from
:data:`ERRORS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Actor(str, Enum):
    """Who has to act on an error."""

    USER = "user"
    """The person who submitted the work: payload, requirements or input are wrong."""
    SITE = "site"
    """The admin of the site, queue or storage."""
    OPERATOR = "operator"
    """Whoever runs the dispatcher or harvester."""
    NOBODY = "nobody"
    """Nothing to do: the system deals with it, or somebody asked for it."""


class ErrorCode(IntEnum):
    """Numbers of the errors; see :data:`ERRORS` for what each means."""

    GENERAL_ERROR = 1008
    NO_LOCAL_SPACE = 1098
    STAGE_IN_FAILED = 1099
    REPLICA_NOT_FOUND = 1100
    NO_SUCH_FILE = 1103
    WORK_DIR_TOO_LARGE = 1104
    STDOUT_TOO_BIG = 1106
    SETUP_FAILED = 1110
    NFS_SQLITE = 1115
    OUTPUT_TOO_LARGE = 1124
    NO_STORAGE = 1133
    STAGE_OUT_FAILED = 1137
    PUT_MD5_MISMATCH = 1141
    KILLED_BY_SERVER = 1144
    GET_MD5_MISMATCH = 1145
    TRANSFORMATION_NOT_FETCHED = 1149
    LOOPING_JOB = 1150
    STAGE_IN_TIMEOUT = 1151
    STAGE_OUT_TIMEOUT = 1152
    NO_PROXY = 1163
    MISSING_OUTPUT = 1165
    INPUT_TOO_LARGE = 1168
    GET_ADLER32_MISMATCH = 1171
    PUT_ADLER32_MISMATCH = 1172
    NAME_TOO_LONG = 1190
    MKDIR_FAILED = 1199
    KILL_SIGNAL = 1200
    SIGTERM = 1201
    SIGQUIT = 1202
    SIGSEGV = 1203
    SIGXCPU = 1204
    USER_KILL = 1205
    SIGBUS = 1206
    SIGUSR1 = 1207
    MISSING_INSTALLATION = 1211
    OUT_OF_MEMORY = 1212
    WALL_TIME_REACHED = 1213
    FILE_EXISTS = 1221
    MEMORY_EXCEEDED = 1235
    FAILED_BY_SERVER = 1236
    CHECKSUM_NOT_SUPPORTED = 1242
    FILE_HANDLING_FAILED = 1303
    PAYLOAD_FAILED = 1305
    CONTAINER_FAILED = 1306
    CONTAINER_BIND_FAILED = 1308
    CONTAINER_MOUNT_FAILED = 1309
    NO_STORAGE_PROTOCOL = 1313
    UNKNOWN_CHECKSUM_TYPE = 1314
    COMMUNICATION_FAILED = 1318
    INTERNAL_PILOT_PROBLEM = 1319
    LOG_CREATION_FAILED = 1320
    UNKNOWN_COPYTOOL = 1323
    SERVICE_UNAVAILABLE = 1324
    CONTAINER_NOT_INSTALLED = 1325
    NETWORK_UNREACHABLE = 1327
    MISSING_INPUT = 1331
    NO_REMOTE_SPACE = 1333
    STAGE_IN_AUTHENTICATION = 1338
    RESOURCE_UNAVAILABLE = 1344
    CONTAINER_NO_USER_NAMESPACE = 1345
    MIDDLEWARE_IMPORT_FAILED = 1342
    TRANSFORMATION_NOT_FOUND = 1346
    BAD_ARGUMENTS = 1349
    EMPTY_OUTPUT = 1350
    CORE_DUMP = 1355
    PREPROCESS_FAILED = 1356
    POSTPROCESS_FAILED = 1357
    IMAGE_NOT_FOUND = 1360
    MISSING_CREDENTIALS = 1364
    BAD_JOBSCRIPT = 1400
    STAGE_OUT_AUTHENTICATION = 1401
    HEARTBEAT_LOST = 1402
    DECLARED_LOST = 1403
    PREEMPTED = 1404
    SUPERVISOR_DIED = 1405
    UNITS_NOT_PROCESSED = 1406
    DRAINED = 1407
    TASK_CANCELLED = 1408
    WORKER_LOST = 1409
    REGISTRATION_FAILED = 1410
    OUTPUT_NOT_REGULAR = 1411
    BAD_CONFIGURATION = 1412
    STATE_TIMEOUT = 1413
    BAD_SANDBOX = 1414
    OUTPUTS_NOT_REGISTERED = 1420
    IMAGE_NOT_FETCHED = 1425
    PLUGIN_FAILED = 1430
    COPROCESS_FAILED = 1431
    SITE_PROCESS_FAILED = 1432
    REFUSED_BY_PLUGIN = 1433
    TOO_MANY_PROCESSES = 1440
    GIVEN_BACK = 1450
    CLOCK_WRONG = 1460
    CVMFS_NOT_AVAILABLE = 1461
    SCRATCH_UNUSABLE = 1462
    GPU_NOT_AVAILABLE = 1463
    SLOT_TOO_SMALL = 1470


@dataclass(frozen=True)
class ErrorInfo:
    """What one error means.

    ``words`` say what happened and what to do; ``actor`` who must act; ``retry`` whether another attempt can help;
    ``payload`` whether it counts against the unit's payload failures (else it is the site's or the system's fault).
    """

    words: str
    actor: Actor
    retry: bool
    payload: bool = False


_U, _S, _O, _N = Actor.USER, Actor.SITE, Actor.OPERATOR, Actor.NOBODY

ERRORS: dict[ErrorCode, ErrorInfo] = {
    ErrorCode.GENERAL_ERROR: ErrorInfo("General pilot error: read the pilot log.", _S, True),
    ErrorCode.NO_LOCAL_SPACE: ErrorInfo("Not enough space on the node's scratch disk: clean it or lower the queue's disk.", _S, True),
    ErrorCode.STAGE_IN_FAILED: ErrorInfo("An input file could not be fetched: look at the storage and the network.", _S, True),
    ErrorCode.REPLICA_NOT_FOUND: ErrorInfo("No usable replica of an input file: check its replicas and the storages' status.", _S, True),
    ErrorCode.NO_SUCH_FILE: ErrorInfo("A storage says that the file does not exist: its replica entry is wrong.", _S, True),
    ErrorCode.WORK_DIR_TOO_LARGE: ErrorInfo("The job's folder outgrew its disk limit: ask for more disk or write less.", _U, True, True),
    ErrorCode.STDOUT_TOO_BIG: ErrorInfo("The payload's log outgrew its limit: print less.", _U, False, True),
    ErrorCode.SETUP_FAILED: ErrorInfo("The job could not be set up: read the job's log.", _S, True),
    ErrorCode.NFS_SQLITE: ErrorInfo("SQLite could not lock a file, as on a shared file system: keep the job's scratch on a local disk.", _S, True),
    ErrorCode.OUTPUT_TOO_LARGE: ErrorInfo("An output file is larger than allowed: split it.", _U, False, True),
    ErrorCode.NO_STORAGE: ErrorInfo("No storage may take the output: name one in the task, or bring one online.", _O, True),
    ErrorCode.STAGE_OUT_FAILED: ErrorInfo("An output file could not be uploaded: look at the storage and the network.", _S, True),
    ErrorCode.PUT_MD5_MISMATCH: ErrorInfo("An uploaded file has another md5 than the local one: look at the storage.", _S, True),
    ErrorCode.KILLED_BY_SERVER: ErrorInfo("The server asked the pilot to kill this job.", _N, False),
    ErrorCode.GET_MD5_MISMATCH: ErrorInfo("An input file has another md5 than recorded: the replica is damaged.", _S, True),
    ErrorCode.TRANSFORMATION_NOT_FETCHED: ErrorInfo("The transformation could not be fetched: look at its address, its checksum and the network.", _S, True),
    ErrorCode.LOOPING_JOB: ErrorInfo("The payload touched no output for too long and was killed.", _U, True, True),
    ErrorCode.STAGE_IN_TIMEOUT: ErrorInfo("A file transfer timed out during stage-in.", _S, True),
    ErrorCode.STAGE_OUT_TIMEOUT: ErrorInfo("A file transfer timed out during stage-out.", _S, True),
    ErrorCode.NO_PROXY: ErrorInfo("The grid proxy is missing or no longer valid: renew it.", _O, True),
    ErrorCode.MISSING_OUTPUT: ErrorInfo("The payload did not write an output that the task promises.", _U, True, True),
    ErrorCode.INPUT_TOO_LARGE: ErrorInfo("The input files are larger than the slot's disk.", _U, False, True),
    ErrorCode.GET_ADLER32_MISMATCH: ErrorInfo("An input file has another adler32 than recorded: the replica is damaged.", _S, True),
    ErrorCode.PUT_ADLER32_MISMATCH: ErrorInfo("An uploaded file has another adler32 than the local one: look at the storage.", _S, True),
    ErrorCode.NAME_TOO_LONG: ErrorInfo("A file name is longer than 255 characters: shorten it.", _U, False, True),
    ErrorCode.MKDIR_FAILED: ErrorInfo("A local folder could not be made: look at the node's scratch disk.", _S, True),
    ErrorCode.KILL_SIGNAL: ErrorInfo("The payload was ended by a signal.", _U, True, True),
    ErrorCode.SIGTERM: ErrorInfo("The job was ended by SIGTERM, as batch systems do when they want the slot back.", _N, True),
    ErrorCode.SIGQUIT: ErrorInfo("The job was ended by SIGQUIT.", _N, True),
    ErrorCode.SIGSEGV: ErrorInfo("The payload crashed with a segmentation fault: mend it, or look at its core dump.", _U, True, True),
    ErrorCode.SIGXCPU: ErrorInfo("The job used more CPU time than the batch system allows.", _U, True, True),
    ErrorCode.USER_KILL: ErrorInfo("The job was killed by its user.", _N, False),
    ErrorCode.SIGBUS: ErrorInfo("The payload crashed with a bus error.", _U, True, True),
    ErrorCode.SIGUSR1: ErrorInfo("The job was ended by SIGUSR1, the batch system's warning.", _N, True),
    ErrorCode.MISSING_INSTALLATION: ErrorInfo("Software that the payload needs is not there: check /cvmfs on the node, the image, and the payload's set-up.", _U, True, True),
    ErrorCode.OUT_OF_MEMORY: ErrorInfo("The payload ran out of memory: ask for more.", _U, True, True),
    ErrorCode.WALL_TIME_REACHED: ErrorInfo("The slot's time ran out: ask for more wall time or fewer units a job.", _U, True, True),
    ErrorCode.FILE_EXISTS: ErrorInfo("The destination exists already.", _S, True),
    ErrorCode.MEMORY_EXCEEDED: ErrorInfo("The payload used more memory than allowed: ask for more.", _U, True, True),
    ErrorCode.FAILED_BY_SERVER: ErrorInfo("The server failed this job.", _O, True),
    ErrorCode.CHECKSUM_NOT_SUPPORTED: ErrorInfo("The storage cannot tell the checksum that was asked for.", _S, True),
    ErrorCode.FILE_HANDLING_FAILED: ErrorInfo("A local file could not be read or written: look at the node's disk.", _S, True),
    ErrorCode.PAYLOAD_FAILED: ErrorInfo("The payload ended with a non-zero exit code: read its log.", _U, True, True),
    ErrorCode.CONTAINER_FAILED: ErrorInfo("Apptainer failed: read the payload's log.", _S, True),
    ErrorCode.CONTAINER_BIND_FAILED: ErrorInfo("Apptainer could not mount a bind point: check the queue's bind list.", _S, True),
    ErrorCode.CONTAINER_MOUNT_FAILED: ErrorInfo("Apptainer could not mount the image: check FUSE on the node, or the image.", _S, True),
    ErrorCode.NO_STORAGE_PROTOCOL: ErrorInfo("No protocol of this storage suits a copytool of the queue: add one.", _O, True),
    ErrorCode.UNKNOWN_CHECKSUM_TYPE: ErrorInfo("The checksum's type is unknown: use adler32, md5 or sha256.", _U, False, True),
    ErrorCode.COMMUNICATION_FAILED: ErrorInfo("The server could not be reached: check the URL, the certificate and the network.", _S, True),
    ErrorCode.INTERNAL_PILOT_PROBLEM: ErrorInfo("A mistake inside the pilot: please report it with the pilot log.", _O, True),
    ErrorCode.LOG_CREATION_FAILED: ErrorInfo("The job's log archive could not be made.", _S, True),
    ErrorCode.UNKNOWN_COPYTOOL: ErrorInfo("The copytool is not installed or not known: check the queue's list.", _O, True),
    ErrorCode.SERVICE_UNAVAILABLE: ErrorInfo("The storage service is not available at the moment.", _S, True),
    ErrorCode.CONTAINER_NOT_INSTALLED: ErrorInfo("Apptainer is not installed on the node: install it, or drop the container tag.", _S, True),
    ErrorCode.NETWORK_UNREACHABLE: ErrorInfo("The network to the storage is unreachable from the node.", _S, True),
    ErrorCode.MISSING_INPUT: ErrorInfo("The input file is missing on the storage: its replica entry is wrong.", _S, True),
    ErrorCode.NO_REMOTE_SPACE: ErrorInfo("The storage is full.", _S, True),
    ErrorCode.STAGE_IN_AUTHENTICATION: ErrorInfo("The storage refused the credential during stage-in.", _S, True),
    ErrorCode.MIDDLEWARE_IMPORT_FAILED: ErrorInfo("A storage library could not be imported: install it on the node.", _S, True),
    ErrorCode.RESOURCE_UNAVAILABLE: ErrorInfo("The node has no processes, threads or files left for the payload: look at its limits (ulimit -u, -n; pids.max).", _S, True),
    ErrorCode.CONTAINER_NO_USER_NAMESPACE: ErrorInfo("The node allows no user namespaces, which Apptainer needs: ask for user.max_user_namespaces.", _S, True),
    ErrorCode.TRANSFORMATION_NOT_FOUND: ErrorInfo("There is no transformation at that address: correct it.", _U, False, True),
    ErrorCode.BAD_ARGUMENTS: ErrorInfo("A program of the payload does not know one of its arguments: correct command or parameters.", _U, False, True),
    ErrorCode.EMPTY_OUTPUT: ErrorInfo("An output file is empty.", _U, True, True),
    ErrorCode.CORE_DUMP: ErrorInfo("The payload dumped core.", _U, True, True),
    ErrorCode.PREPROCESS_FAILED: ErrorInfo("A process before the payload failed: read its log, process-before-N in the log archive.", _U, True, True),
    ErrorCode.POSTPROCESS_FAILED: ErrorInfo("A process after the payload failed: read its log, process-after-N in the log archive.", _U, True, True),
    ErrorCode.IMAGE_NOT_FOUND: ErrorInfo("The container image does not exist: check its path or address.", _U, False, True),
    ErrorCode.MISSING_CREDENTIALS: ErrorInfo("A credential that the transfer needs is missing.", _O, True),
    ErrorCode.BAD_JOBSCRIPT: ErrorInfo("The jobscript cannot be run: its first line must be a shebang such as #!/bin/sh.", _U, False, True),
    ErrorCode.STAGE_OUT_AUTHENTICATION: ErrorInfo("The storage refused the credential during stage-out.", _S, True),
    ErrorCode.HEARTBEAT_LOST: ErrorInfo("The pilot was silent for too long: the node or the network died.", _S, True),
    ErrorCode.DECLARED_LOST: ErrorInfo("The server had declared this job lost; its results came too late.", _N, True),
    ErrorCode.PREEMPTED: ErrorInfo("The batch system took the slot back.", _N, True),
    ErrorCode.SUPERVISOR_DIED: ErrorInfo("The job's supervisor process was killed; the payload died with it. Payloads that kill it, or run the node out of memory, do this.", _U, True, True),
    ErrorCode.UNITS_NOT_PROCESSED: ErrorInfo("The jobscript did not process this unit; another job will.", _N, True),
    ErrorCode.DRAINED: ErrorInfo("The pilot was told to drain before the job could start.", _N, True),
    ErrorCode.TASK_CANCELLED: ErrorInfo("The task was killed while the job ran.", _N, False),
    ErrorCode.WORKER_LOST: ErrorInfo("The batch system lost the worker that held this pilot.", _S, True),
    ErrorCode.REGISTRATION_FAILED: ErrorInfo("The pilot could not register: its worker's secret is unknown, used up or expired.", _O, False),
    ErrorCode.OUTPUT_NOT_REGULAR: ErrorInfo("An output is a link or no regular file inside the job's folder; it is not uploaded.", _U, False, True),
    ErrorCode.BAD_CONFIGURATION: ErrorInfo("The configuration or the installation cannot be used: mend what the message names.", _O, False),
    ErrorCode.BAD_SANDBOX: ErrorInfo("The sandbox cannot be unpacked safely: pack it again with pilotage sandbox.", _U, False, True),
    ErrorCode.STATE_TIMEOUT: ErrorInfo("The job stayed in one state for longer than its time-out: look at its pilot, its storage and the site.", _S, True),
    ErrorCode.PLUGIN_FAILED: ErrorInfo("A plug-in of the experiment failed: read the job's log, and tell whoever maintains it.", _O, True),
    ErrorCode.COPROCESS_FAILED: ErrorInfo("A process beside the payload failed: read its log, process-beside-N in the log archive.", _U, True, True),
    ErrorCode.SITE_PROCESS_FAILED: ErrorInfo("A process around the payload says that the site is at fault: read its log.", _S, True),
    ErrorCode.REFUSED_BY_PLUGIN: ErrorInfo("The experiment's plug-in refuses this job, for the reason that it gives.", _U, False, True),
    ErrorCode.TOO_MANY_PROCESSES: ErrorInfo("The payload had more processes than allowed: start fewer at a time.", _U, True, True),
    ErrorCode.GIVEN_BACK: ErrorInfo("The job was claimed ahead of time and given back before it began: it will run elsewhere.", _N, True),
    ErrorCode.IMAGE_NOT_FETCHED: ErrorInfo("The container image could not be pulled: look at its registry, the network, and [pilot] image_timeout_s.", _S, True),
    ErrorCode.CLOCK_WRONG: ErrorInfo("The node's clock is wrong: have it synchronised, or tokens and certificates fail.", _S, True),
    ErrorCode.CVMFS_NOT_AVAILABLE: ErrorInfo("A CVMFS repository that the queue's jobs need is not there: look at the node's CVMFS client.", _S, True),
    ErrorCode.SCRATCH_UNUSABLE: ErrorInfo("The node's scratch folder cannot be used: it must be writable and executable, and its disk healthy.", _S, True),
    ErrorCode.GPU_NOT_AVAILABLE: ErrorInfo("The slot has fewer GPUs than the queue promises: look at the node's driver, and at what the batch system assigns.", _S, True),
    ErrorCode.SLOT_TOO_SMALL: ErrorInfo("The slot is smaller than its worker asked for, and the job that was claimed for it does not fit: look at what the batch system gives.", _S, True),
    ErrorCode.OUTPUTS_NOT_REGISTERED: ErrorInfo("The catalogue refuses to register an output: read its words, mend scope, names or account.", _U, True, True),
}  # fmt: skip


class PilotageError(Exception):
    """A failure with a number.

    ``code`` says which row of :data:`ERRORS`; ``detail`` what exactly happened (never a secret).
    """

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        self.code = ErrorCode(code)
        self.detail = detail
        super().__init__(f"{int(self.code)} {self.code.name}: {detail or self.info.words}")

    @property
    def info(self) -> ErrorInfo:
        """The row of the table."""
        return ERRORS[self.code]


#: Signal names to the error that a payload killed by it is reported as (PanDA pilot, get_kill_signal_error_code).
SIGNAL_ERRORS: dict[str, ErrorCode] = {
    "SIGTERM": ErrorCode.SIGTERM,
    "SIGQUIT": ErrorCode.SIGQUIT,
    "SIGSEGV": ErrorCode.SIGSEGV,
    "SIGXCPU": ErrorCode.SIGXCPU,
    "SIGBUS": ErrorCode.SIGBUS,
    "SIGUSR1": ErrorCode.SIGUSR1,
}
