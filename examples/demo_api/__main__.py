"""`python -m examples.demo_api`: starts the workers, and a Redis for them if `REDIS_URL` names none."""

from __future__ import annotations

import os

import click
import uvicorn

from shared_resilience.demo.server import server


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True)
@click.option("--workers", default=3, show_default=True, help="Processes, which share everything.")
def main(host: str, port: int, workers: int) -> None:
    """Serves the example API until it is interrupted; Redis is that of REDIS_URL, else an embedded server."""
    with server(os.environ.get("REDIS_URL")) as redis:
        os.environ["REDIS_URL"] = redis.url  # the workers inherit it
        click.echo(f"Redis is {redis.title}\nhttp://{host}:{port}/api/resilience/health")
        app = "examples.demo_api.app:app"
        uvicorn.run(app, host=host, port=port, workers=workers, access_log=False, log_level="warning")


if __name__ == "__main__":
    main(prog_name="python -m examples.demo_api")
