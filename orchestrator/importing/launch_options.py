"""The options of torchrun, deepspeed and accelerate, as the variables of LLaMA-Factory's launcher.py.

Covered: which of their options take a value, so that the training script is found behind them; what has a variable.
Not covered: what the variables of accelerate mean (accelerate_config.py).
Opens no file.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.importing.accelerate_config import FLAGS as ACCELERATE_FLAGS


@dataclass
class Options:
    """What stands between a launcher and what it launches."""

    values: dict[str, str] = field(default_factory=dict)
    """By name, with underscores; '' for a flag."""
    rest: list[str] = field(default_factory=list)
    """The script, module or program, and its words."""


@dataclass(frozen=True)
class Launcher:
    """How a launcher reads its options."""

    flags: frozenset[str]
    """Options without a value."""
    values: frozenset[str] = frozenset()
    """Options with one; those that are not known have one too, where a word follows that can be it."""
    short: Mapping[str, str] = field(default_factory=dict)
    """Names of one letter."""
    abbreviates: bool = True
    """Whether the beginning of a name will do."""

    def read(self, words: Sequence[str], unknown: Collection[str] = ()) -> Options:
        """The options at the head of some words; words that may stand for any option are passed over."""
        options = Options()
        at = 0
        while at < len(words) and (words[at] in unknown or (words[at].startswith("-") and words[at] != "-")):
            word = words[at]
            at += 1
            if word in unknown:
                continue
            if word == "--":
                break
            name, equals, value = word.partition("=")
            key = name.lstrip("-").replace("-", "_")
            if not name.startswith("--"):
                key, value = self.short.get(name[1:2], key), value or name[2:]
            key = self._whole(key)
            if key not in self.flags and not equals and not value and self._has_value(key, words, at):
                value = words[at]
                at += 1
            options.values[key] = "" if key in self.flags else value
        options.rest = list(words[at:])
        return options

    def _has_value(self, key: str, words: Sequence[str], at: int) -> bool:
        """Whether the next word is an option's value. Of an option that is not known: by how the word looks."""
        return at < len(words) and (key in self.values or not (words[at].startswith("-") or words[at].endswith(".py")))

    def _whole(self, key: str) -> str:
        known = self.flags | self.values
        found = [name for name in known if name.startswith(key)] if self.abbreviates and key not in known else []
        return found[0] if len(found) == 1 else key


