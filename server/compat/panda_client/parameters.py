"""Every task parameter of PanDA that we know of, and what becomes of it: used, harmless to leave aside, or refused.

A parameter that would change what a job does is never left aside in silence. One that is not here is refused, too, unless
it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Use(Enum):
    """What becomes of a parameter."""

    USED = "used"
    """Its meaning is translated."""
    HARMLESS = "harmless"
    """It steers PanDA's own machinery, or only tells something: a job does the same without it."""
    REFUSED = "refused"
    """It would change what the jobs do, and cannot be translated."""


@dataclass(frozen=True)
class Parameter:
    """What becomes of a parameter. ``words``: why it is harmless, or what to do instead. ``fine``: values that are not
    refused, as they ask for what is done anyway."""

    use: Use
    words: str = ""
    fine: tuple[object, ...] = ()


def _used(words: str = "") -> Parameter:
    return Parameter(Use.USED, words)


def _harmless(words: str) -> Parameter:
    return Parameter(Use.HARMLESS, words)


def _refused(words: str, *fine: object) -> Parameter:
    return Parameter(Use.REFUSED, words, fine)


_EVENT_SERVICE = "there is no event service: give nEventsPerJob, which cuts files into ranges of events"
_SEGMENTS = "submit a task for each segment"
_HPO = "hyper-parameters are not searched here: submit a task of as many jobs as points"
_MERGE = "leave out --mergeOutput, and merge with a task that reads the output datasets"
_EVERY = "where jobs run follows from what they need and where their files are"

