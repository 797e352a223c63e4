"""One run over two hosts: ``deepspeed --hostfile`` by ssh, as a user types it."""

import pytest

from hosts import ENV, hosts, needs, ssh_between, work_folder
from launching import finish, launch
from running import REPOSITORY, assert_same_run, result

RUN = ["--benchmark", "icons_mini", "--tasks", "2", "--epochs", "1", "--method", "fmlora", "--threads", "1"]


@pytest.mark.long
def test_a_run_over_two_hosts_is_that_of_two_processes_on_one() -> None:
    needs("sshd", "pdsh", "ssh-keygen")
    with work_folder() as work:
        code, out, err = finish(launch(REPOSITORY / "train.py", *RUN, "--out", work / "one"))
        assert code == 0, out + err
        with hosts(work) as (first, second):
            tools = ssh_between(work, [first, second], home=work / "home")
            (work / "hostfile").write_text("fa slots=1\nfb slots=1\n")
            (work / "deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in ENV.items()))
            script = [REPOSITORY / "train.py", *RUN, "--out", work / "two"]
            first.run(
                ["deepspeed", "--hostfile", work / "hostfile", *script],
                work / "launcher.log",
                timeout=900,
                PATH=f"{tools}:{ENV['PATH']}",
                DS_ENV_FILE=work / "deepspeed_env",
            )
            said = (work / "launcher.log").read_text()
        assert "fa: " in said and "fb: " in said, "pdsh names the host of each line"
        assert result(work / "two")["world_size"] == 2
        assert_same_run(work / "two", work / "one")
