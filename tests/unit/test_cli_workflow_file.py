"""Workflow files: what people write becomes the message; every mistake is told with file, field and remedy."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from common.cli.strict import InputError
from common.cli.workflow_file import load_workflow
from common.wire import (
    CounterInput,
    DatasetInput,
    FilesInput,
    GpuRequest,
    MergeRule,
    OutputPattern,
    RemoteIo,
    Requirements,
    SingleInput,
    StageInput,
    StageSource,
)

FRIENDLY = """
name = "zmumu"
scope = "alice"
labels = { campaign = "2026" }

[[stage]]
name = "simulate"
input.counter = 200
input.events = 1000
jobscript_file = "simulate.sh"
outputs = ["events-*.root", { pattern = "*.txt", optional = true }]
files_per_job = 4
far_after = "10m"
[stage.requirements]
cores = 2
memory = "2 GB"
disk = "10 GiB"
wall = "1h30m"
gpus = { count = 1, memory = "16 GiB" }
tags = ["avx2"]

[[stage]]
name = "merge"
input.stage = "simulate"
input.pattern = "*.root"
command = ["hadd", "all.root", "{inputs}"]
merge = { min_files = 100, max_files = 200 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "simulate.sh").write_text("#!/bin/sh\necho hello\n")
    return tmp_path


