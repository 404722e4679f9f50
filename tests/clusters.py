"""A Redis Cluster for tests: primaries that share the slots, and replicas of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import redis
from servers import Server, free_port, poll

SLOTS = 16384


class Cluster:
    """Its nodes: `primaries` first, then as many `replicas`, each of the primary at its place."""

    def __init__(self, primaries: list[Server], replicas: list[Server]) -> None:
        self.primaries = primaries
        self.replicas = replicas
        self.port = primaries[0].port

    def client(self, **options: Any) -> Any:
        return redis.RedisCluster(host="127.0.0.1", port=self.port, **options)

    def owner(self, slot: int) -> Server:
        """The primary that owns a slot, as long as none was moved."""
        return self.primaries[slot * len(self.primaries) // SLOTS]

    def id_of(self, server: Server) -> str:
        with server.client() as client:
            return str(client.execute_command("CLUSTER", "MYID"))

    def move(self, slot: int, source: Server, target: Server) -> int:
        """Moves a slot with its keys, as resharding does; how many keys there were."""
        there, here = self.id_of(target), self.id_of(source)
        moved = 0
        with source.client() as of_source, target.client() as of_target:
            of_target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", here)
            of_source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", there)
            while keys := of_source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10):
                of_source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                moved += len(keys)
            for client in (of_target, of_source):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", there)
        return moved


def _state(server: Server) -> str:
    with server.client() as client:
        return str(client.cluster("INFO")["cluster_state"])


def _knows(server: Server, nodes: int) -> bool:
    with server.client() as client:
        return len(client.cluster("NODES")) == nodes


@contextmanager
def cluster_of(binary: str, primaries: int, replicas: int = 0) -> Iterator[Cluster]:
    """A new cluster, once all of its nodes know each other; with replicas of the first primaries."""
    with ExitStack() as stack:
        nodes, buses = [], []
        for _ in range(primaries + replicas):
            buses.append(free_port())
            options = ("--cluster-enabled", "yes", "--cluster-port", str(buses[-1]), "--cluster-node-timeout", "1000")
            more = ("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0")
            nodes.append(stack.enter_context(Server(binary, *options, *more)))
        for index, node in enumerate(nodes[:primaries]):
            first, last = index * SLOTS // primaries, (index + 1) * SLOTS // primaries - 1
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        with nodes[0].client() as client:
            for node, bus in zip(nodes[1:], buses[1:], strict=True):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in nodes:
            poll(lambda node=node: _knows(node, len(nodes)), "the nodes to know each other", 20)
        cluster = Cluster(nodes[:primaries], nodes[primaries:])
        for primary, replica in zip(cluster.primaries, cluster.replicas, strict=False):
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", cluster.id_of(primary))
        for node in nodes:
            poll(lambda node=node: _state(node) == "ok", "the cluster to form", 20)
        for replica in cluster.replicas:
            with replica.client() as client:
                poll(lambda client=client: client.info("replication")["master_link_status"] == "up", "a copy", 20)
        yield cluster
