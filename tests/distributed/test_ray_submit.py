"""``ray up`` and ``ray submit`` as a user types them, against a host that is reached by ssh on loopback."""

from pathlib import Path

import pytest
import yaml

from cluster.journal import Journal
from hosts import ENV, Host, needs, ssh_between, work_folder
from running import REPOSITORY, result

pytestmark = pytest.mark.long


def _cluster(work: Path) -> Path:
    """The configuration of a cluster whose only node is the host itself."""
    start = "ray start --head --node-ip-address 127.0.0.1 --port 6401 --num-cpus 1 --include-dashboard=false"
    config = {
        "cluster_name": "loop",
        "provider": {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "root", "ssh_private_key": str(work / "ssh" / "user")},
        "head_start_ray_commands": [f"{start} --object-store-memory 100000000 --temp-dir {work}/r"],
        "worker_start_ray_commands": [],
    }
    (work / "cluster.yaml").write_text(yaml.safe_dump(config))
    return work / "cluster.yaml"


def _write_grid(file: Path) -> None:
    values = {
        "benchmarks": [{"benchmark": "icons_mini", "tasks": [2]}],
        "methods": ["frozen"],
        "seeds": [0],
        "settings": {"threads": 1, "epochs": 1},
        "resources": {"cpus": 1},
    }
    file.write_text(yaml.safe_dump(values))


def test_ray_submit_runs_a_grid_on_the_cluster_of_the_head() -> None:
    needs("sshd", "ssh-keygen", "rsync")
    with work_folder() as work, Host("loop", work, {}) as host:
        home, token = work / "home", work / "token"
        token.write_text("5" * 64)
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        tools = ssh_between(work, [host], home=home)
        # Ray's commands are those of an interactive login shell, which sets its own PATH.
        profile = "".join(f'export {name}="{value}"\n' for name, value in {**ENV, **secret}.items())
        for name in (".bash_profile", ".bashrc"):
            (home / name).write_text(profile)
        config, out = _cluster(work), work / "out"
        _write_grid(work / "short.yaml")
        env = {**secret, "PATH": f"{tools}:{ENV['PATH']}"}
        log, script = work / "user.log", REPOSITORY / "cluster" / "grid.py"

        refused = host.start(["ray", "submit", "--no-config-cache", config], log, **env)
        assert refused.wait(300) == 2 and "Missing argument 'SCRIPT'" in log.read_text(), "as README says"

        host.run(["ray", "up", "-y", "--no-config-cache", config], log, timeout=600, **env)
        submit = ["ray", "submit", "--no-config-cache", config, script, "--", work / "short.yaml", "--out", out]
        said = host.run(submit, log, timeout=900, **env)
        assert "1 runs, 0 finished, 1 to run" in said and "written:" in said and "tried again" not in said
        (folder,) = (out / "runs").iterdir()
        assert result(folder)["status"] == "complete"
        (done,) = [line for line in Journal.read(out) if line["event"] == "done"]
        assert done["host"] == "loop"
        assert len(host.processes("gcs_server")) == 1, "it has joined the cluster, and started no Ray of its own"
        assert (home / "grid.py").read_bytes() == script.read_bytes(), "all that was copied of the project"

        said = host.run(submit, log, timeout=600, **env)
        assert "1 finished, 0 to run" in said
