"""Costly calls survive kills, full disks and objectives that misbehave; none that was recorded is repeated."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from popflow.core import CheckpointError
from popflow.core.errors import PopflowWarning
from popflow.runs import CallError, CostlyFunction, Infeasible, Ledger, Outcome, RunBusyError, key_of

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "calls.jsonl"


def filled(path, count=3):
    with Ledger(path) as ledger:
        for i in range(count):
            ledger.record(str(i), Outcome("value", i / 3))
    return path


class Counted:
    """A function that remembers what it was asked."""

    def __init__(self, function=float):
        self.function, self.asked = function, []

    def __call__(self, x):
        self.asked.append(x)
        return self.function(x)


# the file


def test_values_of_all_kinds_come_back_exactly(path):
    outcomes = {
        "CCO": Outcome("value", 1 / 3, seconds=0.25),
        "": Outcome("value", 0.0),
        "é\n\u2028": Outcome("value", (1e-300, -0.0, 3.0)),
        "e": Outcome("error", message="ValueError: \ud800 no"),
        "t": Outcome("timeout", message="ended after 1 s", seconds=1.0),
        "n": Outcome("not finite", message="returned nan"),
        "i": Outcome("infeasible", message="too big"),
    }
    with Ledger(path, about={"receptor": "drd3"}) as ledger:
        for key, outcome in outcomes.items():
            ledger.record(key, outcome, note={"parents": ["a", "b"]})
    again = Ledger.read(path)
    assert dict(again) == outcomes
    assert again.counts() == {"value": 3, "error": 1, "timeout": 1, "not finite": 1, "infeasible": 1}
    assert again.note("CCO") == {"parents": ["a", "b"]}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_reported(path, cut):
    content = filled(path).read_bytes()
    path.write_bytes(content[:-cut])
    assert list(Ledger.read(path)) == ["0", "1"]
    with pytest.warns(PopflowWarning, match="last line was torn"):
        ledger = Ledger(path)
    assert list(ledger) == ["0", "1"]
    ledger.record("2", Outcome("value", 2 / 3))
    ledger.close()
    assert list(Ledger.read(path)) == ["0", "1", "2"]


def test_every_flipped_byte_is_found(path):
    content = filled(path).read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(content[:-1]) if byte == ord("\n"))]
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        line = sum(start <= at for start in starts)
        if at == len(content) - 1:
            assert list(Ledger.read(path)) == ["0", "1"]
        else:
            with pytest.raises(CheckpointError, match="is no ledger" if line == 1 else "is damaged: line"):
                Ledger.read(path)


def test_damage_in_the_middle_names_the_line_and_changes_nothing(path):
    content = filled(path).read_bytes().replace(b"0.333", b"0.334")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"calls.jsonl is damaged: line 3 does not match"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_second_writer_is_refused_and_readers_are_not(path):
    with Ledger(path) as ledger:
        ledger.record("a", Outcome("value", 1.0))
        with pytest.raises(RunBusyError, match=f"is being written by process {os.getpid()} on .* since 20"):
            Ledger(path)
        assert Ledger.read(path)["a"].value == 1.0
        code = f"from popflow.runs.ledger import Ledger; Ledger({str(path)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | _paths())
        assert f"process {os.getpid()}" in done.stderr
    Ledger(path).close()


def test_a_forked_process_neither_holds_the_lock_nor_writes(path):
    ledger = Ledger(path)
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ledger.record("a", Outcome("value", 1.0))
        except (CheckpointError, ValueError):
            os.write(say, b"refused")
            time.sleep(600)
        os._exit(1)
    os.close(say)
    assert os.read(hear, 7) == b"refused"
    ledger.close()
    Ledger(path).close()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert not Ledger.read(path)


def test_a_ledger_of_other_calls_is_refused(path):
    Ledger(path, about={"receptor": "drd3", "box": 20}).close()
    with pytest.raises(CheckpointError, match="about other calls: receptor is 'drd3' there and 'egfr' now"):
        Ledger(path, about={"receptor": "egfr", "box": 20})
    assert Ledger(path).about == {"receptor": "drd3", "box": 20}


@pytest.mark.parametrize("content", [b"hello\n", b"\x00" * 30, b'{"stage": "a"}\n{"stage": "b"}\n'])
def test_other_files_are_left_alone(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no ledger"):
        Ledger(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == content


def test_a_place_that_cannot_be_written_shows_before_the_first_call(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="No call was made"):
        Ledger(tmp_path / "file" / "calls.jsonl")
    with pytest.raises(CheckpointError, match="No call was made"):
        Ledger(tmp_path)
    with pytest.raises(CheckpointError, match="it is not a file"):
        Ledger("/dev/full")
    with full_disk(100), pytest.raises(CheckpointError, match="File too large"):
        Ledger(tmp_path / "calls.jsonl")
    assert (tmp_path / "calls.jsonl").read_bytes() == b""


@contextmanager
def full_disk(size):
    """Let no file of this process grow beyond a size: a write stops in the middle of a line, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_loses_no_recorded_call(path):
    objective = Counted()
    costly = CostlyFunction(objective, path)
    assert costly([0, 1]).tolist() == [0.0, 1.0]
    before = path.read_bytes()
    with full_disk(len(before) + 10), pytest.raises(CheckpointError, match="File too large"):
        costly([2, 3, 4])
    assert objective.asked == [0, 1, 2]
    assert path.read_bytes() == before
    assert costly([0, 1, 2]).tolist() == [0.0, 1.0, 2.0]
    assert objective.asked == [0, 1, 2, 2]  # what was not recorded is not known either


