"""`fedrec deploy`: certificates, node keys, units, supervision, and a whole deployment on this machine."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedrec_app.cli_run import trained_there
from fedrec_app.cli_shared import RunSettings, asked_settings, preflight, show_result, stderr
from fedrec_app.config import Scalar
from fedrec_app.console import say, stamped
from fedrec_app.errors import ConfigError, FedrecError

if TYPE_CHECKING:
    from fedrec_app.artifacts import RunFolder
    from fedrec_app.deployment.loopback import Loopback

deploy_commands = typer.Typer(
    no_args_is_help=True, help="Deployments: certificates, key, units, supervise, loopback; see docs/deployment.md."
)
_ROUNDS, _NODES = 3, 3
Out = Annotated[Path, typer.Option("--out", help="Folder to write to.")]


@deploy_commands.command()
def certificates(
    host: Annotated[
        list[str], typer.Option("--host", help="Name or address that nodes reach the SuperLink by; may be repeated.")
    ],
    out: Out,
    days: Annotated[int, typer.Option(min=1, help="How long the SuperLink's certificate is valid.")] = 365,
    ca_days: Annotated[int, typer.Option(min=1, help="How long a new authority is valid.")] = 3650,
    renew: Annotated[bool, typer.Option("--renew", help="Replace the SuperLink's certificate and key.")] = False,
) -> None:
    """Make an authority, unless there is one in the folder, and let it sign a certificate for the SuperLink."""
    from fedrec_app.deployment.certificates import (
        Certificates,
        hosts_of,
        make_authority,
        make_server_certificate,
        read_certificate,
    )

    if not (Certificates(out).ca.exists() or Certificates(out).ca_key.exists()):
        make_authority(out, ca_days)
    made = make_server_certificate(out, host, days, replace=renew)
    certificate = read_certificate(made.server)
    say(f"{made.ca}: give it to every node and user")
    say(f"{made.ca_key}: secret; whoever has it can be the SuperLink. Keep it elsewhere than the SuperLink")
    say(f"{made.server}, {made.server_key}: for the SuperLink; {', '.join(hosts_of(certificate))}")
    say(f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}; renew with --renew and restart the SuperLink")


@deploy_commands.command()
def key(out: Annotated[Path, typer.Option("--out", help="File for the private key.")]) -> None:
    """Make the key by which a SuperLink knows one SuperNode."""
    from fedrec_app.deployment.node_keys import make_node_key

    made = make_node_key(out)
    say(f"{made.private}: secret; stays on the node")
    say(f"{made.public}: to be registered, flwr supernode register {made.public.name} CONNECTION")
    print(made.fingerprint)


@deploy_commands.command()
def units(
    out: Out,
    superlink: Annotated[
        str, typer.Option("--superlink", help="HOST:PORT of the SuperLink: writes the unit of a SuperNode.")
    ] = "",
    listen: Annotated[
        str, typer.Option("--listen", help="ADDRESS:PORT to listen on: writes the unit of a SuperLink.")
    ] = "",
    folder: Annotated[
        Path, typer.Option("--folder", help="Where certificates, keys and node.toml lie on that machine.")
    ] = Path("/etc/fedrec"),
    user: Annotated[str, typer.Option(help="User that the process runs as.")] = "fedrec",
) -> None:
    """Write a systemd unit for a SuperLink or a SuperNode, which restarts it with back-off."""
    from fedrec_app.deployment.certificates import Certificates
    from fedrec_app.deployment.commands import SuperLinkSettings, SuperNodeSettings
    from fedrec_app.deployment.supervisor import Backoff
    from fedrec_app.deployment.units import write_unit
    from fedrec_app.flower_process import host_and_port

    if bool(superlink) == bool(listen):
        raise ConfigError(
            "one of --listen ADDRESS:PORT (a SuperLink) and --superlink HOST:PORT (a SuperNode) is needed"
        )
    if listen:
        host, port = host_and_port(listen)
        database = Path("/var/lib/fedrec/superlink.db")
        command = SuperLinkSettings(database, Certificates(folder), True, host, port).command()
        path, backoff, what = out / "fedrec-superlink.service", Backoff(first=1.0, cap=15.0), "fedrec SuperLink"
    else:
        host_and_port(superlink)
        command = SuperNodeSettings(superlink, folder / "node.toml", folder / "ca.crt", folder / "key").command()
        path, backoff, what = out / "fedrec-supernode.service", Backoff(), "fedrec SuperNode"
    write_unit(path, what, command, user, backoff)
    say(f"{path}: copy to /etc/systemd/system, then: systemctl daemon-reload && systemctl enable --now {path.stem}")


@deploy_commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def supervise(
    context: typer.Context,
    log: Annotated[Path | None, typer.Option("--log", help="File for what the command prints.")] = None,
    most_restarts: Annotated[
        int | None, typer.Option("--max-restarts", min=0, help="In a row; without it, it never gives up.")
    ] = None,
    first: Annotated[float, typer.Option(min=0.1, help="Seconds before the first restart.")] = 2.0,
    cap: Annotated[float, typer.Option(min=0.1, help="Most seconds before a restart.")] = 30.0,
    out_of_touch: Annotated[
        float,
        typer.Option(
            "--out-of-touch",
            min=0,
            help="Seconds without a connection to its SuperLink after which a flower-supernode "
            "is started again, while the SuperLink listens; 0: never.",
        ),
    ] = 90.0,
) -> None:
    """Keep a command running where there is no systemd: fedrec deploy supervise -- flower-supernode ..."""
    from fedrec_app.deployment.part import Part
    from fedrec_app.deployment.supervisor import Backoff, Supervisor
    from fedrec_app.deployment.touch import Touch, superlink_of
    from fedrec_app.flower_process import ends_through_finally, executable, flower_environment, undisturbed

    if not context.args:
        raise ConfigError("no command to keep running: fedrec deploy supervise -- flower-supernode ...")
    command = [executable(context.args[0]), *context.args[1:]]
    part = Part(Path(command[0]).name, command, flower_environment(), log, own_home=False)
    lost = Touch(part, out_of_touch).lost if out_of_touch and superlink_of(command) else lambda: ""
    keeper = Supervisor(part, Backoff(first=first, cap=cap), most_restarts, say=stamped, out_of_touch=lost)
    with ends_through_finally():
        try:
            keeper.start()
            keeper.wait()
        finally:
            with undisturbed():
                keeper.stop()
    raise typer.Exit(1)


@deploy_commands.command()
def loopback(
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="How many SuperNodes; 3, or one a shard.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, no authentication.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Shards, written by `fedrec data prepare NAME --nodes N`.")
    ] = None,
    settings: RunSettings = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the deployment lives, and stays; else it is removed.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it up after the run, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as the last line.")] = False,
) -> None:
    """Bring up a SuperLink and SuperNodes on this machine, train on them, and end what was started."""
    from fedrec_app.deployment.dealt_data import DealtData
    from fedrec_app.deployment.loopback import Loopback
    from fedrec_app.flower_process import ends_through_finally

    flat: dict[str, Scalar] = {"num-server-rounds": _ROUNDS, **asked_settings(settings)}
    flat["output-dir"] = str(Path(str(flat.get("output-dir") or "outputs")).expanduser().absolute())
    with ends_through_finally(), _place(folder) as where:
        dealt = DealtData.read(data) if data else None
        if dealt is not None:
            flat = dealt.told(flat)
        config = preflight(flat)
        if dealt is None:
            say(f"dealing the users of {config.data.name} to {nodes or _NODES} nodes")
            dealt = DealtData.deal(config.data, nodes or _NODES, where / "data")
            flat = {**flat, **dealt.settings}
        if nodes not in (None, len(dealt.nodes)):
            raise ConfigError(f"--nodes {nodes}: {data} has shards of {len(dealt.nodes)} nodes")
        flat.setdefault("strategy.min-nodes", len(dealt.nodes))
        started = time.monotonic()
        with Loopback(where, dealt.nodes, insecure, supervised=True, say=stamped) as place:
            say(f"up after {time.monotonic() - started:.1f} s")
            again = _again(where, data or where / "data", insecure) if folder else ""
            run = trained_there(flat, config, place.connection, place.environment, again=again)
            if run.folder is None:
                raise FedrecError(f"the run completed, but its folder {run.said_folder} is not there")
            show_result(run.folder, as_json)
            stderr.print(_facts(place, run.folder))
            if keep:
                _wait(place)


def _again(folder: Path, data: Path, insecure: bool) -> str:
    """Returns the command that brings a deployment up again, and goes on with a run where one is named."""
    line = ["fedrec", "deploy", "loopback", "--folder", str(folder), "--data", str(data.expanduser().absolute())]
    return shlex.join([*line, "--insecure"] if insecure else line)


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """Yields the folder of a deployment: this one, or one that is removed after it."""
    if folder is not None:
        yield folder.expanduser().absolute()
        return
    with tempfile.TemporaryDirectory(prefix="fedrec-loopback-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _facts(place: Loopback, folder: RunFolder) -> Table:
    """Returns what the deployment was, asked of itself."""
    from fedrec_app.deployment.certificates import read_certificate
    from fedrec_app.deployment.handshake import negotiated

    table = Table("what", "found", title="the deployment")
    if place.certificates is None:
        table.add_row("TLS", "off: everything travels in the clear")
        table.add_row("authentication of SuperNodes", "off: anybody may be one")
    else:
        until = read_certificate(place.certificates.server).not_valid_after_utc
        table.add_row("TLS", f"{negotiated(place.port, place.certificates.ca)}, certificate until {until:%Y-%m-%d}")
        table.add_row("authentication of SuperNodes", "on: registered keys only")
    online = [node["node-id"] for node in place.control.nodes() if node.get("status") == "online"]
    table.add_row("SuperNodes online", f"{len(online)}: {', '.join(map(str, online))}")
    summary = folder.read_summary()
    table.add_row("nodes that took part", str(summary.get("num_nodes", "unknown")))
    table.add_row(
        "seconds a round, median",
        f"{summary['seconds_per_round']:.1f}" if "seconds_per_round" in summary else "not told",
    )
    table.add_row("restarts", str(sum(keeper.restarts for keeper in place.supervisors)))
    return table


def _wait(place: Loopback) -> None:
    say("it stays up until Ctrl-C; from another terminal:")
    say(f"  export FLWR_HOME={place.environment['FLWR_HOME']}")
    say(f"  fedrec run {place.connection} -c SETTINGS")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        say("stopping it")
