"""Where a table lies: pad, stack and slices stay on the device that the schedule is on."""

from typing import Any

import jax
import numpy as np
import pytest
from samplers import NOISE, SAMPLERS

import kdiff_jax as kd

COLUMNS = ("epsilon_weight", "noise_weight", "anchor_weight", "alpha", "input_scale")
OPERATIONS: dict[str, Any] = {
    "pad": lambda schedule: schedule.pad(9),
    "pad with columns": lambda schedule: schedule.pad(9, COLUMNS),
    "pad again": lambda schedule: schedule.pad(9).pad(9),
    "slice": lambda schedule: schedule[1:],
    "slice of a padded table": lambda schedule: schedule.pad(9)[1:3],
    "stack": lambda schedule: kd.stack([schedule, schedule]),
    "stack of two lengths": lambda schedule: kd.stack([schedule, schedule[1:]]),
    "stack of a stack": lambda schedule: kd.stack([kd.stack([schedule, schedule])] * 2),
    "row": lambda schedule: schedule[1],
    "row of a padded table": lambda schedule: schedule.pad(9)[-1],
    "rows": lambda schedule: schedule.rows_at(np.array([0, 2, 9])),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def places_of(tree: Any) -> set[tuple[bool, frozenset[jax.Device]]]:
    """Of every leaf whether it is committed, and to which devices."""
    return {(leaf.committed, frozenset(leaf.sharding.device_set)) for leaf in jax.tree.leaves(tree)}


@every_operation
@pytest.mark.parametrize("name", ["dpm2", "lcm"])
def test_a_table_that_is_on_no_device_in_particular_stays_so(name: str, operation: Any) -> None:
    schedule = SAMPLERS[name](3)
    here = frozenset(jax.devices()[:1])
    assert places_of(schedule) == {(False, here)}
    assert places_of(operation(schedule)) == {(False, here)}


@every_operation
def test_a_table_that_is_on_a_device_stays_there(operation: Any) -> None:
    device = jax.devices()[5]
    schedule = jax.device_put(SAMPLERS["dpm2"](3), device)
    assert places_of(schedule) == {(True, frozenset([device]))}
    assert places_of(operation(schedule)) == {(True, frozenset([device]))}


@pytest.mark.parametrize("name", ["pad", "slice", "stack of two lengths", "row"])
def test_a_table_that_is_on_every_device_stays_there(name: str) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    schedule = jax.device_put(SAMPLERS["dpm2"](3), everywhere)
    assert places_of(OPERATIONS[name](schedule)) == {(True, frozenset(jax.devices()))}


def test_the_numbers_are_those_of_the_table_that_was_not_moved() -> None:
    schedule = SAMPLERS["ancestral"](3)
    moved = jax.device_put(schedule, jax.devices()[3])
    for operation in OPERATIONS.values():
        found, expected = operation(moved), operation(schedule)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_under_a_default_device_a_table_is_built_there_and_stays_uncommitted() -> None:
    device = jax.devices()[2]
    with jax.default_device(device):
        schedule = kd.dpm2(kd.levels(NOISE, 3))
        assert places_of(schedule) == {(False, frozenset([device]))}
        for name in ("pad", "slice", "stack"):
            places = places_of(OPERATIONS[name](schedule))
            assert places == {(False, frozenset([device]))}, name


def test_tables_of_two_devices_stack_where_the_first_is() -> None:
    schedule = SAMPLERS["dpm2"](3)
    first, second = (jax.device_put(schedule, jax.devices()[i]) for i in (4, 6))
    assert places_of(kd.stack([first, second])) == {(True, frozenset(jax.devices()[4:5]))}