def test_a_line_that_is_not_synced_is_not_used(path, monkeypatch):
    costly = CostlyFunction(float, path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        costly([2])
    assert path.read_bytes() == before
    assert len(costly.ledger) == 0


def test_it_is_on_the_disk_before_the_value_is_used(path):
    seen = []
    costly = CostlyFunction(lambda x: seen.append(len(Ledger.read(path))) or float(x), path)
    costly([5, 6, 7])
    assert seen == [0, 1, 2]


# keys


def test_keys_tell_inputs_apart():
    x = torch.arange(6, dtype=torch.float64)
    items = [
        "1",
        1,
        1.0,
        True,
        None,
        [1],
        (1, 2),
        {"a": 1},
        b"1",
        [b"1"],
        x,
        x.float(),
        x.reshape(2, 3),
        x.bfloat16(),
        np.zeros(0),
        {"a": x},
    ]
    items.remove(b"1")
    keys = [key_of(item) for item in items]
    assert len(set(keys)) == len(keys)
    assert key_of({"b": 1, "a": (2, 3)}) == key_of({"a": [2, 3], "b": 1})
    assert key_of(x.reshape(2, 3).T) == key_of(np.arange(6.0).reshape(2, 3).T) == key_of(np.arange(6.0).reshape(2, 3).T.astype(">f8"))
    for bad in (object(), {1: 2}, np.array(["a"])):
        with pytest.raises(TypeError, match="Fix: give key="):
            key_of(bad)


# calls


def test_a_repeated_input_costs_no_call_and_the_budget_counts_inputs(path):
    objective = Counted()
    costly = CostlyFunction(objective, path, budget=3)
    assert costly([1, 2, 1]).tolist() == [1.0, 2.0, 1.0]
    values = costly([2, 3, 4, 5, 3])
    assert values[[0, 1, 4]].tolist() == [2.0, 3.0, 3.0]
    assert values[2:4].isnan().all()
    assert (objective.asked, costly.left, costly.requests, costly.made) == ([1, 2, 3], 0, 8, 3)
    costly.ledger.close()
    again = CostlyFunction(objective, path, budget=3)
    assert again([1, 2, 3]).tolist() == [1.0, 2.0, 3.0]
    assert (objective.asked, again.left, again.made) == ([1, 2, 3], 0, 0)


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential", "multiprocessing"])
def test_values_come_in_order_whatever_the_workers(backend):
    def slow(x):
        time.sleep(0.02 if x == 0 else 0.0)
        return x * x

    costly = CostlyFunction(slow, workers=2, backend=backend)
    assert costly(list(range(6))).tolist() == [x * x for x in range(6)]
    assert [costly.ledger.index(key_of(x)) for x in range(6)] == list(range(6))


def test_outcomes_are_written_as_they_finish(path):
    costly = CostlyFunction(lambda x: time.sleep(0.3 * (x == 0)) or x, path, workers=2, backend="threading")
    costly([0, 1, 2])
    finished = [line.split(b'"key": ')[1].split(b",")[0] for line in path.read_bytes().splitlines()[1:]]
    assert finished == [b'"json:1"', b'"json:2"', b'"json:0"']


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "TypeError: the objective returned text '0.5', wanted one number"),
        (None, "TypeError: the objective returned None, wanted one number"),
        (1 + 0j, "TypeError: the objective returned complex of complex128"),
        ([1.0, 2.0], r"ValueError: the objective returned list of shape (2,), wanted one number"),
        ({"a": 1}, "TypeError: the objective returned dict of object"),
        (torch.ones(1, dtype=torch.complex64), "TypeError: the objective returned Tensor of complex128"),
    ],
)
def test_what_is_no_number_is_an_error(value, message):
    (outcome,) = CostlyFunction(lambda _: value, on_error="skip").outcomes(["x"])
    assert outcome is not None
    assert outcome.kind == "error"
    assert outcome.message.startswith(message)


