"""Ask a program that knows: a script of scripts/ runs in LLaMA-Factory's (or vLLM's) own Python, JSON in, JSON out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, StageError
from orchestrator.processes.process import run_short

SCRIPTS = Path(__file__).resolve().parent / "scripts"


class AskError(StageError):
    """No answer: the Python cannot be started, the script failed or took too long, or it printed no JSON."""


def ask(
    python: Path, script: str, question: object, *, timeout_s: float = 120, environment: Mapping[str, str] | None = None
) -> Any:
    """Run one script and return its answer.

    Args:
        python: the interpreter of the environment that is asked.
        script: the name of a file in scripts/, without `.py`. It reads one JSON document from stdin and prints its
            answer as the last line of stdout: packages print there while they are imported.
        question: what JSON can hold.
        timeout_s: the start of Python included; importing LLaMA-Factory takes 8 s on a slow machine.
        environment: variables set for the script, beside our own.

    Raises:
        AskError: there is no answer.
    """
    argv = [str(python), str(SCRIPTS / f"{script}.py")]
    try:
        output = run_short(argv, timeout_s=timeout_s, input_text=json.dumps(question), environment=environment)
        return json.loads(output.strip().rpartition("\n")[2])
    except OrchestratorError as error:
        raise AskError(error.message, error.remedy) from error
    except ValueError as error:
        raise AskError(f"{python} answered {script}.py with something that is not JSON: {error}") from error
