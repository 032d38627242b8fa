"""A server of ours, in a process of its own, on any free port of 127.0.0.1."""

import argparse
from pathlib import Path

import flare_core as flare


def main() -> None:
    """Serve one run; writes where it listens to ``FOLDER/endpoint``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sites", type=int)
    parser.add_argument("--rounds", type=int)
    options, _ = parser.parse_known_args()
    plan = flare.Plan(
        rounds=options.rounds, selection=flare.Selection(sites=options.sites)
    )
    server = flare.Server(plan, folder=options.folder)
    (options.folder / "endpoint").write_text(server.endpoint)
    server.run()


if __name__ == "__main__":
    main()