@pytest.mark.parametrize(
    "value", [1, True, np.float32(1), np.int8(1), np.ones(()), [1.0], torch.tensor(1.0, requires_grad=True), torch.ones(1)]
)
def test_what_is_a_number_is_one(value):
    assert CostlyFunction(lambda _: value)(["x"]).tolist() == [1.0]


@pytest.mark.parametrize("value", [(1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5])])
def test_several_numbers_are_a_vector(value):
    assert CostlyFunction(lambda _: value, values=2)(["x", "y"]).tolist() == [[1.0, 2.5]] * 2
    (outcome,) = CostlyFunction(lambda _: value, values=3, on_error="skip").outcomes(["x"])
    assert outcome is not None
    assert outcome.message.startswith("ValueError")


def moody(x):
    if x == "nan":
        return float("nan")
    if x == "no":
        raise Infeasible("not today")
    if x == "bad":
        raise RuntimeError("x" * 10_000_000)
    return float(x)


def test_policies():
    items = ["3", "nan", "no", "bad", "7"]
    skip = CostlyFunction(moody, on_error="skip")
    assert torch.equal(skip(items).isnan(), torch.tensor([False, True, True, True, False]))
    assert skip.ledger.counts() == {"value": 2, "error": 1, "timeout": 0, "not finite": 1, "infeasible": 1}
    assert len(skip.ledger["bad"].message) <= 500
    assert skip.ledger["no"].message == "not today"
    assert CostlyFunction(moody, on_error="worst")(items).tolist() == [3, 7, 7, 7, 7]
    assert CostlyFunction(moody, on_error="worst", maximize=True)(items).tolist() == [3, 3, 3, 3, 7]
    assert CostlyFunction(moody, on_error="worst", worst=-1.0)(items).tolist() == [3, -1, -1, -1, 7]
    with pytest.raises(ValueError, match="no input has a value yet"):
        CostlyFunction(moody, on_error="worst")(["nan"])


def test_raising_records_first_and_begins_no_other_call():
    objective = Counted(moody)
    costly = CostlyFunction(objective)
    for _ in range(2):  # the second time without a call
        with pytest.raises(CallError, match=r"the call for 'nan' gave no value: not finite: returned nan"):
            costly(["3", "nan", *map(str, range(10, 30))])
    assert 2 <= len(objective.asked) <= 4  # joblib takes a call or two in advance
    assert list(costly.ledger) == objective.asked
    assert costly.ledger["nan"].kind == "not finite"


def test_errors_are_asked_for_again_on_request(path):
    broken = True
    objective = Counted(lambda x: 1 / 0 if broken and x == 2 else x)
    costly = CostlyFunction(objective, path, on_error="skip", budget=3)
    costly([1, 2, 3])
    broken = False
    assert costly([2]).isnan().all()
    assert costly.ledger.forget("error", "timeout") == 1
    assert costly([1, 2, 3]).tolist() == [1.0, 2.0, 3.0]
    assert costly([1, 2, 3]).tolist() == [1.0, 2.0, 3.0]  # what was asked for again is known from then on
    assert Counter(objective.asked) == {1: 1, 2: 2, 3: 1}
    again = Ledger.read(path)
    assert [again[key_of(x)].value for x in (1, 2, 3)] == [1.0, 2.0, 3.0]


# processes


@pytest.mark.parametrize("backend", ["loky", "threading", "sequential"])
def test_a_call_that_hangs_and_one_that_kills_its_process_end_alone(backend):
    def stubborn(x):
        if x == 3:
            sum(range(10**11))  # never gives the interpreter back
        if x == 5:
            os._exit(7)
        return float(x)

    costly = CostlyFunction(stubborn, workers=2, backend=backend, timeout=0.5, on_error="skip")
    values = costly(list(range(8)))
    assert values[[0, 1, 2, 4, 6, 7]].tolist() == [0.0, 1.0, 2.0, 4.0, 6.0, 7.0]
    assert (costly.ledger["json:3"].kind, costly.ledger["json:3"].message) == ("timeout", "ended after 0.5 s")
    assert costly.ledger["json:5"].message == "the process of the objective died (exit code 7)"


