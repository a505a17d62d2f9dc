"""`convserve serve`: serves the model repository over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack
from typing import Any

import click

from contract.errors import ContractError
from convserve.commands.options import settings_of, settings_options
from service.errors import ProviderUnavailable
from service.settings import Settings, service_links
from service.system import process
from service.system.signals import SignalHandlers

log = logging.getLogger(__name__)

EXIT_NOT_SERVABLE = 3  # as uvicorn's for a failed start


@click.command()
@click.option(
    "--print-settings", is_flag=True, help="Print the settings in effect as JSON and exit."
)
@settings_options
@click.pass_obj
def serve(signals: SignalHandlers | None, /, print_settings: bool, **overrides: Any) -> None:
    """Serve the model repository over HTTP.

    Every option can also be set as an environment variable, CONVSERVE_<NAME>; the option wins.
    """
    settings = settings_of(overrides)
    if print_settings:
        click.echo(settings.model_dump_json(indent=1))
        return
    sys.exit(_serve(settings, signals or SignalHandlers()))


def _serve(settings: Settings, signals: SignalHandlers) -> int:
    # Late, because these take a second to import and --print-settings does not need them.
    from convserve.restarting import restarting_guard
    from service.admin.token import AdminTokenUnusable, read_admin_token
    from service.app import create_app
    from service.http.connection.tls import CertificateUnusable, tls_context
    from service.http.server import DrainingServer
    from service.system.logs import LogWriter

    process.limit_freed_memory()
    process.raise_descriptor_limit()
    logs = LogWriter(settings.log_level)
    logs.start()

    def before_exit(number: signal.Signals) -> None:
        log.info("stopping at once", extra={"signal": number.name})
        logs.stop()

    signals.before_exit = before_exit

    if links := service_links(os.environ):
        log.info("ignored the variables of Kubernetes services", extra={"variables": links[:20]})

    try:
        admin_token = read_admin_token(settings)  # first, because loading models takes longer
        tls = tls_context(settings)
        app = create_app(settings, guard=restarting_guard(logs))
        logs.on_drop = app.state.service.metrics.log_records_dropped.inc
        with ExitStack() as stack:
            listener = stack.enter_context(
                process.bind_unix_socket(settings.uds)
                if settings.uds
                else process.bind_socket(settings.host, settings.port)
            )
            admin = None
            if admin_token is not None:
                from service.admin.server import AdminServer

                host, port = settings.admin_host, settings.admin_port or 0
                opened = stack.enter_context(process.bind_socket(host, port, listen=True))
                admin = AdminServer(app.state.service.admin_port(admin_token), opened)
            DrainingServer(app, settings, signals, admin, tls).run(sockets=[listener])
    except (ContractError, ProviderUnavailable) as error:
        click.echo(f"convserve: cannot serve: {error}", err=True)
        return EXIT_NOT_SERVABLE
    except (process.AddressUnusable, AdminTokenUnusable, CertificateUnusable) as error:
        click.echo(f"convserve: {error}", err=True)
        return EXIT_NOT_SERVABLE
    finally:
        logs.stop()
    return 0
