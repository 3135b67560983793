"""Makes meshes over TPUs and GPUs that are not there, for which a program can be compiled."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from spn_jax.errors import InputError, enumerated, first_line

# names of kinds of TPU that libtpu 0.0.42.1 knows
TPUS = ("v2", "v3", "v4", "v5e", "v5p", "v6e", "tpu7x")
TPU_GIB = {"v5e": 16.0}  # memory of a chip
QUIET = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler has to know of an NVIDIA GPU, from the maker's data sheets."""

    name: str
    capability: int  # compute capability, a major version
    features: str  # "ACCELERATED_FEATURES" (as in sm_90a) or "NONE"
    cores: int  # streaming multiprocessors
    units: int  # for float32, in a core
    ghz: float
    memory_gib: int  # that a program can get, rounded down
    gb_per_s: int  # rate of its memory
    l2_mib: int
    shared_kib: int  # memory that a core's threads share; a block gets one less

    @property
    def description(self) -> str:
        """The text of XLA's GpuTargetConfigProto."""
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 8 }}
            gpu_device_info {{
                name: "{self.name}"
                device_vendor: "NVIDIA Corporation"
                cuda_compute_capability {{ major: {self.capability} feature_extension: {self.features} }}
                core_count: {self.cores}
                fpus_per_core: {self.units}
                clock_rate_ghz: {self.ghz}
                device_memory_size: {self.memory_gib * 2**30}
                memory_bandwidth: {self.gb_per_s * 10**9}
                l2_cache_size: {self.l2_mib * 2**20}
                shared_memory_per_core: {self.shared_kib * 2**10}
                shared_memory_per_block_optin: {(self.shared_kib - 1) * 2**10}
                {OF_ALL}
            }}
        """


# limits that all GPUs of the table have in common
OF_ALL = """
    shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
    threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
    thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
"""
HOPPER = Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=9,
    features="ACCELERATED_FEATURES",
    cores=132,
    units=128,
    ghz=1.98,
    memory_gib=79,
    gb_per_s=3352,
    l2_mib=50,
    shared_kib=228,
)
GPUS = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        capability=8,
        features="NONE",
        cores=108,
        units=64,
        ghz=1.41,
        memory_gib=79,
        gb_per_s=2039,
        l2_mib=40,
        shared_kib=164,
    ),
    "h100": HOPPER,
    "h200": dataclasses.replace(HOPPER, name="NVIDIA H200", memory_gib=139, gb_per_s=4800),
}
NAMES = (
    f"{enumerated(list(GPUS), 'or')} with the number of GPUs of one machine, such as h100:8, "
    f"or {enumerated(TPUS, 'or')} with the arrangement of the TPUs, such as v5e:2x4"
)
# JAX's packages for GPUs, for two versions of CUDA; both compile
PLUGINS = (("jax-cuda12-plugin", "jax-cuda12-pjrt"), ("jax-cuda13-plugin", "jax-cuda13-pjrt"))
PTXAS = "nvidia-cuda-nvcc-cu12"  # NVIDIA's assembler, which a CUDA toolkit has too


def mesh_of_absent(topology: str) -> Mesh:
    """Makes a mesh with the axis "data" over the devices of a topology.

    Raises InputError if there is no such name, or if the compiler for it is not installed.
    """
    kind, _, size = topology.partition(":")
    if kind in GPUS and (count := re.fullmatch("[1-9][0-9]{0,3}", size)):
        devices = gpus(GPUS[kind], int(count[0]))
    elif kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", size):
        devices = tpus(topology)
    else:
        raise InputError(f"there is no topology {topology!r}; pass {NAMES}")
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def memory_gib(topology: str) -> float:
    """Returns the memory of one device of a topology, in units of 2^30 bytes. Raises InputError if
    it is not known here.
    """
    name = topology.partition(":")[0]
    if name in GPUS:
        return GPUS[name].memory_gib
    if name not in TPU_GIB:
        raise InputError(f"the memory of {name} is not known; pass that of one device with --memory GIB")
    return TPU_GIB[name]


def tpus(topology: str) -> list[jax.Device]:
    """Returns the TPUs of a topology. Raises InputError if libtpu or the topology does not
    exist.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("compiling for a TPU needs libtpu, which is not installed; pip install -e '.[tpu]' brings it, a TPU is not needed")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # JAX's runtime has several kinds
        raise InputError(f"libtpu knows no topology {topology!r} ({first_line(error)}); pass one such as v5e:2x4") from error


def gpus(gpu: Gpu, count: int) -> list[jax.Device]:
    """Returns GPUs of one machine. Raises InputError if JAX's packages for them are not installed,
    or of another version than JAX.
    """
    needed = importlib.metadata.version("jaxlib")
    if not any(all(installed(package) == needed for package in pair) for pair in PLUGINS):
        packages = " ".join([*(f"{package}=={needed}" for package in PLUGINS[0]), PTXAS])
        raise InputError(
            f"compiling for a GPU needs {enumerated(PLUGINS[0])} of version {needed}, which are not installed; "
            f"pip install --no-deps --target DIR {packages} brings them into a folder for PYTHONPATH, a GPU is not needed"
        )
    jax.config.update("jax_platforms", "cpu")  # JAX would search for that driver too
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=gpu.description, topology=f"1x1x{count}").devices
    except Exception as error:  # JAX's runtime has several kinds
        raise InputError(f"JAX's compiler for GPUs refuses {count} x {gpu.name}: {first_line(error)}") from error


def installed(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