def test_what_an_objective_writes_is_never_unpickled(tmp_path):
    class Order:
        """What executes a command where it is unpickled."""

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    def forger(x):
        print("printed")
        os.write(1, b"written")
        if x == 2:
            for fd in range(3, 64):
                with suppress(OSError):
                    os.write(fd, pickle.dumps(Order()) + b"\n")
        return float(x)

    costly = CostlyFunction(forger, timeout=60.0, on_error="skip")
    assert costly([1, 2, 3])[[0, 2]].tolist() == [1.0, 3.0]
    assert costly.ledger["json:2"].kind == "error"
    assert "which is no outcome of this call. Fix: write to no file descriptor" in costly.ledger["json:2"].message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("end", [lambda: sys.exit(0), lambda: 1 / 0, lambda: None])
def test_a_process_that_the_objective_forks_does_not_answer_for_it(end):
    def forks(x):
        if x < 3:
            child = os.fork()
            if child == 0:
                end()
                return -1.0
            os.waitpid(child, 0)
        return float(x)

    assert CostlyFunction(forks, timeout=20.0)(list(range(6))).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_worker_that_dies_does_not_end_the_run(path):
    costly = CostlyFunction(lambda x: os._exit(7) if x == 5 else float(x), path, workers=2, on_error="skip")
    with pytest.warns(PopflowWarning, match="a worker died"):
        values = costly(list(range(8)))
    assert values.isnan().tolist() == [x == 5 for x in range(8)]
    assert costly.ledger["json:5"].kind == "error"


def test_what_cannot_be_sent_to_a_worker_is_named():
    lock = threading.Lock()
    for settings in ({"workers": 2}, {"timeout": 1.0}):
        costly = CostlyFunction(lambda x: (lock, x), **settings)
        with pytest.raises(TypeError, match="the objective cannot be sent to another process"):
            costly([1, 2])
        assert len(costly.ledger) == 0
    with pytest.raises(TypeError, match="an input cannot be sent"):
        CostlyFunction(lambda x: x, key=lambda x: "k", workers=2)([lock, lock])


def test_twenty_kills_lose_no_recorded_call_and_repeat_none(tmp_path):
    """``kill -9`` at random moments with two workers: what was recorded then is never asked for again, and the end is that of a quiet run."""
    for name in ("quiet", "killed"):
        (tmp_path / name).mkdir()
    with warnings.catch_warnings():
        outputs = [
            subprocess.run(
                [sys.executable, str(HERE / "killed_run.py"), str(tmp_path / name), str(kills), "0"],
                capture_output=True, text=True, check=True, timeout=300, env=os.environ | _paths(),
            ).stdout
            for name, kills in (("quiet", 0), ("killed", 20))
        ]  # fmt: skip
    assert outputs[0] == outputs[1]
    log = [line.split() for line in (tmp_path / "killed" / "log.txt").read_text().splitlines()]
    known = [set((tmp_path / "killed" / f"known_{run}.txt").read_text().split()) for run in range(20)]
    sizes = [len(one) for one in known]
    assert len(set(sizes)) > 10, f"the kills came at {sizes}"
    for run, before in enumerate(known):
        asked = {f"json:{x}" for number, x in log if int(number) > run}
        assert not asked & before
    for before, after in pairwise(known):
        assert before <= after
    quiet, killed = (Ledger.read(tmp_path / name / "calls.jsonl") for name in ("quiet", "killed"))
    assert list(quiet) == list(killed)
    assert [(one.kind, one.value) for one in quiet.values()] == [(one.kind, one.value) for one in killed.values()]


def test_workers_of_a_killed_run_end(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\nfrom popflow.runs.costly import CostlyFunction\n"
        "def f(x):\n    open(sys.argv[0] + f'.{os.getpid()}', 'w').close()\n    time.sleep(600)\n"
        "if __name__ == '__main__':\n    CostlyFunction(f, workers=2)([1, 2])\n"
    )
    run = subprocess.Popen([sys.executable, str(script)], env=os.environ | _paths(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(workers := list(tmp_path.glob("script.py.*"))) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{one.suffix[1:]}").exists() for one in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers=0, wanted 1 or more"),
        ({"timeout": 0.0}, "timeout=0.0, wanted seconds above 0"),
        ({"budget": 0}, "budget=0, wanted at least 1"),
        ({"values": 0}, "values=0, wanted at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CostlyFunction(float, **settings)


def test_a_ledger_of_another_objective_is_named(path):
    with Ledger(path) as ledger:
        CostlyFunction(float, ledger)([1])
        with pytest.raises(ValueError, match="the ledger holds one number for 'json:1', wanted 2 numbers"):
            CostlyFunction(lambda x: (x, x), ledger, values=2)([1])


def _paths():
    return {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
