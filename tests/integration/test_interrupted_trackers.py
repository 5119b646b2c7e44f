"""A signal that lands in a tracker ends the sweep, the report or the verb like anywhere else."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys

import pytest

import faqbench.tracking.wandb
from faqbench.cli import main
from faqbench.records import find_runs

LIVE = importlib.import_module("faqbench.tracking.live")
FOLLOWER = "faqbench.tracking.follower"
READER = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]  # a follower that shows nothing


class Strikes:
    """What sends this process a signal once, and does with its exception what libraries do."""

    def __init__(self, number, how):
        self.number, self.how, self.n_calls = number, how, 0

    def __call__(self):
        self.n_calls += 1
        if self.n_calls > 1:
            return
        try:
            signal.raise_signal(self.number)
        except BaseException as error:
            if self.how == "raised":
                raise
            if self.how == "wrapped":
                raise RuntimeError("an interrupt in disguise") from error


class Service:
    """Stands in for W&B, and strikes in one of its steps."""

    def __init__(self, place, strike):
        self.place, self.strike, self.n_open = place, strike, 0

    def _step(self, name):
        if name == self.place:
            self.strike()

    def open_run(self, head, section, runs):
        self._step("open")
        self.n_open += 1
        return self

    def sample(self, number, sample):
        self._step("sample")

    def finish(self, view):
        self._step("finish")
        self.n_open -= 1

    def abandon(self):
        self._step("abandon")
        self.n_open -= 1

    def show_report(self, folder, section, runs):
        self._step("report")
        return True


@pytest.fixture
def tracked(workplace, monkeypatch):
    """The arguments of a cell that is tracked, followed by a process that only reads."""
    start, started = subprocess.Popen, []

    def follow(command, **how):
        if FOLLOWER not in command:
            return start(command, **how)
        started.append(start(READER, **how))
        return started[-1]

    monkeypatch.setattr(LIVE.subprocess, "Popen", follow)
    monkeypatch.setattr(LIVE, "_showing", [])  # of this command, whose process would have ended
    yield [a for a in workplace.cell if not a.startswith("tracking")] + ["tracking.mode=offline"]
    for process in started:
        process.stdin.close()
        process.wait()


def assert_ended(code, number, workplace, capsys):
    err = capsys.readouterr().err
    assert code == 128 + number, err
    assert "Traceback" not in err and err.count("faqbench: stopped") == 1
    records, damaged = find_runs(workplace.runs)
    assert damaged == [] and all(r.status == "finished" for r in records)
    return [r.config["quant"]["name"] for r in records]


@pytest.mark.parametrize(
    ("place", "how", "number", "done"),
    [
        ("__init__", "raised", signal.SIGTERM, []),
        ("__init__", "dropped", signal.SIGINT, []),
        ("finish", "dropped", signal.SIGTERM, ["fp"]),
        ("leave", "raised", signal.SIGINT, ["fp"]),
        ("conclude", "raised", signal.SIGTERM, ["fp", "rtn"]),
        ("conclude", "dropped", signal.SIGHUP, ["fp", "rtn"]),
    ],
)
def test_a_signal_in_what_starts_tells_and_ends_a_follower(
    workplace, tracked, monkeypatch, capsys, place, how, number, done
):
    strike = Strikes(number, how)
    own = getattr(LIVE._FollowerProcess, place)

    def struck(self, *arguments):
        strike()
        return own(self, *arguments)

    monkeypatch.setattr(LIVE._FollowerProcess, place, struck)
    code = main(["-m", "quant=fp,rtn", *tracked])
    assert strike.n_calls > 0
    assert assert_ended(code, number, workplace, capsys) == done


@pytest.fixture
def strike_in(tracked, monkeypatch):
    """Let a stand-in for W&B be struck in a step, from this process: there is no follower."""
    start = subprocess.Popen

    def refuse(command, **how):
        if FOLLOWER in command:
            raise OSError("no more processes")
        return start(command, **how)

    def make(place, how, number):
        service = Service(place, Strikes(number, how))
        for name in ("open_run", "show_report"):
            monkeypatch.setattr(faqbench.tracking.wandb, name, getattr(service, name))
        monkeypatch.setattr(LIVE.subprocess, "Popen", refuse)
        return service

    return make


@pytest.mark.parametrize(
    ("place", "how", "number", "done"),
    [
        ("open", "raised", signal.SIGTERM, ["fp"]),
        ("sample", "wrapped", signal.SIGINT, ["fp"]),
        ("finish", "wrapped", signal.SIGTERM, ["fp"]),
        ("finish", "dropped", signal.SIGINT, ["fp"]),
        ("report", "wrapped", signal.SIGTERM, ["fp", "rtn"]),
        ("report", "dropped", signal.SIGTERM, ["fp", "rtn"]),
    ],
)
def test_a_signal_in_a_service_ends_the_sweep(
    workplace, tracked, strike_in, capsys, place, how, number, done
):
    service = strike_in(place, how, number)
    code = main(["-m", "quant=fp,rtn", *tracked, "report.name=shown"])
    assert service.strike.n_calls > 0
    assert assert_ended(code, number, workplace, capsys) == done
    assert service.n_open == 0


@pytest.mark.parametrize("how", ["wrapped", "dropped"])
def test_a_signal_ends_a_sync_at_the_run_it_lands_in(workplace, strike_in, capsys, how):
    assert main(["-m", "quant=fp,rtn", *workplace.cell]) == 0
    capsys.readouterr()
    service = strike_in("finish", how, signal.SIGTERM)
    code = main(["sync", "mode=offline"])
    assert assert_ended(code, signal.SIGTERM, workplace, capsys) == ["fp", "rtn"]
    assert service.strike.n_calls == 1 and service.n_open == 0
