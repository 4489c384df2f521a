"""A real Slurm of one node, from Debian's packages, unpacked beside the tests' Python."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libhwloc15")
SETTINGS = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
JobRequeue=1
KillWait=5
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=600000 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def unpacked() -> Path:
    """The folder of the unpacked packages, fetched once; skips where there is no Debian."""
    root = Path(sys.prefix) / "slurm"
    if not (root / "whole").exists():
        if shutil.which("apt-get") is None:
            pytest.skip("no Slurm: its packages are taken from Debian")
        root.mkdir(exist_ok=True)
        done = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=root, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no Slurm: {done.stderr.strip().splitlines()[-1]} (apt-get update?)")
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
        (root / "whole").touch()
    return root


class Cluster:
    """The controller and a node, until `stop`. `folder`: of its state and logs."""

    def __init__(self, folder: Path) -> None:
        root, self.folder = unpacked(), folder
        (plugins,) = root.glob("usr/lib/*/slurm-wlm")
        for name in ("state", "spool"):
            (folder / name).mkdir()
        settings = folder / "slurm.conf"
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(settings),
            "LD_LIBRARY_PATH": f"{plugins}:{plugins.parent}",
            "PATH": f"{root / 'usr/bin'}:{os.environ['PATH']}",
        }
        host = socket.gethostname().partition(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
        settings.write_text(
            SETTINGS.format(host=host, ports=_ports(2), user=user, plugins=plugins, folder=folder)
        )
        programs = root / "usr/sbin"
        step = ["-d", str(programs / "slurmstepd-wlm")]
        self._processes = [
            self._begun(programs / "slurmctld-wlm", "-D"),
            self._begun(programs / "slurmd-wlm", "-D", *step),
        ]
        try:
            self.wait(lambda: self.call("sinfo", "-h", "-o", "%t") == "idle", "the node")
        except BaseException:
            self.stop()
            raise

    def call(self, *command: str, folder: Path | None = None) -> str:
        """Standard output of a command of Slurm, or what it complains of."""
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ..."""
        text = self.call("scontrol", "show", "job", "-o", number)
        return dict(pair.partition("=")[::2] for pair in text.split() if "=" in pair)

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Until it is so."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, f"{what}: {self._logs()}"
            time.sleep(0.1)

    def stop(self) -> None:
        """The end of both."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def _begun(self, program: Path, *options: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{program.name}.log").open("wb") as log:
            return subprocess.Popen(
                [str(program), *options],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))


def _ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return numbers
