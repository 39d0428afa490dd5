"""What the parser of vLLM 0.11 to 0.33 says to the words of `vllm serve` on stdin: "" where it takes them."""

import contextlib
import importlib
import io
import json
import sys
from typing import Any


def find(name: str, *modules: str) -> Any:
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError):
            return getattr(importlib.import_module(module), name)
    raise ModuleNotFoundError(f"none of {', '.join(modules)} is there")


def refusal(words: list[str]) -> str:
    parser_class = find("FlexibleArgumentParser", "vllm.utils.argparse_utils", "vllm.utils")
    make = find("make_arg_parser", "vllm.entrypoints.openai.cli_args", "vllm.entrypoints.common.cli_args")
    parser, output = make(parser_class(prog="vllm serve")), io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            parser.parse_args(words)
    except SystemExit:
        return output.getvalue().strip().rpartition("error: ")[2]
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    answer = refusal(json.load(sys.stdin))
    print()
    print(json.dumps(answer))
