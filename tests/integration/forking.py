"""Starts `faqbench` many times without importing torch many times: one process imports, and forks.

It reads commands from standard input, one JSON object a line, and answers on standard output:

    {"arguments": […], "cwd": …, "env": {…}, "log": path, "prelude": Python code}  ->  {"pid": …}
    {"wait": pid}                                                                  ->  {"status": …}

What it forks is a process of its own in every respect that matters here: it can be killed, it holds its own
locks, and its memory starts afresh.
"""

from __future__ import annotations

import gc
import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# What loading a model imports late.
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

import faqbench.cli.cells
import faqbench.pipeline
import faqbench.pipeline.planning
import faqbench.report  # noqa: F401
from faqbench.cli import main
from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.pipeline.planning import estimates
from faqbench.pipeline.planning.rate import measure_rate, shape_of


def run_child(command: dict[str, object]) -> None:
    """Become the command: never returns."""
    code = 70
    try:
        os.setsid()
        log = os.open(str(command["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(str(command["cwd"]))
        os.environ.update(command["env"])  # type: ignore[call-overload]
        exec(str(command.get("prelude") or ""), {})
        code = main(list(command["arguments"]))  # type: ignore[call-overload]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - said in the log, and by the exit code
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)


def serve() -> None:
    """Answer commands until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            _, status = os.waitpid(command["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                run_child(command)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # Hydra looks for plugins and reads all yamls when it composes first; what it made of choices is kept.
    for arguments in (["quant=rtn"], ["-m", "quant=fp,rtn,awq,faq"]):
        flags = parse_flags([*arguments, "model=tiny-llama", "tracking=none", "dtype=float32"])
        tiny, *_ = compose_cells(flags).experiments
    # This machine is measured once for all forks, which else take a third of a second each.
    machine = measure_rate(shape_of(tiny.model.random), torch.device("cpu"), torch.float32)
    estimates.measure_rate = lambda *_: machine
    gc.collect()
    gc.freeze()  # children neither search through what the imports made nor copy its pages
    print("ready", flush=True)
    serve()
