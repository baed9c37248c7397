"""A client that is generated from the unextended draft in `draft/`, and uses none of the gateway's additions.

Run by `tests/it/interop.rs` against a gateway with one lease of two services: `web`, two replicas that each print the
numbered lines `1 …` to `LINES …` and keep running, and `worker`, one replica that prints nothing. Fails with an exception
if a check fails.
"""

import argparse
import pathlib
import re
import sys

# grpc searches this path for the proto files.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "draft"))

import grpc  # noqa: E402
from google.rpc import error_details_pb2  # noqa: E402
from grpc_status import rpc_status  # noqa: E402

PROTO = "akash/provider/lease/v1/service.proto"
proto, services = grpc.protos_and_services(PROTO)
market = grpc.protos("akash/market/v1/lease.proto")

SERVICE = "/akash.provider.lease.v1.LeaseRPC"

# Deadline of each call.
PATIENCE_SECONDS = 60


class Replicas:
    """The received logs of each replica."""

    def __init__(self):
        self.logs = {}

    def take(self, response):
        for entry in response.services:
            self.logs.setdefault((entry.name, entry.replica), bytearray()).extend(entry.logs)

    def check(self, wanted, lines):
        """Asserts that each wanted replica has exactly its lines, from the first to the last."""
        for replica in wanted:
            numbers = [int(line.split()[0]) for line in self.logs.get(replica, b"").splitlines()]
            assert numbers == list(range(1, lines + 1)), (replica, numbers[:3], len(numbers))

    def count(self, replica):
        return self.logs.get(replica, b"").count(b"\n")


def channel(arguments, identity):
    """Returns a connection with the certificate of a tenant, or without a certificate."""
    read = lambda path: pathlib.Path(path).read_bytes()  # noqa: E731
    pair = {}
    if identity:
        pair = {
            "private_key": read(f"{identity}/key.pem"),
            "certificate_chain": read(f"{identity}/cert.pem"),
        }
    credentials = grpc.ssl_channel_credentials(root_certificates=read(arguments.ca), **pair)
    return grpc.secure_channel(arguments.address, credentials)


def lease_id(text):
    owner, dseq, gseq, oseq, provider = text.split("/")
    return market.LeaseID(owner=owner, dseq=int(dseq), gseq=int(gseq), oseq=int(oseq), provider=provider)


def refusal(call):
    """Returns the status of a call that must fail, and its details by type."""
    try:
        response = call()
        # A stream fails when it is read.
        for _ in response if hasattr(response, "__iter__") else []:
            break
    except grpc.RpcError as error:
        details = {}
        status = rpc_status.from_call(error)
        assert status is not None, f"no details: {error}"
        assert status.code == error.code().value[0] and status.message == error.details()
        for detail in status.details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
                if detail.Is(kind.DESCRIPTOR):
                    details[kind.DESCRIPTOR.name] = kind()
                    detail.Unpack(details[kind.DESCRIPTOR.name])
        return error, details
    raise AssertionError("was not refused")


def check_refusal(call, code, reason):
    error, details = refusal(call)
    assert error.code() == code, error
    assert details["ErrorInfo"].reason == reason and details["ErrorInfo"].domain == "leasemux", details
    return error, details


def check_logs(stub, lease, lines):
    web = [("web", 0), ("web", 1)]
    # With follow first, which waits until all lines are printed. Clients for Go always send a filter; an empty one selects all.
    received = Replicas()
    request = proto.ServiceLogsRequest(lease_id=lease, filter=proto.ServiceFilter(), follow=True)
    call = stub.ServiceLogs(request, timeout=PATIENCE_SECONDS)
    for response in call:
        received.take(response)
        if all(received.count(replica) >= lines for replica in web):
            break
    call.cancel()
    received.check(web, lines)

    received = Replicas()
    request = proto.ServiceLogsRequest(lease_id=lease)
    for response in stub.ServiceLogs(request, timeout=PATIENCE_SECONDS):
        received.take(response)
    received.check(web, lines)
    assert received.count(("worker", 0)) == 0

    received = Replicas()
    chosen = proto.ServiceFilter(name="web", replicas=[1])
    request = proto.ServiceLogsRequest(lease_id=lease, filter=chosen)
    for response in stub.ServiceLogs(request, timeout=PATIENCE_SECONDS):
        received.take(response)
    received.check([("web", 1)], lines)
    assert set(received.logs) == {("web", 1)}, received.logs.keys()


def check_status(stub, lease):
    request = proto.ServiceStatusRequest(lease_id=lease)
    [answer] = stub.ServiceStatus(request, timeout=PATIENCE_SECONDS)
    counts = {service.name: service.status for service in answer.services}
    assert set(counts) == {"web", "worker"}, answer
    web = counts["web"]
    assert (web.total, web.replicas, web.ready_replicas) == (2, 2, 2), answer
    assert (web.available, web.available_replicas, web.updated_replicas) == (2, 2, 2), answer
    assert counts["worker"].available == 1, answer


