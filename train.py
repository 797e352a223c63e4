"""What `python train.py …`, `deepspeed train.py …` and `torchrun train.py …` start: the same as `fmlora run …`."""

import sys

from fmlora_dist.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