def write(folder: Path, text: str, name: str = "w.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(folder: Path, text: str, name: str = "w.toml") -> str:
    with pytest.raises(InputError) as caught:
        load_workflow(write(folder, text, name))
    return caught.value.message


def stage(body: str) -> str:
    return f'name = "w"\n[[stage]]\nname = "s"\n{body}\n'


RUNS = 'command = ["true"]\n'


def test_the_friendly_form_becomes_the_message(folder: Path) -> None:
    request = load_workflow(write(folder, FRIENDLY))
    assert (request.name, request.scope, request.labels) == ("zmumu", "alice", {"campaign": "2026"})
    first, second = request.stages
    assert first.input == CounterInput(count=200, events=1000)
    assert first.jobscript == "#!/bin/sh\necho hello\n"
    assert first.outputs == [OutputPattern("events-*.root"), OutputPattern("*.txt", optional=True)]
    assert first.far_after_s == 600
    assert first.requirements == Requirements(
        cores=2,
        memory_mb=1908,  # 2e9 bytes rounded up to mebibytes
        disk_mb=10240,
        wall_s=5400,
        gpus=GpuRequest(count=1, memory_mb=16384),
        tags=["avx2"],
    )
    assert second.input == StageInput("simulate", "*.root")
    assert second.merge == MergeRule(100, 200)
    assert second.command == ["hadd", "all.root", "{inputs}"]


def test_the_wire_form_is_taken_as_it_is(folder: Path) -> None:
    text = json.dumps(
        {"name": "w", "stages": [{"name": "s", "input": {"kind": "counter", "count": 3}, "command": ["true"]}]}
    )
    assert load_workflow(write(folder, text, "w.json")).stages[0].input == CounterInput(count=3)


@pytest.mark.parametrize("text", ['input = "single"', "input.single = true", 'input.kind = "single"'])
def test_single_input(folder: Path, text: str) -> None:
    assert load_workflow(write(folder, stage(RUNS + text))).stages[0].input == SingleInput()


def test_a_file_list_as_text(folder: Path) -> None:
    (folder / "list.txt").write_text(
        "# two files\nrun1:a.root  disk:data/a.root tape:a.root size=2MB events=100 checksum=adler32:0a1b2c3d\n\n"
        "run1:b.root disk:b.root  # the second\n"
    )
    request = load_workflow(write(folder, stage(RUNS + 'input.files_from = "list.txt"')))
    given = request.stages[0].input
    assert isinstance(given, FilesInput)
    first, second = given.files
    assert (first.did, first.size, first.events, first.checksum) == ("run1:a.root", 2_000_000, 100, "adler32:0a1b2c3d")
    assert [(r.storage, r.path) for r in first.replicas] == [("disk", "data/a.root"), ("tape", "a.root")]
    assert (second.did, second.size) == ("run1:b.root", None)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_list_as_json(folder: Path, wrapped: bool) -> None:
    files = [{"did": "s:a", "size": "1 GiB", "replicas": [{"storage": "disk", "path": "a"}]}]
    (folder / "list.json").write_text(json.dumps({"files": files} if wrapped else files))
    request = load_workflow(write(folder, stage(RUNS + 'input.files_from = "list.json"')))
    given = request.stages[0].input
    assert isinstance(given, FilesInput)
    assert given.files[0].size == 2**30


def test_common_input_comes_from_a_list_too(folder: Path) -> None:
    (folder / "sandbox.txt").write_text("s:code.tar disk:code.tar\n")
    request = load_workflow(write(folder, stage(RUNS + 'input = "single"\ncommon_input_from = "sandbox.txt"')))
    assert request.stages[0].common_input[0].did == "s:code.tar"


def test_an_unknown_field_is_named_with_the_nearest_known_one(folder: Path) -> None:
    text = mistakes(folder, stage(RUNS + "input.counter = 1\nfiles_perjob = 2\nrequirements.memry = '2 GB'"))
    assert f"{folder}/w.toml: stage[0].files_perjob: unknown field; did you mean 'files_per_job'?" in text
    assert "stage[0].requirements.memry: unknown field; did you mean 'memory'?" in text


def test_an_unknown_field_deep_in_the_wire_form_is_named(folder: Path) -> None:
    text = mistakes(folder, stage(RUNS + 'input = "single"\noutputs = [{ patern = "*" }]'))
    assert "stage[0].outputs[0].patern: unknown field; did you mean 'pattern'?" in text


def test_an_unknown_field_of_an_input(folder: Path) -> None:
    assert "stage[0].input.frist: unknown field; did you mean 'first'?" in mistakes(
        folder, stage(RUNS + "input.counter = 1\ninput.frist = 2")
    )
    assert "'conter' is unknown, did you mean 'counter'?" in mistakes(folder, stage(RUNS + "input.conter = 1"))


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    text = mistakes(folder, 'name = "w"\nscop = "x"\n[[stage]]\nname = "s"\njobscript_file = "gone.sh"\ninput = 3\n')
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (RUNS, "stage[0].input: this field is required"),
        (RUNS + "input.counter = 'many'", "stage[0].input.count: expected `int`, got `str`"),
        (RUNS + "input.counter = 1\ninput.stage = 'x'", "counter and stage exclude each other"),
        (RUNS + "input.single = false", "write single = true"),
        ("input.counter = 1", "stage[0]: the payload is missing: give one of jobscript_file"),
        (RUNS + "jobscript = '#!/bin/sh'\ninput.counter = 1", "jobscript and command are there: give one of"),
        ("jobscript = 'echo'\ninput.counter = 1", "stage[0].jobscript: the first line must be a shebang"),
        (RUNS + "input.counter = 1\nrequirements.memory = 2000", "write a number with a unit, such as '512 MiB'"),
        (RUNS + "input.counter = 1\nrequirements.memory = '2G'", "GB (powers of 1000) or"),
        (RUNS + "input.counter = 1\nrequirements.wall = 'long'", "stage[0].requirements.wall: 'long' cannot be read"),
        (RUNS + "input.counter = 1\nrequirements = { memory = '1 GB', memory_mb = 1 }", "say the same thing"),
        (RUNS + "input.counter = 1\nfiles_per_job = 0", "stage[0].files_per_job: expected `int` >= 1"),
        (RUNS + "input.files_from = 3", "stage[0].input.files_from: expected the name of a file"),
    ],
)
def test_a_mistake_is_named(folder: Path, body: str, words: str) -> None:
    assert words in mistakes(folder, stage(body))


def test_a_name_with_forbidden_characters(folder: Path) -> None:
    assert "w.toml: name: it has characters that are not allowed here" in mistakes(
        folder, 'name = "a b"\n[[stage]]\nname = "s"\ninput = "single"\n' + RUNS
    )


