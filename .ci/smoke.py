"""The installed wheel, from outside of the source tree: its files, its version, one run.

python .ci/smoke.py REPOSITORY WHEEL
"""

import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

import kdiff_jax as kd

repository, wheel = Path(sys.argv[1]), Path(sys.argv[2])
installed = Path(kd.__file__).parent
assert not installed.is_relative_to(repository), f"{installed} is the source tree"

# Every file of the package, byte by byte: all folders and py.typed, and nothing else.
package = repository / "kdiff_jax"
source = {p.relative_to(repository).as_posix(): p.read_bytes() for p in package.rglob("*.py")}
source["kdiff_jax/py.typed"] = (package / "py.typed").read_bytes()
with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if ".dist-info/" not in name]
    packed = {name: archive.read(name) for name in names}
    licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
assert packed == source, sorted(packed.keys() ^ source.keys())
assert len(licences) == 1
assert version("kdiff_jax") == kd.__version__ == wheel.name.split("-")[1]

schedule = kd.dpm2(kd.levels(kd.noise_schedule("scaled_linear"), 10, grid="karras"))
denoise = kd.denoiser(lambda params, x, timestep: jnp.tanh(x @ params))
key, params = jax.random.key(0), 0.1 * jnp.eye(8)
x = kd.initial_sample(schedule, key, (2, 8))
x0 = kd.sample(denoise, params, schedule, x)
assert x0.shape == (2, 8)
assert bool(jnp.isfinite(x0).all())
