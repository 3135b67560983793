"""What devices tell each other in a step: one sum of gradients a network, read from the compiled
program.
"""

import json
from typing import Any

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


def test_one_device_needs_none_and_several_one_all_reduce_a_network_and_split_parameters_are_gathered() -> None:
    output, _ = trainer.run(["1", "2", "4", "8", "split:2"], devices=8, program=PROGRAM)
    alone, *several, split = map(json.loads, output.splitlines())
    assert alone["collectives"] == []
    assert len(several) == 3
    for step in several:
        assert_one_sum_a_network(step)
    gathered = sum(found["bytes"] for found in split["collectives"] if found["kind"] == "all-gather")
    # parameters that lie in parts on the devices are put together first
    assert gathered > sum(split["kernel_bytes"]) / 2


def test_two_processes_need_one_all_reduce_a_network() -> None:
    address = free_address()
    for output, _ in finish_both([trainer.start([address, "2", str(i)], program=PROGRAM) for i in range(2)]):
        # behind a line of the transport's
        assert_one_sum_a_network(json.loads(output.splitlines()[-1]))


def test_gradients_of_networks_in_bfloat16_are_added_up_over_the_devices_in_float32() -> None:
    output, _ = trainer.run(["bfloat16:2"], devices=2, program=PROGRAM)
    (step,) = map(json.loads, output.splitlines())
    assert_one_sum_a_network(step)  # of four bytes for each parameter, as in float32
    assert step["narrow_sums"] == 0