# torch/distributed/run.py of torch 2.9, with what launch.py adds
TORCHRUN = Launcher(
    frozenset({"standalone", "module", "no_python", "run_path", "use_env", "virtual_local_rank", "help"}),
    frozenset({
        "nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "rdzv_conf", "max_restarts",
        "monitor_interval", "start_method", "event_log_handler", "role", "log_dir", "redirects", "tee",
        "log_line_prefix_template", "local_ranks_filter", "duplicate_stdout_filters", "duplicate_stderr_filters",
        "node_rank", "master_addr", "master_port", "local_addr", "logs_specs", "numa_binding", "signals_to_handle",
    }),
    {"m": "module", "r": "redirects", "t": "tee"},
)  # fmt: skip
# deepspeed/launcher/runner.py of deepspeed 0.16
DEEPSPEED = Launcher(
    frozenset({
        "force_multi", "save_pid", "enable_each_rank_log", "module", "no_python", "no_local_rank", "no_ssh",
        "elastic_training", "user_args", "bind_cores_to_rank", "no_ssh_check", "help",
    }),
    frozenset({
        "hostfile", "include", "exclude", "num_nodes", "min_elastic_nodes", "max_elastic_nodes", "num_gpus",
        "num_accelerators", "master_port", "master_addr", "node_rank", "launcher", "launcher_args", "autotuning",
        "bind_core_list", "ssh_port", "venv_script",
    }),
    {"H": "hostfile", "i": "include", "e": "exclude"},
)  # fmt: skip
ACCELERATE = Launcher(ACCELERATE_FLAGS, short={"m": "module", "q": "quiet", "t": "tee", "h": "help"}, abbreviates=False)
_VARIABLES = {"node_rank": "NODE_RANK", "master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
_HOW_IT_STARTS = frozenset({"module", "no_python", "run_path", "use_env", "user_args", "force_multi", "no_local_rank"})


def torchrun_environment(options: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """LLaMA-Factory's variables for torchrun's options, and a note for each that has none."""
    environment = {"FORCE_TORCHRUN": "1", **_variables(options)}
    used = {*_VARIABLES, "nnodes", "nproc_per_node", "standalone", "rdzv_id", "rdzv_backend", "rdzv_endpoint"}
    notes = []
    nodes = options.get("nnodes", "")
    least, colon, most = nodes.partition(":")
    if colon and least != most:
        environment |= {"MIN_NNODES": least, "MAX_NNODES": most}
    elif least:
        environment["NNODES"] = least
    processes = options.get("nproc_per_node", "1")
    if processes in ("cpu", "xpu"):
        notes.append(f"torchrun's nproc_per_node {processes}: LLaMA-Factory takes a number, or all devices")
    elif processes not in ("gpu", "auto"):  # all devices, as LLaMA-Factory's launcher takes where nothing is said
        environment["NPROC_PER_NODE"] = processes
    if "standalone" in options:  # torchrun's own free port on this machine, as LLaMA-Factory's launcher has it
        used |= {"rdzv_conf"}
    else:
        backend = options.get("rdzv_backend", "static")
        environment |= _endpoint(options.get("rdzv_endpoint", ""))
        if "rdzv_id" in options or backend == "c10d" or "MIN_NNODES" in environment:
            environment["RDZV_ID"] = options.get("rdzv_id", "none")  # torchrun's own default
        if backend not in ("static", "c10d"):
            notes.append(f"torchrun's rdzv_backend {backend}: LLaMA-Factory's launcher takes c10d alone")
    if "max_restarts" in options:
        used.add("max_restarts")
        environment["MAX_RESTARTS"] = options["max_restarts"]
        if "RDZV_ID" not in environment:
            notes.append("torchrun's max_restarts: LLaMA-Factory's launcher passes it on only beside RDZV_ID")
    return environment, notes + _unused("torchrun", options, used)


def deepspeed_environment(options: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """LLaMA-Factory's variables for the options of the deepspeed launcher, and a note for each that has none."""
    environment = {"FORCE_TORCHRUN": "1", **_variables(options)}
    used = {*_VARIABLES, "num_gpus", "num_accelerators", "num_nodes"}
    processes = options.get("num_gpus") or options.get("num_accelerators")
    if processes and processes != "-1":
        environment["NPROC_PER_NODE"] = processes
    if options.get("num_nodes", "-1") != "-1":
        environment["NNODES"] = options["num_nodes"]
    local = re.fullmatch(r"(?:localhost|127\.0\.0\.1)(?::([0-9]+(?:,[0-9]+)*))?", options.get("include", ""))
    if local:
        used.add("include")
        if local[1]:
            devices = local[1].split(",")
            environment |= {"CUDA_VISIBLE_DEVICES": local[1], "NPROC_PER_NODE": str(len(devices))}
    notes = _unused("deepspeed", options, used)
    if "hostfile" in options:
        notes.append(
            "deepspeed starts all nodes of a hostfile itself; here the run is launched on each: compute.nnodes"
        )
    return environment, notes


def _variables(options: Mapping[str, str]) -> dict[str, str]:
    return {variable: options[name] for name, variable in _VARIABLES.items() if name in options}


def _endpoint(endpoint: str) -> dict[str, str]:
    host, colon, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", "")
    named = {"MASTER_ADDR": host, "MASTER_PORT": port if colon else "29400" if host else ""}  # c10d's own default
    return {name: value for name, value in named.items() if value}


def _unused(launcher: str, options: Mapping[str, str], used: Collection[str]) -> list[str]:
    return [
        f"{launcher}'s {name} {value}".rstrip() + ": LLaMA-Factory's launcher has no variable for it"
        for name, value in options.items()
        if name not in used and name not in _HOW_IT_STARTS
    ]