PARAMETERS: Mapping[str, Parameter] = {
    # Who and what
    "taskName": _used(),
    "uniqueTaskName": _used(),
    "userName": _harmless("who the token says is the owner"),
    "vo": _harmless("kept as a label"),
    "workingGroup": _used(),
    "official": _harmless("the client checks the name of the dataset; the working group says whose the task is"),
    "prodSourceLabel": _harmless("kept as a label"),
    "processingType": _used(),
    "taskType": _harmless("kept with the task"),
    "campaign": _harmless("kept with the task"),
    "reqID": _harmless("kept with the task"),
    "cliParams": _harmless("kept with the task"),
    "osInfo": _harmless("tells of the machine of whoever submits"),
    "framework": _harmless("kept with the task"),
    "noEmail": _harmless("mails are asked for in native workflows only"),
    "currentPriority": _used(),
    "taskPriority": _used(),
    # The payload
    "jobParameters": _used(),
    "transPath": _used(),
    "transUses": _refused(
        "Athena releases are not set up: run what needs one in a container image, with --containerImage"
    ),
    "transHome": _refused(
        "Athena releases are not set up: run what needs one in a container image, with --containerImage"
    ),
    "architecture": _refused("leave out --architecture, or choose a container image that fits"),
    "osMatching": _refused("leave out --osMatching, and run in a container image"),
    "container_name": _used(),
    "multiStepExec": _used("only as prun makes it for --containerImage"),
    "buildSpec": _used(),
    "fixedSandbox": _harmless("the sandbox of the task is the one that its parameters name"),
    "tarBallViaDDM": _refused("leave out --tarBallViaDDM: the sandbox goes to the server"),
    "preproSpec": _refused("good run lists are not expanded: give the dataset with --inDS"),
    "sourceURL": _harmless("pilots fetch sandboxes from the server that they belong to"),
    "useSecrets": _used(),
    "debugMode": _harmless("every running job can be looked at: pilotage job peek"),
    "encJobParams": _refused("send the job parameters as they are"),
    "noExecStrCnv": _harmless("job parameters are taken as they are"),
    "noLoopingCheck": _used(),
    # Merging
    "mergeOutput": _refused(_MERGE),
    "mergeSpec": _refused(_MERGE),
    "log_merge": _refused(_MERGE),
    "nGBPerMergeJob": _refused(_MERGE),
    "nMaxFilesPerMergeJob": _refused(_MERGE),
    # Input
    "noInput": _used(),
    "nFiles": _used(),
    "nFilesPerJob": _used(),
    "nMaxFilesPerJob": _used("below the client's own bound of 200, a job takes so many"),
    "nGBPerJob": _used(),
    "nEvents": _used(),
    "nEventsPerJob": _used(),
    "nEventsPerFile": _used(),
    "nEventsPerInputFile": _used(),
    "totNumJobs": _refused("give nEvents and nEventsPerJob, or --nJobs"),
    "maxNumJobs": _refused("give nFiles, which bounds the task"),
    "maxEventsPerJob": _refused("give nEventsPerJob"),
    "useRealNumEvents": _harmless("event counts are the catalogue's unless nEventsPerFile is given"),
    "getNumEventsInMetadata": _harmless("event counts are the catalogue's unless nEventsPerFile is given"),
    "skipEmptyInput": _used(),
    "dsForIN": _harmless("the same as the dataset in the job parameters"),
    "pfnList": _refused("put the files into a file list that a catalogue of the server has, and name it with --inDS"),
    "skipFilesUsedBy": _refused("leave out --skipFilesUsedBy: name the files that are left with --inputFileList"),
    "reuseSecOnDemand": _harmless("files of secondary datasets are always given out again when all were used"),
    "useLocalIO": _harmless("input is always copied to the slot's disk"),
    "allowInputLAN": _refused("input is copied to the slot's disk: leave out --transferType direct"),
    "transferType": _refused("input is copied to the slot's disk: leave out --transferType, or give file", "file"),
    "inputPreStaging": _harmless("files on tape are always recalled first"),
    "waitInput": _refused("submit when the dataset is there"),
    "noWaitParent": _refused("submit when the parent task is over, and name its output dataset with --inDS"),
    "orderByLB": _refused("leave out the grouping by luminosity block"),
    "respectLB": _refused("leave out --respectLB"),
    "respectSplitRule": _harmless("a job is always as large as asked for"),
    "addNthFieldToLFN": _refused("leave out --addNthFieldOfInDSToLFN and --addNthFieldOfInFileToLFN"),
    "useFileAsSourceLFN": _refused("leave out --addNthFieldOfInFileToLFN"),
    "loadXML": _refused("leave out --loadXML"),
    # Output
    "log": _harmless("every job's log archive is kept beside its outputs: pilotage show outputs"),
    "ddmBackEnd": _harmless("the server registers outputs where it is configured to"),
    # What jobs need, and where they run
    "site": _used(),
    "includedSite": _used(),
    "excludedSite": _used(),
    "cloud": _refused("name sites with --site", "NA", "WORLD", "world"),
    "countryGroup": _harmless("shares are the server's"),
    "gshare": _refused("shares follow from the server's rules: leave it out"),
    "coreCount": _used(),
    "maxCoreCount": _refused("give --nCore"),
    "ramCount": _used(),
    "ramCountUnit": _used(),
    "ramUnit": _used(),
    "baseRamCount": _refused("give all memory in ramCount"),
    "cpuTime": _used(),
    "cpuTimeUnit": _used(),
    "cpuEfficiency": _harmless("measured by the first jobs"),
    "baseWalltime": _harmless("measured by the first jobs"),
    "maxWalltime": _used(),
    "walltime": _used(),
    "walltimeUnit": _refused("give walltime in seconds", "s"),
    "outDiskCount": _harmless("the size of outputs is measured by the first jobs"),
    "outDiskUnit": _harmless("the size of outputs is measured by the first jobs"),
    "workDiskCount": _used(),
    "workDiskUnit": _refused("give workDiskCount in MB", "MB"),
    "ioIntensity": _harmless("measured by the first jobs"),
    "ioIntensityUnit": _harmless("measured by the first jobs"),
    "ipConnectivity": _refused("leave it out", "yes", "none"),
    "resourceType": _harmless("follows from cores and memory"),
    "avoidVP": _harmless("there are no virtual placements"),
    "disableReassign": _harmless(_EVERY),
    # How the task runs
    "maxAttempt": _used(),
    "maxFailure": _refused("give maxAttempt"),
    "disableAutoRetry": _used(),
    "skipScout": _used(),
    "scoutSuccessRate": _harmless("what scouts must show is the server's"),
    "messageDriven": _harmless("how the server works is its own"),
    "allowPartialFinish": _harmless("a task may always end with a part of its units done"),
    "goal": _harmless("a task may always end with a part of its units done"),
    "failGoalUnreached": _harmless("a task that ended with a part of its units done is finished, not done"),
    "nChunksToWait": _harmless("units are made as the input comes"),
    "noThrottle": _harmless("how the server works is its own"),
    "ttcrTimestamp": _harmless("a wish, not a rule"),
    "registerDatasets": _harmless("datasets are made as files come"),
    "cloudAsVO": _harmless(_EVERY),
    "runOnInstant": _refused("leave it out"),
    "useJobCloning": _refused("leave it out: a unit is done once"),
    # What there is not here
    "nEventsPerWorker": _refused(_EVENT_SERVICE),
    "nSitesPerJob": _refused(_EVENT_SERVICE),
    "nEsConsumers": _refused(_EVENT_SERVICE),
    "esFraction": _refused(_EVENT_SERVICE),
    "esConvertible": _refused(_EVENT_SERVICE),
    "fineGrainedProc": _refused(_EVENT_SERVICE),
    "eventService": _refused(_EVENT_SERVICE),
    "hpoWorkflow": _refused(_HPO),
    "hpoRequestData": _refused(_HPO),
    "segmentedWork": _refused(_SEGMENTS),
    "segmentSpecs": _refused(_SEGMENTS),
}


def empty(value: object) -> bool:
    """Whether a parameter is as good as not there."""
    return value is None or value is False or value in ("", 0, [], {})


def refusals(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parameters that cannot be translated, and what to do."""
    found = []
    for name, value in given.items():
        known = PARAMETERS.get(name)
        if empty(value):
            continue
        if known is None:
            found.append((name, "this parameter is not known here: leave it out"))
        elif known.use is Use.REFUSED and not (isinstance(value, str) and value in known.fine):
            found.append((name, known.words))
    return found
