"""What devices tell each other in a step: one sum of gradients a network, in float32 whatever the
networks compute in. It is read from the compiled program.
"""

import json
from typing import Any

import pytest

from tests import trainer
from tests.trainer import finish_both, free_address

PROGRAM = ("-m", "tests.compiled_step")


def assert_one_sum_a_network(step: dict[str, Any]) -> None:
    generator, discriminator = step["kernel_bytes"]
    assert [found["kind"] for found in step["collectives"]] == ["all-reduce", "all-reduce"]
    small, large = sorted(found["bytes"] for found in step["collectives"])
    # of photos and of predictions, each judged with singular values of its own
    assert small == 2 * discriminator
    # with biases, losses, and the CPU's own parts of gradients at reflected borders
    assert generator < large < 1.5 * generator


def test_several_devices_need_one_all_reduce_a_network() -> None:
    output, _ = trainer.run(["bfloat16:2"], devices=2, program=PROGRAM)
    step = json.loads(output)
    assert_one_sum_a_network(step)  # of four bytes for each parameter, as in float32
    assert step["narrow_sums"] == 0


@pytest.mark.long
def test_split_parameters_are_gathered() -> None:
    output, _ = trainer.run(["split:2"], devices=2, program=PROGRAM)
    step = json.loads(output)
    gathered = sum(found["bytes"] for found in step["collectives"] if found["kind"] == "all-gather")
    # parameters that lie in parts on the devices are put together first
    assert gathered > sum(step["kernel_bytes"]) / 2


@pytest.mark.long
def test_one_device_needs_none_and_four_one_all_reduce_a_network() -> None:
    output, _ = trainer.run(["1", "4"], devices=4, program=PROGRAM)
    alone, several = map(json.loads, output.splitlines())
    assert alone["collectives"] == []
    assert_one_sum_a_network(several)


@pytest.mark.long
def test_two_processes_need_one_all_reduce_a_network() -> None:
    address = free_address()
    for output, _ in finish_both([trainer.start([address, "2", str(i)], program=PROGRAM) for i in range(2)]):
        # behind a line of the transport's
        assert_one_sum_a_network(json.loads(output.splitlines()[-1]))