def test_a_jobscript_without_a_shebang_is_named(folder: Path) -> None:
    (folder / "simulate.sh").write_text("echo hello\n")
    text = mistakes(folder, stage('jobscript_file = "simulate.sh"\ninput.counter = 1'))
    assert "stage[0].jobscript_file: the first line of simulate.sh must be a shebang such as #!/bin/sh" in text


def test_a_jobscript_with_windows_line_ends(folder: Path) -> None:
    (folder / "simulate.sh").write_bytes(b"#!/bin/sh\r\necho hello\r\n")
    assert "carriage return" in mistakes(folder, stage('jobscript_file = "simulate.sh"\ninput.counter = 1'))


def test_an_unreadable_jobscript_and_list_are_named(folder: Path) -> None:
    text = mistakes(folder, stage('jobscript_file = "gone.sh"\ninput.files_from = "gone.txt"'))
    assert f"{folder}/gone.sh: stage[0].jobscript_file: cannot be read: No such file or directory" in text
    assert f"{folder}/gone.txt: stage[0].input.files_from: cannot be read: No such file or directory" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("s:a disk:a\ns:b disk:b\ns:a disk:c\n", "line 3: s:a is in the list already, at line 1"),
        ("s:a disk\n", ":1: 'disk' is no replica; write: scope:name STORAGE:PATH"),
        ("s:a\n", "s:a has no replica"),
        ("# nothing\n", "the list is empty"),
        ("s:a disk:a size=2G\n", ":1: size: '2G' cannot be read"),
        ("s:a disk:a events=few\n", ":1: events: 'few' is no whole number"),
        ("s:a disk:a evnts=3\n", "evnts: unknown option; did you mean 'events'?"),
        ("s:a disk:a checksum=adler32:xyz\n", ":1: checksum: it has characters that are not allowed here"),
    ],
)
def test_a_mistake_in_a_text_list_is_named(folder: Path, content: str, words: str) -> None:
    (folder / "list.txt").write_text(content)
    text = mistakes(folder, stage(RUNS + 'input.files_from = "list.txt"'))
    assert words in text and "list.txt" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '[{"did": "s:a", "replicas": [{"storage": "d", "path": "a"}]}, {"did": "s:a", "replicas": [{"storage": "d", "path": "a"}]}]',
            "[1]: s:a is in the list already, at [0]",
        ),
        ('[{"did": "s:a", "replica": []}]', "[0].replica: unknown field; did you mean 'replicas'?"),
        ('[{"did": "s:a"}]', "[0].replicas: this field is required"),
        ("[1,", "list.json:1: stage[0].input.files_from: this is not JSON"),
        ("3", "expected a list of files"),
        ('[{"did": "s:a", "size": "big", "replicas": []}]', "[0].size: 'big' cannot be read"),
    ],
)
def test_a_mistake_in_a_json_list_is_named(folder: Path, content: str, words: str) -> None:
    (folder / "list.json").write_text(content)
    assert words in mistakes(folder, stage(RUNS + 'input.files_from = "list.json"'))


