"""Where Hydra looks for launchers: it takes them from the package `hydra_plugins` alone."""

from iad_r1.command import cluster


class Slurm(cluster.Launcher):
    """`hydra/launcher=submitit_slurm`."""

    where = "slurm"


class Local(cluster.Launcher):
    """`hydra/launcher=submitit_local`."""

    where = "local"
