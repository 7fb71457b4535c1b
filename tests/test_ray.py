"""Ray workers do what the local engine does, each item's result arrives once, and neither a killed
worker nor a lost machine changes that. Two Ray nodes here, one cluster for all tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

import activation_analysis
import interventions
import ray_tasks
import run_pipeline
from output_manager import load_run
from prompts import select_prompts
from ray_tasks import flags, waits
from rolecircuits.edits.plan import parse_entries
from rolecircuits.engines import open, ray_engine
from rolecircuits.engines.open import check_engine_arguments, open_engine
from rolecircuits.engines.work import Item, WorkerState, folder_aside
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.inputs.specs import Setting
from rolecircuits.models import families as families_module
from rolecircuits.runs.npz import read_npz
from tiny_models import save_tiny

PROJECT, TESTS = Path(interventions.__file__).parent, Path(__file__).parent
ENTRIES = [
    {"type": "head", "layer": layer, "head": head, "method": method}
    for layer, head, method in [(1, 1, "zero_out"), (0, 2, "resample"), (1, 0, "mean")]
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "local", "num_workers": 2}, "--num_workers needs --engine ray"),
        ({"engine": "local", "ray_address": "auto"}, "--ray_address needs --engine ray"),
        ({"device": "cuda:1"}, "use --device cuda"),
        ({"device": "cpu", "gpus_per_worker": 1}, "--gpus_per_worker 1 with --device cpu"),
        ({"ray_address": "ray://host:1"}, "must be HOST:PORT"),
        ({"ray_address": "127.0.0.1:99999"}, "nothing answers there"),
        ({"ray_address": "127.0.0.1:1"}, "nothing answers there"),
    ],
)
def test_flags_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check_engine_arguments(flags(**changes))


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(open.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="pip install -r requirements-distributed.txt -c constraints.txt"
    ):
        check_engine_arguments(flags())
    check_engine_arguments(flags(engine="local"))


def test_engine_flags_are_refused_before_anything_is_loaded(tmp_path, capsys):
    base = ["--model_id", "./no_such_model", "--output_dir", str(tmp_path)]
    assert interventions.main([*base, "--num_workers", "2"]) == 2
    assert run_pipeline.main(["--family", "demo", "qwen", "--ray_address", "auto"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: --num_workers needs --engine ray",
        "error: --ray_address needs --engine ray",
    ]


def test_an_item_is_named_by_what_its_result_depends_on():
    flags = ["--seed", "1", "--output_dir", "a", "--engine", "ray", "--num_workers", "3"]
    here, other = ["--seed", "1", "--output_dir", "b"], ["--seed", "2"]
    settings = [Setting.of(interventions.parse_args(each)) for each in (flags, here, other)]
    payloads = [{"setting": asdict(setting)} for setting in settings]
    name = [Item("x", ray_tasks.wait, payload).name for payload in payloads]
    assert name[0] == name[1] != name[2]
    one, same, other = (
        Item("x", ray_tasks.wait, {"a": 1, "b": 2}),
        Item("y", ray_tasks.wait, {"b": 2, "a": 1}),
        Item("x", ray_tasks.die, {"a": 1, "b": 2}),
    )
    assert one.name == same.name != other.name


def test_a_worker_holds_one_model_and_one_state():
    held, made = WorkerState(), []
    make = lambda value: lambda: made.append(value) or value  # noqa: E731
    taken = [held.model("a", make("A")), held.state("s", make("S")), held.model("a", make("no"))]
    assert taken == ["A", "S", "A"]
    assert held.model("b", make("B")) == "B" and held.state("s", make("S of B")) == "S of B"
    assert made == ["A", "S", "B", "S of B"]


def test_lines_that_name_a_temporary_folder_are_not_printed(capsys):
    with pytest.raises(UserError, match="stop"), folder_aside() as aside:
        print(f"one\n-> {aside}/run\ntwo")
        raise UserError("stop")
    assert capsys.readouterr().out == "one\ntwo\n" and not Path(aside).exists()


@pytest.mark.parametrize(
    ("machines", "given", "expected"),  # expected: workers, CPUs and GPUs of each
    [
        ([(16, 0)], {}, (2, 8, 0)),
        ([(16, 0)] * 3, {}, (3, 16, 0)),
        ([(32, 8), (32, 8)], {}, (16, 4, 1)),
        ([(32, 8), (32, 8)], {"gpus_per_worker": 4}, (4, 16, 4)),
        ([(32, 8)], {"device": "cpu", "num_workers": 4}, (4, 8, 0)),
        ([(2, 0)], {"num_workers": 2, "worker_threads": 1}, (2, 1, 0)),
    ],
)
def test_the_size_of_workers(machines, given, expected, monkeypatch):
    total = {"CPU": sum(cpu for cpu, _ in machines), "GPU": sum(gpu for _, gpu in machines)}
    ray = Namespace(
        cluster_resources=lambda: total, nodes=lambda: [{"Alive": True}] * len(machines)
    )
    engine = ray_engine.RayEngine(flags(**given))
    monkeypatch.setattr(engine, "_connect", lambda: ray)
    monkeypatch.setattr(engine, "_make_workers", lambda: [])
    engine.start()
    assert (engine.n_workers, *engine.resources.values()) == expected


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(TESTS)
    one = {"num_cpus": 1, "include_dashboard": False}  # one CPU a node: one worker a node
    made = Cluster(initialize_head=True, connect=False, head_node_args=one)
    made.second = made.add_node(num_cpus=1)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before
    yield made
    made.shutdown()


@pytest.fixture
def engine(cluster, tmp_path):
    """An engine whose two workers have both started, however long the second one took."""
    with open_engine(flags(ray_address=cluster.address, num_workers=2, worker_threads=1)) as made:
        wait_for_both(made, tmp_path)
        yield made


def wait_for_both(engine, tmp_path):
    while len(engine.facts_of) < 2:
        list(engine.run(waits(tmp_path / "start", 1, 0.3)))


def test_killed_workers_lose_nothing_and_errors_are_the_tasks_own(
    engine, tmp_path, monkeypatch, capsys
):
    """One engine for several checks: starting workers is what costs time."""
    monkeypatch.setattr(ray_engine, "MAX_TRIES", 2)
    preparing = Item("state", ray_tasks.prepare, {"value": "made"})
    assert engine.prepare(preparing) == {"identity": {"weights": "made"}}
    states = list(engine.run([Item(f"state {i}", ray_tasks.prepared, {"i": i}) for i in range(6)]))
    assert {value["state"] for _, value in states} == {"made"}
    assert len({value["pid"] for _, value in states}) == 2, "both workers work"

    [(_, there)] = engine.run([Item("shipped", ray_tasks.shipped, {})])
    scripts = {path.name for path in PROJECT.iterdir() if path.suffix in (".py", ".json")}
    assert "working_dir" in there["folder"]
    shipped = set(there["names"]) - {"__pycache__"}  # made where the scripts are imported
    assert shipped == {"rolecircuits", *scripts}, "no tests, run folders, .git, .venv"

    log, done = tmp_path / "log", []
    for item, value in engine.run(waits(log, 8)):
        done.append(value["n"])
        assert item.label == f"item {value['n']}" and value["threads"] == "1"
        if len(done) == 1:
            pid, busy = next(busy_workers(engine))
            killed = busy.payload["n"]
            os.kill(pid, signal.SIGKILL)
    assert sorted(done) == list(range(8))
    assert engine.lost == 1 and len(engine.workers) == 2
    times = Counter(map(int, log.read_text().split()))
    assert all(times[n] == 1 for n in range(8) if n != killed), (
        "only the killed item may be done twice"
    )
    wait_for_both(engine, tmp_path)
    states = list(engine.run([Item(f"state {i}", ray_tasks.prepared, {"i": i}) for i in range(6)]))
    assert {value["state"] for _, value in states} == {"made"}, "the new worker was prepared too"
    assert len({value["pid"] for _, value in states}) == 2

    stopped = engine.run(waits(tmp_path / "given up", 3))
    next(stopped)
    stopped.close()  # a run that is given up: what a worker still does is nobody's result
    late = {"mark": str(tmp_path / "late"), "seconds": 2}
    engine.prepare(Item("late", ray_tasks.prepare_once_quickly, late))  # one worker is still at it
    engine.prepare(preparing)
    labels = [item.label for item, _ in engine.run(waits(tmp_path / "after", 10, 0.4))]
    assert sorted(labels) == sorted(f"item {i}" for i in range(10))

    [(_, value)] = engine.run([Item("once", ray_tasks.die_once, {"mark": str(tmp_path / "mark")})])
    assert value == "alive" and not engine.deaths
    for kind, text in (
        ("UserError", "--x 3: y is allowed"),
        ("RunFailed", "layer 2 head 1"),
        ("ValueError", "a bug"),
    ):
        with pytest.raises(RunFailed if kind == "ValueError" else eval_kind(kind)) as caught:
            list(engine.run([Item("bad", ray_tasks.refuse, {"kind": kind, "text": text})]))
        assert str(caught.value) == (f"bad: ValueError: {text}" if kind == "ValueError" else text)
    assert "about to fail" in capsys.readouterr().out
    wait_for_both(engine, tmp_path)
    with pytest.raises(RunFailed, match="the model there has another weights than the first"):
        engine.prepare(Item("other", ray_tasks.differ, {}))
        list(engine.run(waits(tmp_path / "differ", 8)))
    engine.preparation = None
    with pytest.raises(RunFailed, match="poison: 2 workers died with it"):
        list(engine.run([Item("poison", ray_tasks.die, {})]))


def busy_workers(engine):
    """(process id, item) of every worker that does one."""
    for worker, item in engine.calls.values():
        if item is not None:
            yield engine.facts_of[worker]["pid"], item


def test_a_worker_with_another_library_version_is_refused(monkeypatch):
    engine, worker = ray_engine.RayEngine(flags()), object()
    facts = {"node": "far", "pid": 1, "packages": ray_engine.package_versions()}
    engine._welcome(worker, facts)
    assert engine.idle == [worker]
    with pytest.raises(UserError, match="far has numpy 0.1, this machine has"):
        engine._welcome(worker, facts | {"packages": facts["packages"] | {"numpy": "0.1"}})


def test_waiting_for_a_place_is_said_and_given_up(monkeypatch, capsys):
    engine = ray_engine.RayEngine(flags())
    engine.resources, engine.last_alive = {"num_cpus": 3, "num_gpus": 1}, time.monotonic() - 31
    for _ in range(2):
        engine._check_waiting()
    assert capsys.readouterr().out.count("waiting for a machine with 3 CPU and 1 GPU free") == 1
    engine.last_alive -= ray_engine.GIVE_UP_AFTER_S
    with pytest.raises(RunFailed, match="no machine of the cluster had 3 CPU and 1 GPU free"):
        engine._check_waiting()


def eval_kind(name):
    return {"UserError": UserError, "RunFailed": RunFailed}[name]


def study_files(folder):
    """{relative path: content} of a run, less what says when and where it was made."""
    skipped = ("experiment_config.json", "manifest.json")
    files = [
        path
        for path in sorted(Path(folder).resolve().rglob("*"))
        if path.is_file() and path.name not in skipped
    ]
    return {
        path.relative_to(Path(folder).resolve()).as_posix(): path.read_bytes() for path in files
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


def test_runs_equal_local_ones_although_a_worker_and_a_machine_are_lost(
    cluster, tiny, tmp_path, monkeypatch, capsys
):
    import torch

    monkeypatch.chdir(tmp_path)
    families = {
        name: {side: {"model_id": tiny, "prompt_format": "raw"} for side in families_module.SIDES}
        for name in ("one", "two")
    }
    Path("families.json").write_text(json.dumps(families))
    command = [
        "--family",
        *families,
        "--families_file",
        "families.json",
        "--prompts_per_category",
        "6",
    ]
    pipeline = run_pipeline.parse_args([*command, "--skip_visualization", "--skip_comparison"])
    prompts, plan = select_prompts(per_category=4), parse_entries(ENTRIES, "plan")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for name in ("local", "ray"):
        args = interventions.parse_args(["--model_id", tiny, "--output_dir", name])
        Path(name).mkdir()
        with open_engine(
            flags(ray_address=cluster.address, num_workers=2, worker_threads=1, engine=name)
        ) as engine:
            if name == "ray":
                lost = lose_workers(monkeypatch, engine, cluster)
            interventions.run_interventions(engine, prompts, plan, args)
            if name == "ray":
                wait_for_both(engine, tmp_path)
            interventions.run_sweep(engine, prompts, args)
            opened = lambda args, engine=engine: contextlib.nullcontext(engine)  # noqa: E731
            monkeypatch.setattr(activation_analysis, "open_engine", opened)
            texts = [
                "--documents",
                str(texts_file(tmp_path)),
                "--batch_size",
                "2",
                "--model_id",
                tiny,
            ]
            assert (
                activation_analysis.run_documents(
                    activation_analysis.parse_args([*texts, "--output_dir", name])
                )
                == 0
            )
            monkeypatch.chdir(tmp_path / name)
            pipeline.families_file = "../families.json"
            studies = {name: run_pipeline.plan_family(pipeline, name) for name in families}
            failed = run_pipeline.run_families(studies, engine)
            monkeypatch.chdir(tmp_path)
            assert failed == []
            found[name] = engine.facts()
    torch.set_num_threads(threads)
    assert found["local"] == {"name": "local"} and lost[0] == "worker"
    # Ray may start the killed worker beside the other one: then no worker is on the second node
    assert 1 <= found["ray"]["workers_lost"] <= len(lost)
    results = ["latest_intervention", "latest_sweep", "latest_documents", "document_shards"]
    links = ["latest_run", "latest_base"]
    edited = ("latest_intervention", "latest_generation", "latest_base_generation")
    links += [f"crossed/{link}" for link in (*links, *edited)]
    results += [
        f"results_activation_analysis/{family}/{link}" for family in families for link in links
    ]
    for link in results:
        here, there = (study_files(Path(name, link)) for name in ("local", "ray"))
        assert len(here) >= 1 and here.keys() == there.keys()
        assert [name for name in here if here[name] != there[name]] == [], link
    run = load_run(Path("ray", results[4]))
    assert run.config["engine"]["name"] == "ray" and run.config["arguments"]["output_dir"].endswith(
        "/one"
    )
    assert run.config["determinism"]["torch_threads"] == 1
    edits = Path("ray/results_activation_analysis/one/crossed/latest_intervention")
    assert load_run(edits / "baseline").config["git"] == run.config["git"]
    assert read_npz(Path("ray/latest_sweep/head_effects.npz"), ["kl"])["kl"].shape == (3, 4, 4)
    for family in families:
        page = Path("ray/analysis_results", family, "report.html").read_text()
        assert "--interventions" in page and "answers changed" in page
    assert not list(Path("ray").rglob(".tmp_*")) and "/tmp/tmp" not in capsys.readouterr().out


def texts_file(folder):
    """Five documents of unequal length, one a conversation."""
    lines = [{"id": f"d{i}", "text": "The river runs past the mill. " * i} for i in range(1, 5)]
    lines.append({"id": "talk", "messages": [{"role": "user", "content": "Who are you?"}]})
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "texts.jsonl"


def lose_workers(monkeypatch, engine, cluster):
    """Kill a worker during the edits, and remove the second node while its worker sweeps.

    returns  the list of what was lost so far, "worker" and then perhaps "node"
    """
    answered, lost = engine._answers, []
    second = cluster.second.all_processes["raylet"][0].process.pid  # its workers' parent

    def lose_then_answer(queue):
        for item, value in answered(queue):
            busy = list(busy_workers(engine))
            if "measured" in value and busy and not lost:
                os.kill(busy[0][0], signal.SIGKILL)
                lost.append("worker")
            yield item, value
        for pid, item in [] if "node" in lost else list(busy_workers(engine)):
            sweeps = item.label.startswith(("clean pass", "layer"))
            if sweeps and psutil.pid_exists(pid) and psutil.Process(pid).ppid() == second:
                cluster.remove_node(cluster.second)
                lost.append("node")

    monkeypatch.setattr(engine, "_answers", lose_then_answer)
    return lost


def test_a_cluster_that_is_too_small_is_said(cluster):
    said = "50 workers of 1 CPU and 0 GPU do not fit the cluster, which has"
    with pytest.raises(UserError, match=said):  # noqa: SIM117
        with open_engine(flags(ray_address=cluster.address, num_workers=50, worker_threads=1)):
            pass


def test_ctrl_c_ends_the_cluster_that_was_started_here(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from rolecircuits.inputs import parser as cli\n"
        "from rolecircuits.engines.open import open_engine\n"
        "from ray_tasks import flags, waits\n"
        "def run(args):\n"
        "    with open_engine(flags(num_workers=1, worker_threads=1)) as engine:\n"
        "        for _ in engine.run(waits(sys.argv[3], 50, 1)):\n"
        "            print('one done', engine.folder, flush=True)\n"
        "parse = lambda argv: cli.Parser().parse_args([])\n"
        "sys.exit(cli.run_script(parse, run))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(PROJECT), str(TESTS), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        start_new_session=True,
    )
    lines = [child.stdout.readline(), child.stdout.readline()]
    assert lines[0].startswith("ray (started here, 1 machine): 1 worker of") and lines[
        1
    ].startswith("one done")
    folder = Path(lines[1].split()[-1])
    assert folder.is_dir()
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130 and errors.splitlines()[-1].startswith("interrupted"), errors
    assert not folder.exists()
    deadline = time.monotonic() + 120
    while (left := processes_naming(str(folder))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def processes_naming(text):
    """Command lines of running processes that contain `text`."""
    found = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if text in " ".join(line or [])]
