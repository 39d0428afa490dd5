"""Two machines in one: the same spec, launched in two workspaces, with the real llamafactory-cli over loopback.

Run: pytest tests/test_nodes.py. Each machine's torchrun and process think that the other is elsewhere.
"""

import re
import socket
import sys

import pytest

from tests.test_real import TRAIN
from tests.workshop import assert_none_left, new_workshop, training_at_step

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        any(char.isspace() for char in sys.prefix),
        reason="LLaMA-Factory's launcher splits torchrun's command at the blank in the installation's path",
    ),
]
# Slow enough to be stopped on the way, quick enough to be gone on with to the end.
MEETING = {"nnodes": 2, "nproc_per_node": 1, "master_addr": "127.0.0.1"}
TOGETHER = {**TRAIN, "learning_rate": 5.0e-3, "max_steps": 40, "max_samples": 500, "gradient_accumulation_steps": 16}
TOGETHER |= {"ddp_backend": "gloo", "save_strategy": "steps", "save_steps": 5, "save_on_each_node": True}


@pytest.mark.timeout(400)
def test_one_machine_s_stop_ends_the_other_and_both_go_on_from_the_same_checkpoint(tmp_path, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    machines = []
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        environment = {"OMP_NUM_THREADS": "1", "NODE_RANK": str(rank)}
        machines.append(new_workshop(tmp_path / str(rank), None, environment, model=tiny_model))
    try:
        compute = {**MEETING, "master_port": port}
        launched = [each.start("launch", each.spec(train=TOGETHER, compute=compute)) for each in machines]
        launched[0].until(training_at_step(machines[0], 6), "step 6")
        launched[0].popen.terminate()
        first, second = (command.finish(120) for command in launched)
        assert first.code == 130 and re.search(r"kept: checkpoint-\d+", first.err), first.err
        assert second.code == 4 and "It lost the connection to another machine" in second.err, second.err
        refused = machines[0].run("resume", "toy")
        assert refused.code == 3 and "all must go on from the same one" in refused.err
        resumed = [each.start("resume", "toy", "--from", "checkpoint-5") for each in machines]
        first, second = (command.finish(150) for command in resumed)
        assert (first.code, second.code) == (0, 0), (first.err, second.err)
        records = [each.record() for each in machines]
        assert records[0]["training"]["steps"] == 40 and len(records[0]["benchmarks"]) == 1
        assert (records[1]["status"], records[1]["training"], records[1]["benchmarks"]) == ("done", None, [])
        assert "rank 1 of 2: the results are on the one with rank 0" in records[1]["results_elsewhere"]
        for each in machines:
            assert_none_left(each)
    finally:
        for each in machines:
            each.kill_all()
