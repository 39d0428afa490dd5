"""The command line with all its commands, in the order in which --help lists them."""

from orchestrator import spec_commands as spec_commands  # isort: skip
from orchestrator import life_commands as life_commands  # isort: skip
from orchestrator import run_commands as run_commands  # isort: skip
from orchestrator import registry_commands as registry_commands  # isort: skip
from orchestrator import model_commands as model_commands  # isort: skip
from orchestrator import compare_commands as compare_commands  # isort: skip
from orchestrator.app import app as app
