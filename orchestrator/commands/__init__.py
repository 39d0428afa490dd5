"""The command line: what the commands take and print. Each module adds its commands, in the order of --help."""

from orchestrator.commands import spec_commands as spec_commands  # isort: skip
from orchestrator.commands import run_commands as run_commands  # isort: skip
from orchestrator.commands import history_commands as history_commands  # isort: skip
from orchestrator.commands import benchmark_commands as benchmark_commands  # isort: skip
from orchestrator.commands import model_commands as model_commands  # isort: skip
from orchestrator.commands import help_commands as help_commands  # isort: skip
