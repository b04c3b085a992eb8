"""The one command, `radixgate`: finds its subcommands by entry point and imports a room only when it is asked for.

Owns nothing else: `serve` never loads torch because nothing here names it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

GROUP = "radixgate.commands"


class Rooms(click.Group):
    """Subcommands from the installed entry points."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [point.name for point in sorted(_points(), key=_order)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for point in _points():
            if point.name == name:
                command: click.Command = point.load()
                return command
        return None


@click.group(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="radixgate")
def main() -> None:
    """RadixGate: a reverse proxy that sends each LLM request where its prefix is cached and it starts soonest.

    \b
    Try it:       radixgate demo
    Put it in front of OpenAI-compatible servers you have:
                  radixgate serve --replica http://10.0.0.1:8000 --replica http://10.0.0.2:8000
    Let bundled replicas join by themselves:
                  radixgate serve
                  radixgate replica --model simulated --join http://127.0.0.1:9400
    """


def _points() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _order(point: EntryPoint) -> tuple[int, str]:
    first = ("serve", "replica", "demo")
    return (first.index(point.name) if point.name in first else len(first), point.name)


if __name__ == "__main__":
    main(prog_name="radixgate")
