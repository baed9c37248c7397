"""Clients of the REST port that follow logs over a websocket, as scripts of tenants do, and check that no line is lost.

Run by `tests/it/interop.rs`. `--client=websockets` uses the library of this name with its default limits and a token.
`--client=akash` uses the PyPI package `akash`, its own code, with a client certificate. Each replica prints numbered lines with
the same text, `1 TEXT`, `2 TEXT`, from 1 in every run. Prints `run REPLICA N` when the Nth run of a replica begins, `gap` for
each notice of lost lines, `notice TEXT` for the notice of the stream's end, and at last `end CODE`, the code of the close frame.
Fails with an exception if a line is lost without a notice, repeated or out of order.

With `--long=SIZE`, another service, `long`, has printed one line of so many control characters, which arrives in several frames.
The client prints `long` when it has the whole line.
"""

import argparse
import asyncio
import json
import logging
import pathlib
import re
import ssl


def report(*words):
    print(*words, flush=True)


class Replica:
    """The lines of one replica. With `from_first`, all were asked for, from number 1; else the first may have any number."""

    def __init__(self, name, text, from_first):
        self.name = name
        self.text = text
        self.from_first = from_first
        self.runs = 0
        self.last = 0
        # Lines that notices reported as lost since the last line.
        self.lost = 0
        # A notice said that a new run has started.
        self.started = False

    def take(self, message):
        if message.startswith("[leasemux: "):
            lost = re.match(r"\[leasemux: (\d+) lines? \(\d+ bytes\) missing here: ", message)
            if lost:
                self.lost += int(lost[1])
                report("gap")
            if message.startswith("[leasemux: the gateway is shutting down"):
                report("notice", message)
            self.started |= re.fullmatch(r"\[leasemux: replica \d+ started\]", message) is not None
            return
        number = int(message.split(" ", 1)[0])
        assert message == f"{number} {self.text}", (self.name, message)
        is_first = self.runs == 0 and (number == self.lost + 1 or not self.from_first)
        if is_first or (self.started and number == 1):
            self.runs += 1
            report("run", self.name, self.runs)
        else:
            assert number == self.last + self.lost + 1, (self.name, self.last, self.lost, number)
        self.last, self.lost, self.started = number, 0, False


def follow_by_akash(arguments):
    """The package yields the messages alone, and logs the close frame."""
    from akash.modules.deployment.client import DeploymentClient

    closed = []
    errors = []

    class Closes(logging.Handler):
        def emit(self, record):
            closed.extend(re.findall(r"^WebSocket stream closed: (\S+)", record.getMessage()))
            errors.extend(re.findall(r"^WebSocket stream error: (.*)", record.getMessage()))

    logger = logging.getLogger("akash.modules.deployment.utils")
    logger.setLevel(logging.INFO)
    logger.addHandler(Closes())
    read = lambda name: pathlib.Path(arguments.identity, name).read_text()  # noqa: E731
    fields = ("owner", "dseq", "gseq", "oseq", "provider")
    messages = DeploymentClient(None).stream_service_logs(
        f"https://{arguments.address}",
        dict(zip(fields, arguments.lease.split("/"))),
        service_name=arguments.service,
        cert_pem=read("cert.pem"),
        key_pem=read("key.pem"),
        timeout=0,
    )
    # The package asks for new lines only.
    replica = Replica(f"{arguments.service}-0", arguments.text, from_first=False)
    for message in messages:
        replica.take(message)
    assert len(closed) == 1, f"closed: {closed}, errors: {errors}"
    report("end", closed[0])


async def follow_by_websockets(arguments):
    import websockets

    _, dseq, gseq, oseq, _ = arguments.lease.split("/")
    # The plural and raw commas, as the command line of Akash sends them.
    url = f"wss://{arguments.address}/lease/{dseq}/{gseq}/{oseq}/logs?follow=true&services={arguments.service}"
    context = ssl.create_default_context(cafile=arguments.ca)
    headers = {"Authorization": f"Bearer {arguments.token}"}
    replicas = {}
    long = ""
    async with websockets.connect(url, ssl=context, additional_headers=headers) as socket:
        # Ends at a close frame of the normal codes, and raises at any other end.
        async for frame in socket:
            entry = json.loads(frame)
            name, message = entry["name"], entry["message"]
            if name == "long-0" and "notice" not in entry:
                long += message
                if not entry.get("more"):
                    assert long == "\1" * arguments.long, (len(long), long[:100])
                    report("long")
            else:
                replica = replicas.setdefault(name, Replica(name, arguments.text, from_first=True))
                replica.take(message)
    report("end", socket.close_code)


def main():
    parser = argparse.ArgumentParser()
    for name in ("client", "address", "lease", "service", "text"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("ca", "identity", "token"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--long", type=int)
    arguments = parser.parse_args()
    if arguments.client == "akash":
        follow_by_akash(arguments)
    else:
        asyncio.run(follow_by_websockets(arguments))


if __name__ == "__main__":
    main()