def test_a_file_that_is_no_workflow(folder: Path) -> None:
    assert "this is not TOML" in mistakes(folder, "name = ")
    assert "must end in .toml or .json" in mistakes(folder, "name: x", "w.yaml")
    assert "expected a JSON object" in mistakes(folder, "[]", "w.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_workflow(folder / "none.toml")


def test_stage_and_stages_exclude_each_other(folder: Path) -> None:
    assert "use one of them" in mistakes(folder, "name = 'w'\nstages = []\nstage = []\n")


LISTED = "s:a.root disk:a events=10\ns:b.txt disk:b events=20\n"


def test_a_list_with_all_that_goes_beside_it(folder: Path) -> None:
    (folder / "one.txt").write_text(LISTED)
    (folder / "two.txt").write_text("s:c.root disk:c\n")
    body = 'input = { files_from = ["one.txt", "two.txt"], pattern = "*.root", limit = 5, events_per_unit = 100, open = true }'
    given = load_workflow(write(folder, stage(RUNS + body))).stages[0].input
    assert isinstance(given, FilesInput)
    assert [each.did for each in given.files] == ["s:a.root", "s:b.txt", "s:c.root"]
    assert (given.pattern, given.limit, given.events_per_unit, given.open) == ("*.root", 5, 100, True)


def test_an_open_input_without_files(folder: Path) -> None:
    given = load_workflow(write(folder, stage(RUNS + "input = { files = [], open = true }"))).stages[0].input
    assert given == FilesInput(open=True)


def test_a_dataset(folder: Path) -> None:
    body = 'input = { dataset = "data where run > 3", catalog = "exp", limit = 7, open = true }'
    given = load_workflow(write(folder, stage(RUNS + body))).stages[0].input
    assert given == DatasetInput(catalog="exp", query="data where run > 3", limit=7, open=True)


def test_outputs_of_several_stages(folder: Path) -> None:
    text = stage(RUNS + 'input.stages = ["a", { stage = "b", pattern = "*.root" }]\ninput.events_per_unit = 5')
    given = load_workflow(write(folder, text)).stages[0].input
    assert given == StageInput(stages=[StageSource("a"), StageSource("b", "*.root")], events_per_unit=5)


def test_secondary_inputs_merge_and_places(folder: Path) -> None:
    (folder / "mb.txt").write_text(LISTED)
    body = """
input.counter = 5
secondary_inputs = [{ name = "pileup", files_from = "mb.txt", per_job = 2 }, { name = "calib", stage = "c" }]
merge = { max_files = 50, target = "2 GiB", group_by = "attribute:run" }
sites = ["X"]
exclude_sites = ["Y"]
remote_io = "never"
events_per_job = 1000
"""
    made = load_workflow(write(folder, stage(RUNS + body))).stages[0]
    assert [(each.name, each.per_job, len(each.files), each.stage) for each in made.secondary_inputs] == [
        ("pileup", 2, 2, None),
        ("calib", 1, 0, "c"),
    ]
    assert made.merge == MergeRule(1, 50, target_mb=2048, group_by="attribute:run")
    assert (made.sites, made.exclude_sites, made.remote_io) == (["X"], ["Y"], RemoteIo.NEVER)
    assert made.events_per_job == 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('input.dataset = "x"', "stage[0].input: name the catalogue that is asked: catalog = 'name'"),
        (
            'input = { dataset = "x", catalog = "c", limt = 1 }',
            "stage[0].input.limt: unknown field; did you mean 'limit'?",
        ),
        ('input = { stages = ["a"], stage = "b" }', "stage and stages exclude each other"),
        ('input = { files_from = "l.txt", files = [] }', "files and files_from exclude each other"),
        (
            'input.counter = 1\nsecondary_inputs = [{ name = "p", fils = [] }]',
            "secondary_inputs[0].fils: unknown field",
        ),
        ('input.counter = 1\nsecondary_inputs = [{ name = "p q" }]', "secondary_inputs[0].name: it has characters"),
        ("input.counter = 1\nmerge = { target = 5 }", "stage[0].merge.target: 5 cannot be read"),
        ('input.counter = 1\nmerge = { group_by = "run" }', "merge.group_by: it has characters"),
        ('input.counter = 1\nremote_io = "perhaps"', "stage[0].remote_io"),
        ('input.counter = 1\nsites = "X"', "stage[0].sites"),
    ],
)
def test_a_mistake_in_the_newer_fields_is_named(folder: Path, body: str, words: str) -> None:
    (folder / "l.txt").write_text(LISTED)
    assert words in mistakes(folder, stage(RUNS + body))


def test_a_list_of_many_files_keeps_no_dictionaries(folder: Path) -> None:
    (folder / "many.json").write_text(
        json.dumps([{"did": f"s:f{n}", "replicas": [{"storage": "d", "path": "p"}]} for n in range(20_000)])
    )
    tracemalloc.start()
    try:
        request = load_workflow(write(folder, stage(RUNS + 'input.files_from = "many.json"')))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    given = request.stages[0].input
    assert isinstance(given, FilesInput) and len(given.files) == 20_000
    assert peak < 20_000 * 1000  # as dictionaries they take more than twice that