def check_restart(stub, lease, lines):
    """Restarts one service, while a follower of its status and one of its logs stay attached."""
    status = stub.ServiceStatus(
        proto.ServiceStatusRequest(lease_id=lease, filter=proto.ServiceFilter(name="web"), follow=True),
        timeout=PATIENCE_SECONDS,
    )
    first = next(status)
    assert [service.name for service in first.services] == ["web"], first
    request = proto.ServiceLogsRequest(lease_id=lease, filter=proto.ServiceFilter(name="web"), follow=True)
    logs = stub.ServiceLogs(request, timeout=PATIENCE_SECONDS)

    request = proto.ServiceRestartRequest(lease_id=lease, filter=proto.ServiceFilter(name="web"))
    request.timeout.FromSeconds(PATIENCE_SECONDS)
    answer = stub.ServiceRestart(request, timeout=PATIENCE_SECONDS + 10)
    states = [(entry.service, entry.replica, entry.state) for entry in answer.status]
    active = proto.ServiceRestartStatus.active
    assert states == [("web", "0", active), ("web", "1", active)], answer

    # The status went down and came up again; how often that is told is up to the pace of this reader.
    second = next(status)
    assert second != first, second
    while second.services[0].status.available != 2:
        second = next(status)
    status.cancel()

    # Each replica's log holds its lines twice now, one run behind the other.
    received = Replicas()
    for response in logs:
        received.take(response)
        if all(received.count(("web", replica)) >= 2 * lines for replica in (0, 1)):
            break
    logs.cancel()
    once = list(range(1, lines + 1))
    for replica in (0, 1):
        numbers = [int(line.split()[0]) for line in received.logs[("web", replica)].splitlines()]
        assert numbers == once + once, numbers

    # Not to wait is to be told at once that it goes on.
    request = proto.ServiceRestartRequest(lease_id=lease, filter=proto.ServiceFilter(name="worker"))
    answer = stub.ServiceRestart(request, timeout=PATIENCE_SECONDS)
    [entry] = answer.status
    assert (entry.service, entry.replica) == ("worker", "0"), answer
    assert entry.state == proto.ServiceRestartStatus.pending, answer


def check_refusals(arguments, stub, raw, lease):
    code = grpc.StatusCode
    logs = lambda **fields: lambda: stub.ServiceLogs(  # noqa: E731
        proto.ServiceLogsRequest(**{"lease_id": lease, **fields}), timeout=PATIENCE_SECONDS
    )
    check_refusal(logs(filter=proto.ServiceFilter(name="db")), code.NOT_FOUND, "SERVICE_NOT_FOUND")
    check_refusal(
        logs(filter=proto.ServiceFilter(name="web", replicas=[7])), code.NOT_FOUND, "REPLICA_NOT_FOUND"
    )
    other = market.LeaseID()
    other.CopyFrom(lease)
    other.dseq = 0
    _, details = check_refusal(logs(lease_id=other), code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert details["BadRequest"].field_violations[0].field == "lease_id.dseq", details
    other.dseq = lease.dseq + 1
    check_refusal(logs(lease_id=other), code.NOT_FOUND, "LEASE_NOT_FOUND")

    request = proto.ServiceRestartRequest(lease_id=lease)
    request.timeout.FromSeconds(-1)
    restart = lambda: stub.ServiceRestart(request, timeout=PATIENCE_SECONDS)  # noqa: E731
    _, details = check_refusal(restart, code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert details["BadRequest"].field_violations[0].field == "timeout", details

    # A client of the published proto, which has service names where the draft has a filter, is served as such. `ha` would decode as
    # a filter of nothing but an unknown field, that is, as everything.
    published = proto.ServiceLogsRequest(lease_id=lease).SerializeToString() + b"\x12\x02ha"
    check_refusal(lambda: raw(published, timeout=PATIENCE_SECONDS), code.NOT_FOUND, "SERVICE_NOT_FOUND")

    # Another tenant cannot find out whether a lease exists. Without credentials, all calls fail.
    with channel(arguments, arguments.stranger) as connection:
        theirs = services.LeaseRPCStub(connection)
        words = set()
        for dseq in (lease.dseq, lease.dseq + 1):
            other.dseq = dseq
            for method, kind in [
                (theirs.ServiceLogs, proto.ServiceLogsRequest),
                (theirs.ServiceStatus, proto.ServiceStatusRequest),
                (theirs.ServiceRestart, proto.ServiceRestartRequest),
            ]:
                call = lambda: method(kind(lease_id=other), timeout=PATIENCE_SECONDS)  # noqa: B023, E731
                error, _ = check_refusal(call, code.PERMISSION_DENIED, "LEASE_NOT_YOURS")
                words.add(error.details())
        assert len(words) == 1, words
    with channel(arguments, None) as connection:
        nobody = services.LeaseRPCStub(connection)
        call = lambda: nobody.ServiceLogs(proto.ServiceLogsRequest(lease_id=lease), timeout=PATIENCE_SECONDS)  # noqa: E731
        check_refusal(call, code.UNAUTHENTICATED, "CREDENTIALS_MISSING")


def main():
    parser = argparse.ArgumentParser()
    for name in ("address", "ca", "identity", "stranger", "lease"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--lines", type=int, required=True)
    arguments = parser.parse_args()
    lease = lease_id(arguments.lease)
    assert re.fullmatch(r"[^:]+:\d+", arguments.address)

    with channel(arguments, arguments.identity) as connection:
        stub = services.LeaseRPCStub(connection)
        raw = connection.unary_stream(f"{SERVICE}/ServiceLogs")
        for check in (
            lambda: check_logs(stub, lease, arguments.lines),
            lambda: check_status(stub, lease),
            lambda: check_refusals(arguments, stub, raw, lease),
            lambda: check_restart(stub, lease, arguments.lines),
        ):
            check()
    print("all as the draft has it")


if __name__ == "__main__":
    main()
