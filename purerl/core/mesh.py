"""One training over several devices: its environments split over a mesh axis, its gradients averaged.

Where a mesh with an axis "envs" is set (`jax.set_mesh`, or `runner.train(devices_per_seed=...)`), each device steps its
share of the environments and takes its share of each minibatch. Only where arrays lie is said here. What is computed
stays the program of one device, which XLA partitions; so its numbers do too, but for the order of sums.
"""

from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

ENVS = "envs"


def over_envs(tree: Any, axis: int = 0) -> Any:
    """The same arrays, the given axis split over the devices of the mesh's axis "envs".

    As they are where no such mesh is set. Raises TypeError for a mesh whose axis is of another type than AxisType.Auto,
    in which sharding would be part of each array's type.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kind = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(ENVS)
    if kind is AxisType.Explicit:
        raise TypeError(f'The mesh axis "{ENVS}" must be of AxisType.Auto: jax.make_mesh(..., axis_types=...).')
    if kind is not AxisType.Auto:
        return tree
    spec = PartitionSpec(*[None] * axis, ENVS)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)
