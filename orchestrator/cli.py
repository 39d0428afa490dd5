"""The command line with all its commands, in the order in which --help lists them."""

from orchestrator.commands import spec_commands as spec_commands  # isort: skip
from orchestrator.commands import life_commands as life_commands  # isort: skip
from orchestrator.commands import follow_commands as follow_commands  # isort: skip
from orchestrator.commands import run_commands as run_commands  # isort: skip
from orchestrator.commands import registry_commands as registry_commands  # isort: skip
from orchestrator.commands import benchmark_commands as benchmark_commands  # isort: skip
from orchestrator.commands import model_commands as model_commands  # isort: skip
from orchestrator.commands import compare_commands as compare_commands  # isort: skip
from orchestrator.commands import doctor_commands as doctor_commands  # isort: skip
from orchestrator.commands import help_command as help_command  # isort: skip
from orchestrator.commands.app import app as app
